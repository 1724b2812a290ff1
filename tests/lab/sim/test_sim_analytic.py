"""A cost from datasheets: the simulator's form gives the roofline's own seconds back."""

from __future__ import annotations

import json
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest

from headrace.lab.sim.analytic import roofline_cost
from headrace.lab.sim.cost import StepShape
from headrace.sizing.architectures import describe
from headrace.sizing.roofline import step_work

FLOPS, BYTES = 312e12, 2.0e12


def test_the_form_gives_the_roofline_s_seconds_back(shared_data: Path) -> None:
    path = next(iter(sorted((shared_data / "model-configs").glob("*[qQ]wen2.5-72*/config.json"))), None)
    path = path or next(iter(sorted((shared_data / "model-configs").glob("*llama*/config.json"))))
    model = describe(json.loads(path.read_text()), str(path))
    work = partial(step_work, model, lambda module: 2 * module.inputs * module.outputs * module.copies, Fraction(2))
    cost = roofline_cost(work, flops_per_s=FLOPS, bytes_per_s=BYTES)
    for decodes, context in ((1, 500), (64, 500), (256, 1000)):
        shape = StepShape(decodes, 0, decodes, decodes * context, 0, decodes, decodes)
        seconds = work(decodes=decodes, context=context).seconds(FLOPS, BYTES)
        assert cost.seconds(shape) == pytest.approx(seconds, rel=0.05)
    prompt = work(prompt=2048).seconds(FLOPS, BYTES)
    assert cost.seconds(StepShape(2048, 2048, 0, 0, 2048**2, 1, 1)) == pytest.approx(prompt, rel=0.05)
