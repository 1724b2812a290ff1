"""Hypothesis profiles: `HEADRACE_HYPOTHESIS=nightly pytest tests/properties` runs 2,000 examples per property."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile(
    "default", max_examples=30, stateful_step_count=30, deadline=None, derandomize=True, suppress_health_check=_QUIET
)
settings.register_profile(
    "nightly", max_examples=2000, stateful_step_count=60, deadline=None, print_blob=True, suppress_health_check=_QUIET
)
settings.load_profile(os.environ.get("HEADRACE_HYPOTHESIS", "default"))
