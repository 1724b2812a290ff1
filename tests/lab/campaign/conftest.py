"""The world that campaign tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from campaign_world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "campaign mit Ümlaut")
