"""One door to the simulator: the fast path where it applies, the step-by-step loop for everything else."""

from __future__ import annotations

from headrace.errors import ConfigError
from headrace.lab.sim.fast import applies, simulate_fast
from headrace.lab.sim.outcome import Outcome
from headrace.lab.sim.server import Server
from headrace.lab.sim.stepwise import simulate_stepwise
from headrace.lab.sim.traffic import Traffic


def simulate(traffic: Traffic, server: Server) -> Outcome:
    """Run the traffic through the server's scheduler.  Pure: the same arguments give the same bytes.

    Raises ConfigError with speculation on: lengths do not say how many drafts are right.
    """
    if server.config.speculation is not None:
        raise ConfigError("a server with speculation cannot be simulated: lengths do not say how many drafts are right")
    return simulate_fast(traffic, server) if applies(server) else simulate_stepwise(traffic, server)
