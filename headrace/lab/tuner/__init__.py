"""What to try next: simulate every setting, measure what is worth it, and stop when nothing left can win."""
