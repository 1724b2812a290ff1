"""The simulator: the scheduler that serves, with a cost model for the model.

`simulate(traffic, server) -> Outcome`; an Outcome has the records, metrics and RunResult of a measured run.
"""

from headrace.lab.sim.cost import CostModel, StepCost, StepShape
from headrace.lab.sim.outcome import Outcome
from headrace.lab.sim.server import FrontEnd, Server
from headrace.lab.sim.simulate import simulate
from headrace.lab.sim.traffic import Traffic, traffic_from_records, traffic_from_spec

__all__ = [
    "CostModel",
    "FrontEnd",
    "Outcome",
    "Server",
    "StepCost",
    "StepShape",
    "Traffic",
    "simulate",
    "traffic_from_records",
    "traffic_from_spec",
]
