"""The shim manager and the task runtime as plugins: their settings, their folders, what they tell of themselves."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from harness import on_loop, plug, running, shipped
from moored.kernel.config import fields_of
from moored.kernel.ports.daemon import Outcome
from moored.kernel.ports.shims import SHIMS

EVENTS = "io.containerd.event.v1.exchange"
MANAGER = "io.containerd.shim.v1.manager"
TASK = "io.containerd.runtime.v2.task"


@pytest.fixture
def folder() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="mb") as path:
        yield Path(path)


def test_both_start_and_say_what_they_are(folder: Path) -> None:
    @on_loop
    async def main() -> None:
        async with running(folder, EVENTS, MANAGER, TASK) as world:
            record = world.record(TASK)
            assert (record.outcome, world.record(MANAGER).outcome) == (Outcome.OK, Outcome.OK)
            assert record.platforms[0].startswith("linux/")
            for top in ("root", "state"):
                assert oct((folder / top / TASK).stat().st_mode & 0o7777) == "0o711"

    main()


def test_task_runtime_wants_our_manager(folder: Path) -> None:
    @on_loop
    async def main() -> None:
        async with running(folder, EVENTS, plug(SHIMS, "manager", object()), TASK) as world:
            record = world.record(TASK)
            assert record.outcome is Outcome.FAILED
            assert "shim manager is a 'object'" in record.reason

    main()


@pytest.mark.parametrize("uri", [MANAGER, TASK])
def test_every_setting_is_documented(uri: str) -> None:
    config = shipped(uri).config
    assert config is not None
    assert [one.name for one in fields_of(config) if not one.bounds.doc] == []
    assert shipped(uri).summary


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"socket_dir": "relative"}, "wanted an absolute path"),
        ({"socket_dir": "/" + "x" * 42}, "at most 42 characters"),
        ({"env": ["NOTHING"]}, "wanted NAME=VALUE"),
    ],
)
def test_bad_setting_of_the_manager_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        shipped(MANAGER).config(**settings)  # type: ignore[misc]


def test_longest_socket_dir_is_taken() -> None:
    config = shipped(MANAGER).config
    assert config is not None
    assert config(socket_dir="/" + "x" * 41).socket_dir == "/" + "x" * 41
