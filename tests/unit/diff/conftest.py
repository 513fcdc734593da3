"""What is not of a test of this folder does not count as its children."""

from __future__ import annotations

import pytest

from unit.diff import world


@pytest.fixture(autouse=True)
def _strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what other tests have running."""
    monkeypatch.setattr(world, "strangers", frozenset(world.all_children()))
