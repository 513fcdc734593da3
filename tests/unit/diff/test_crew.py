"""The crew of worker processes: how many there are at once, and what becomes of one that hangs."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from moored.kernel.conformance import fails_with
from moored.kernel.conformance.diff import Stage, bind
from moored.kernel.errors import DeadlineExceeded, Unavailable
from moored.kernel.ports.daemon import StreamProcessor
from moored.kernel.ports.diff import LAYER
from moored.kernel.ports.images import Descriptor
from moored.plugins.diff import walking, worker
from moored.plugins.diff.reports import LENGTH, MAX_REPORT, packed
from moored.plugins.diff.stored import digest_of
from moored.plugins.diff.walking import TINY
from moored.plugins.diff.worker import Crew
from unit.diff.world import END, as_root, children, done, file, names, staged, until
from unit.snapshots.world import image

pytestmark = as_root

LONG = b"".join(file(b"%d" % number, bytes(20_000)) for number in range(300)) + END
"""More than fits into the pipe."""
STALL = 0.4


@asynccontextmanager
async def crew_of(folder: Path, most: int, stall: float | None) -> AsyncGenerator[tuple[Stage, Crew]]:
    crew = Crew(most, stall)
    async with staged(folder, crew=crew) as stage:
        yield stage, crew


async def applying(stage: Stage, blob: Descriptor, root: Path) -> asyncio.Task[Descriptor]:
    """A running apply whose process was stopped once it had made a file."""
    before = set(children())
    call = asyncio.ensure_future(stage.differ.apply(blob, bind(root)))
    await until(lambda: bool(names(root)))
    (pid,) = set(children()) - before
    os.kill(pid, signal.SIGSTOP)
    return call


def test_processes_beyond_the_cap_wait_for_a_place(tmp_path: Path) -> None:
    async def go() -> None:
        async with crew_of(tmp_path, 2, None) as (stage, _):
            blob = await stage.put(LONG)
            held = [await applying(stage, blob, stage.new_folder(f"held{number}")) for number in range(2)]
            waiting = [
                asyncio.ensure_future(stage.differ.apply(blob, bind(stage.new_folder(f"wait{number}"))))
                for number in range(3)
            ]
            await asyncio.wait(waiting, timeout=0.3)
            assert len(children()) == 2
            assert not any(one.done() for one in waiting)

            waiting[0].cancel()
            held[0].cancel()
            await asyncio.wait([held[0], waiting[0]])
            applied = await asyncio.gather(*waiting[1:])
            held[1].cancel()
            await asyncio.wait([held[1]])

            assert {one.digest for one in applied} == {blob.digest}
            assert children() == []

    done(go())


def test_process_that_takes_nothing_is_killed(tmp_path: Path) -> None:
    async def go() -> None:
        async with crew_of(tmp_path, 1, STALL) as (stage, _):
            blob = await stage.put(LONG)

            error = await fails_with(DeadlineExceeded, await applying(stage, blob, stage.new_folder("root")))

            assert error.text == "the worker process took no data for 0.4s"
            assert children() == []
            await stage.differ.apply(blob, bind(stage.new_folder("again")))

    done(go())


def test_process_that_has_all_its_input_and_does_not_end_is_killed(tmp_path: Path) -> None:
    async def go() -> None:
        crew = Crew(1, STALL)
        task = {"root": str(tmp_path), "lowers": None, "userxattr": False, "devices": True, "sync": False}
        async with crew.worker("moored.plugins.diff.apply.process", {**task, "max_entries": 1, "max_bytes": 1}) as one:
            os.kill(one.pid, signal.SIGSTOP)
            one.end_input()
            error = await fails_with(DeadlineExceeded, one.result())
        assert error.text == "the worker process did not end within 0.4s"
        assert children() == []

    done(go())


@pytest.mark.parametrize("cancelled", [True, False], ids=["cancelled", "waited for"])
def test_stored_layer_that_cannot_be_hashed_in_time_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    hangs, reading = threading.Event(), threading.Event()

    def hung(fd: int, algorithm: str) -> str:
        reading.set()
        hangs.wait(20)
        return digest_of(fd, algorithm)

    async def go() -> None:
        async with crew_of(tmp_path, 1, STALL) as (stage, _):
            blob = await stage.put(file(b"f", bytes(TINY)) + END)
            with monkeypatch.context() as patched:
                patched.setattr(walking, "digest_of", hung)
                call = asyncio.ensure_future(stage.differ.apply(blob, bind(stage.new_folder("root"))))
                if cancelled:
                    await until(reading.is_set)
                    call.cancel()
                    await asyncio.wait([call], timeout=5)
                    assert call.cancelled()
                else:
                    error = await fails_with(DeadlineExceeded, call)
                    assert error.text == "no data of the layer came for 0.4s"
            assert children() == []
            hangs.set()
            await stage.differ.apply(blob, bind(stage.new_folder("again")))

    done(go())


def test_process_that_gives_nothing_is_killed(tmp_path: Path) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    lower.mkdir()
    upper.mkdir()
    for number in range(500):
        (upper / f"{number}").write_bytes(os.urandom(20_000))

    async def go() -> None:
        async with Crew(1, STALL).worker(
            "moored.plugins.diff.compare.process",
            {"lower": str(lower), "upper": str(upper), "shortcut": None, "latest": None},
            output=True,
        ) as one:
            os.kill(one.pid, signal.SIGSTOP)
            error = await fails_with(DeadlineExceeded, one.run(lambda: [one.read(1) for _ in range(1 << 20)]))
        assert error.text == "the worker process gave no data for 0.4s"

    done(go())


def test_program_that_gives_nothing_is_killed(tmp_path: Path) -> None:
    hung = tmp_path / "hung"
    hung.write_text("#!/bin/sh\nexec sleep 1000\n")
    hung.chmod(0o700)
    program = StreamProcessor(id="hung", accepts=(f"{LAYER}+odd",), returns=LAYER, path=str(hung))

    async def go() -> None:
        async with staged(tmp_path, crew=Crew(1, STALL), processors=[program]) as stage:
            blob = await stage.put(LONG, f"{LAYER}+odd")
            error = await fails_with(DeadlineExceeded, stage.differ.apply(blob, bind(stage.new_folder("root"))))
            assert error.text == "no data of the layer came for 0.4s"
            assert children() == []

    done(go())


def test_process_on_a_disk_that_hangs_holds_its_place_until_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "REAP_SECONDS", 0.3)

    async def go(disk: Path) -> None:
        async with crew_of(tmp_path, 1, STALL) as (stage, _):
            blob = await stage.put(LONG)
            good = stage.new_folder("good")
            await asyncio.to_thread(subprocess.run, ["fsfreeze", "-f", str(disk)], check=True)
            try:
                await fails_with(DeadlineExceeded, stage.differ.apply(blob, bind(disk)))
                (pid,) = children()
                error = await fails_with(Unavailable, stage.differ.apply(blob, bind(good)))
                assert error.text == "1 worker processes hang and cannot be killed, no further one is started"
                assert names(good) == []
            finally:
                await asyncio.to_thread(subprocess.run, ["fsfreeze", "-u", str(disk)], check=True)
            await until(lambda: pid not in children())
            await until(lambda: len(asyncio.all_tasks()) == 1)
            await stage.differ.apply(blob, bind(good))

    with image(tmp_path / "image", 32 << 20, "mkfs.ext4", "-q", place=tmp_path / "disk") as disk:
        done(go(disk))


def test_report_that_is_too_long_is_none_and_its_sender_goes_on_in_vain() -> None:
    async def go() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            report = worker.message_of(ours)
            with pytest.raises(BrokenPipeError):
                await asyncio.to_thread(theirs.sendall, LENGTH.pack(MAX_REPORT * 2) + bytes(MAX_REPORT * 2))
            assert await report == b""

    done(go())


@pytest.mark.parametrize("cut", [0, 3, 4, 9])
def test_report_that_is_cut_is_none(cut: int) -> None:
    async def go() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            report = worker.message_of(ours)
            theirs.sendall(packed({"entries": 1})[:cut])
            theirs.close()
            assert await report == b""

    done(go())


PARENT = """
import asyncio, sys
from moored.plugins.diff.worker import Crew

async def main():
    task = {"root": sys.argv[1], "lowers": None, "userxattr": False, "devices": True, "sync": False}
    async with Crew().worker("moored.plugins.diff.apply.process", {**task, "max_entries": 1, "max_bytes": 1}) as one:
        print(one.pid, flush=True)
        await asyncio.sleep(1000)

asyncio.run(main())
"""


def test_process_is_killed_with_its_daemon_though_its_input_stays_open(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        # As a helper of the daemon might, hold what the process reads from.
        feed = os.pidfd_open(pid)
        held = os.open(f"/proc/{pid}/fd/0", os.O_WRONLY)
        try:
            parent.kill()
            assert select.select([feed], [], [], 10)[0], "the process lives on"
        finally:
            os.close(held)
            os.close(feed)
