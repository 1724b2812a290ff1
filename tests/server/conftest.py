"""Fixtures of the server's tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose step takes a millisecond."""
    from real_engine import MODEL, write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / MODEL)
