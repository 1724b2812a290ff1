"""The server that is simulated: its scheduler's settings, what its steps cost, and what stands before the scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.core.state import SchedulerConfig
from headrace.lab.sim.cost import CostModel


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """From the client's send to the scheduler's queue: parsing and tokenising, one request after the other.

    delay_s   added to every request; also everything else that is constant between server and client
    each_s    time of one request in the serial part, which a burst queues for
    """

    delay_s: float = 0.0
    each_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Server:
    """One replica.  A request with prompt + max_tokens above `config.max_model_len` is refused (rule R13)."""

    config: SchedulerConfig
    cost: CostModel
    front: FrontEnd = field(default_factory=FrontEnd)
