"""Where the bytes of a write go into the page cache: on the event loop while that takes no time, else on a thread."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from moored.kernel.conformance.content import digest_of
from moored.kernel.ports.content import Chunk
from moored.plugins.content.local import writer
from moored.plugins.content.local.ingest import Ingest
from moored.plugins.content.local.store import LocalContentStore
from unit.content.opened import with_store


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The thread of each write so far."""
    found: list[str] = []
    put = Ingest.put

    def noted(self: Ingest, data: Chunk) -> None:
        found.append("loop" if threading.current_thread() is threading.main_thread() else "thread")
        put(self, data)

    monkeypatch.setattr(Ingest, "put", noted)
    return found


def written(root: Path, *sizes: int) -> None:
    """Write pieces of such sizes and commit them."""

    async def use(store: LocalContentStore) -> None:
        async with await store.writer("ref") as one:
            for size in sizes:
                await one.write(bytes(size))
            info = await one.commit()
        assert info.digest == digest_of(bytes(sum(sizes)))

    with_store(root, use)


def test_small_pieces_stay_on_the_loop_and_large_ones_leave_it(tmp_path: Path, threads: list[str]) -> None:
    written(tmp_path / "content", 1, writer.AT_ONCE, writer.AT_ONCE + 1, writer.OVERLAP)

    assert threads == ["loop", "loop", "thread", "thread"]


def test_a_disk_that_makes_writers_wait_is_left_to_the_threads(
    tmp_path: Path, threads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SLOW_SECONDS", -1.0)  # as if every write had taken longer

    written(tmp_path / "content", 1, 1, 1)

    assert threads == ["loop", "thread", "thread"]


def test_a_slow_disk_gets_another_chance(tmp_path: Path, threads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SLOW_SECONDS", -1.0)
    monkeypatch.setattr(writer, "SLOW_PAUSE_SECONDS", 0.0)

    written(tmp_path / "content", 1, 1)

    assert threads == ["loop", "loop"]
