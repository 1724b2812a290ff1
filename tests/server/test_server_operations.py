"""The operator's endpoints: the profiler."""

from __future__ import annotations

from fake_engine import ScriptedEngine
from server_harness import error_of, in_loop, serving


@in_loop
async def test_the_profiler_is_started_and_stopped_by_post() -> None:
    async with serving(ScriptedEngine()) as served:
        off = await served.http.post("/stop_profile")
        assert off.status_code == 404 and error_of(off)["code"] == "profiler_off"
        assert (await served.http.post("/start_profile")).json() == {"trace": "/traces/1"}
        twice = await served.http.post("/start_profile")
        assert twice.status_code == 409 and error_of(twice)["code"] == "profiler_state"
        assert (await served.http.post("/stop_profile")).json()["steps"] == 3
        assert (await served.http.get("/start_profile")).status_code == 405
