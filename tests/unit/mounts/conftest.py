"""A failing test of mounts leaves none for the next."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from moored.kernel import mounts


@pytest.fixture(autouse=True)
def _tidy(tmp_path: Path) -> Generator[None]:
    yield
    mounts.unmount_all(tmp_path, lazy=True)
