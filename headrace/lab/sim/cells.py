"""A plan's legal cells as servers that can be simulated."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import ConfigError
from headrace.lab.campaign.cells import cells
from headrace.lab.campaign.plan import Plan
from headrace.lab.sim.blocks import scheduler_config
from headrace.lab.sim.calibration import Calibration
from headrace.lab.sim.server import Server

# Where neither plan nor calibration knows the pool: preemption cannot be predicted, and a caveat says so.
_AMPLE_BLOCKS = 1 << 20


@dataclass(frozen=True, slots=True)
class SimulatedCell:
    """A cell's name, its server with the calibrated cost, and what that leans on."""

    name: str
    server: Server
    caveats: tuple[str, ...] = ()


def simulated_cells(plan: Plan, calibration: Calibration) -> list[SimulatedCell]:
    """Raises ConfigError when no cell is legal, or a setting that the scheduler needs is known nowhere."""
    found = []
    for cell in cells(plan):
        if not cell.legal:
            continue
        settings = {**calibration.settings, **cell.settings}
        blocks = cell.settings.get("num_gpu_blocks_override", calibration.settings.get("num_blocks"))
        caveats = () if blocks else ("the number of KV blocks is not known: taken as ample",)
        config = scheduler_config(settings, blocks or _AMPLE_BLOCKS)
        found.append(SimulatedCell(cell.name, calibration.fit.server(config), caveats))
    if not found:
        raise ConfigError(f"the plan {plan.name!r} has no legal cell")
    return found
