"""The engine: the only room that imports torch."""

from __future__ import annotations

import os

# libgomp's threads spin at every barrier, and a step has some hundreds of barriers.  With the server, a client or
# anything else on the same cores, a spinning thread keeps the one it waits for off the core until its time slice is
# over.  Measured on two cores beside one busy process: 107 tokens/s by default, 1,400 with this bound (about 10 µs),
# and the same speed alone.  libgomp reads the variable when torch is loaded, so it has to be set before.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
