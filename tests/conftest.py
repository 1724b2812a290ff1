"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Public logs, traces, conversations, tokenizers and model configurations: a folder `shared/data` beside the checkout,
# or the one that HEADRACE_TEST_DATA names.  They are not part of the repository; most have licences of their own.
REAL_DATA = Path(os.environ.get("HEADRACE_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory with real inputs; a test that needs it skips where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip("real test data not present (set HEADRACE_TEST_DATA to its folder)")
    return REAL_DATA


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a function or class by its name: pytest's own choice has an address in it, another in every worker."""
    return getattr(val, "__qualname__", None) if callable(val) else None
