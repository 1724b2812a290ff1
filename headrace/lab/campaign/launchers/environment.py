"""What a server inherits of the lab's environment, and which of it changes a result and is therefore recorded."""

from __future__ import annotations

import os
from collections.abc import Mapping

NONCE_VARIABLE = "HEADRACE_LAB_NONCE"

# Threads and their binding, numerical libraries, allocators, the engine's own switches: by prefix, since a variable
# that is missed here would change a campaign's figures and leave no trace.
_PREFIXES = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "BLIS_", "DNNL_", "ONEDNN_", "RAYON_", "TOKENIZERS_"),
    *("VLLM_", "TORCH", "PYTORCH_", "ATEN_", "CUDA_", "NVIDIA_", "NCCL_", "TRITON_"),
    *("MALLOC_", "GLIBC_", "LD_PRELOAD", "PYTHONOPTIMIZE", "PYTHONMALLOC", "PYTHONDEVMODE"),
)
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")


def server_environment(nonce: str, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables for a server of ours, marked by `nonce`.

    Without API keys: a server that finds one asks for it, and the lab's questions are answered with 401.
    """
    kept = {name: text for name, text in _of(environ).items() if not name.endswith("API_KEY")}
    return {**kept, NONCE_VARIABLE: nonce, "PYTHONUNBUFFERED": "1"}


def recorded_variables(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Those that a server inherits and that can change a result, by name; never a secret."""
    return {
        name: text
        for name, text in sorted(_of(environ).items())
        if name.startswith(_PREFIXES) and name != NONCE_VARIABLE and not name.endswith(_SECRET)
    }


def _of(environ: Mapping[str, str] | None) -> Mapping[str, str]:
    return os.environ if environ is None else environ
