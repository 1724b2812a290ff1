"""The built-in demonstration model: a shape and a tokenizer of our own making; its weights come from a seed.

It exists so that `headrace serve` works with nothing downloaded: real steps, real scheduling, meaningless text.
"""

from __future__ import annotations

from pathlib import Path

DEMO_NAME = "demo"
DEMO_DIRECTORY = Path(__file__).resolve().parent
DEMO_SEED = 0
"""The weights' seed unless --seed is given: every demonstration server answers alike."""
