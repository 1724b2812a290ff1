import numpy as np
from numpy.typing import NDArray

_Ints = NDArray[np.int64]

def simulate(
    policy: str,
    sizes: list[int],
    cached: bool,
    fcfs: bool,
    reserve_full: bool,
    hash_at: str | None,
    coefficients: list[float],
    knots: list[tuple[float, float]],
    delay_ns: int,
    each_ns: int,
    max_concurrency: int,
    planned: _Ints,
    prompt: _Ints,
    output: _Ints,
    max_tokens: _Ints,
    priority: _Ints,
    group: _Ints,
    prefix: _Ints,
    log: bool,
    jumps: bool,
) -> tuple[_Ints, _Ints, _Ints, _Ints, _Ints, _Ints, _Ints, _Ints, _Ints, _Ints, _Ints]: ...
