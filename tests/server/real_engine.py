"""The real engine with a tiny random model behind the real server, in the test's own event loop."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from server_harness import Served, serving

from headrace.engine.async_engine import AsyncEngine, EngineStats
from headrace.engine.config import EngineArgs, resolve
from headrace.engine.demo import DEMO_DIRECTORY
from headrace.server.options import ServerOptions

MODEL = "tiny"
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16, "torch_dtype": "float32"}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}


def write_tiny_model(directory: Path, **changes: object) -> Path:
    """The demonstration model's tokenizer and shape, the latter shrunk until a step takes a millisecond."""
    shutil.copytree(DEMO_DIRECTORY, directory, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **TINY, **HEADS, **changes}))
    return directory


@asynccontextmanager
async def real(
    directory: Path, options: ServerOptions | None = None, **args: object
) -> AsyncIterator[tuple[AsyncEngine, Served]]:
    declared = {"max_model_len": 4096, "max_num_seqs": 8, "num_gpu_blocks_override": 320, "num_threads": 1}
    declared |= {"load_format": "dummy", **args}
    config, _ = resolve(EngineArgs(model=str(directory), served_model_name=(MODEL,), **declared))  # type: ignore[arg-type]
    engine = AsyncEngine.from_config(config)
    try:
        async with serving(engine, options) as served:
            yield engine, served
    finally:
        engine.close()


async def settled(engine: AsyncEngine) -> EngineStats:
    """The snapshot once nothing runs; the test's own time limit bounds the wait."""
    while (stats := engine.stats()).num_running or stats.num_waiting or stats.kv_blocks_free < stats.kv_blocks_total:
        await asyncio.sleep(0)
    return stats
