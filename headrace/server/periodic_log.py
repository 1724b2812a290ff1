"""The line that vLLM's users look for in the log, every ten seconds in which something happened."""

from __future__ import annotations

import asyncio
import logging
import time

from headrace.engine.async_engine import EngineStats
from headrace.server.http_errors import ApiError
from headrace.server.state import Service

logger = logging.getLogger("headrace.server")

INTERVAL_S = 10.0


def line(now: EngineStats, before: EngineStats, seconds: float) -> str | None:
    """vLLM's line for the time between two snapshots, or None when nothing ran and nothing waits."""
    prompt = now.prompt_tokens - before.prompt_tokens
    generated = now.generation_tokens - before.generation_tokens
    if not (prompt or generated or now.num_running or now.num_waiting):
        return None
    used = 1 - now.kv_blocks_free / max(1, now.kv_blocks_total)
    queries = now.prefix_cache_queries - before.prefix_cache_queries
    hits = now.prefix_cache_hits - before.prefix_cache_hits
    drafts = now.num_draft_tokens - before.num_draft_tokens
    accepted = now.num_accepted_tokens - before.num_accepted_tokens
    speculation = f", Draft acceptance rate: {100 * accepted / drafts:.1f}%" if drafts else ""
    return (
        f"Engine 000: Avg prompt throughput: {prompt / seconds:.1f} tokens/s, "
        f"Avg generation throughput: {generated / seconds:.1f} tokens/s, "
        f"Running: {now.num_running} reqs, Waiting: {now.num_waiting} reqs, "
        f"GPU KV cache usage: {100 * used:.1f}%, "
        f"Prefix cache hit rate: {100 * hits / max(1, queries):.1f}%{speculation}"
    )


async def report_forever(service: Service) -> None:
    """Log a line per interval until cancelled; waits for the engine to be loaded."""
    before: EngineStats | None = None
    then = time.perf_counter()
    while True:
        try:
            now = service.engine.stats()
        except ApiError:  # still loading
            now = None
        at = time.perf_counter()
        if now is not None and before is not None and (text := line(now, before, at - then)):
            logger.info(text)
        before, then = now, at
        await asyncio.sleep(INTERVAL_S)
