"""A busy neighbour during a run is seen, and said."""

from __future__ import annotations

import os
import subprocess
import sys

from headrace.lab.campaign.interference import CpuUse, interference_warning
from headrace.lab.procfs import cpu_ticks

BURN = """
import time
end = time.process_time() + 0.2
while time.process_time() < end:
    pass
print("burnt", flush=True)
input()
"""


def test_others_share_is_what_neither_server_nor_lab_used() -> None:
    quiet = CpuUse(busy=50, stolen=0, total=100, server=45, lab=5)
    assert quiet.foreign_share == 0 and interference_warning(quiet.foreign_share) is None
    loud = CpuUse(busy=90, stolen=5, total=100, server=45, lab=5)
    assert loud.foreign_share == 0.45
    assert "other processes used 45% of the machine's processor time" in (
        interference_warning(loud.foreign_share) or ""
    )


STAT = """cpu  100 10 40 900 4 1 2 3 0 0
cpu0 10 1 4 90 1 0 0 0 0 0
cpu1 20 2 8 80 1 0 0 1 0 0
cpu10 70 7 28 730 2 1 2 2 0 0
intr 5046366 0
"""


def test_only_the_processors_that_the_lab_may_use_count() -> None:
    assert cpu_ticks(STAT, {0, 1}) == (30, 3, 12, 170, 2, 0, 0, 1)
    assert cpu_ticks(STAT, {0, 1, 10}) == (100, 10, 40, 900, 4, 1, 2, 3)


def test_the_time_of_one_processor_is_no_more_than_its_own() -> None:
    before = CpuUse.now("headrace-test-none")
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    try:
        assert CpuUse.now("headrace-test-none").total < before.total or len(usable) == 1
    finally:
        os.sched_setaffinity(0, usable)


def test_the_servers_time_is_known_by_its_nonce() -> None:
    """The same work, once as our server's and once as a stranger's."""
    for nonce, ours in (("headrace-test-cpu", True), ("headrace-test-other", False)):
        environment = {**os.environ, "HEADRACE_LAB_NONCE": nonce}
        before = CpuUse.now("headrace-test-cpu")
        command = [sys.executable, "-S", "-c", BURN]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as burner:
            assert burner.stdout is not None and burner.stdin is not None
            burner.stdout.readline()
            used = CpuUse.now("headrace-test-cpu").since(before)
            burner.communicate(b"\n")
        assert (used.server >= 0.19) is ours
        assert used.busy >= 0.19
