"""The local content store killed at any moment, on full, read-only and failing disks."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from functools import partial
from pathlib import Path

import pytest
import structlog

from moored.kernel.conformance import fails_with
from moored.kernel.conformance.content import digest_of, get, pattern, put
from moored.kernel.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from moored.plugins.content.local.blobs import Blobs
from moored.plugins.content.local.store import LocalContentStore, open_store
from unit.content.opened import with_store
from unit.descriptors import descriptors

MODULES = str(Path(__file__).parents[2] / "contrib" / "dev")
LOAD = str(Path(__file__).with_name("content_load.py"))
KILLS = 60
SECONDS = 25.0
"""Of kills; fewer than KILLS are made on a slow machine."""
FEWEST = 10
MB = 1 << 20

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


# --- killed -----------------------------------------------------------------------------------------------------------


class Promises:
    """What the killed process had acknowledged: the blobs, and the bytes of each ref."""

    def __init__(self, output: bytes) -> None:
        self.blobs: set[str] = set()
        self.written: dict[str, int] = {}
        for line in output.decode().splitlines():
            word, _, rest = line.partition(" ")
            if word == "committed":
                self.blobs.add(rest)
            elif word == "deleted":
                self.blobs.discard(rest)
            elif word == "wrote":
                ref, _, offset = rest.rpartition(" ")
                self.written[ref] = int(offset)


def run_and_kill(root: Path, seed: int, pause: float) -> Promises:
    """Run the load on a store and kill it that many seconds after it has opened."""
    process = subprocess.Popen(
        [sys.executable, LOAD, str(root), str(seed)],
        env={**os.environ, "PYTHONPATH": MODULES},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            process.wait(pause)
        except subprocess.TimeoutExpired:
            process.kill()
    finally:
        process.kill()
        output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, "the load ended by itself"
    return Promises(output)


async def keeps(store: LocalContentStore, root: Path, promises: Promises) -> None:
    """Assert all promises after a restart, then empty the ingests."""
    blobs = {info.digest: info.size async for info in store.walk()}
    assert promises.blobs <= set(blobs)
    for digest in blobs:
        file = root / "blobs" / digest.replace(":", "/")
        assert f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" == digest
        assert file.stat().st_mode & 0o777 == 0o444
    statuses = await store.list_statuses()
    assert len(statuses) == len(list((root / "ingest").iterdir()))
    for status in statuses:
        assert status.offset >= promises.written.get(status.ref, 0)
        seed = status.ref.removeprefix("load/1/")
        data = pattern(status.total, seed) if status.total else b""
        async with await store.writer(status.ref) as writer:
            assert writer.digest == digest_of(data[: status.offset])
            await writer.write(data[status.offset :])
            if digest_of(data) in blobs:
                await fails_with(AlreadyExists, writer.commit(status.total))
                continue
            blobs[digest_of(data)] = (await writer.commit(status.total, digest_of(data))).size
    assert await store.list_statuses() == []
    for digest in blobs:
        await store.delete(digest)


@pytest.mark.timeout(180)
def test_killed_at_any_moment_it_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    root = tmp_path / "content"
    choose = random.Random(20260101)
    end = time.monotonic() + SECONDS
    made = 0
    while made < KILLS and (time.monotonic() < end or made < FEWEST):
        promises = run_and_kill(root, made, choose.uniform(0, 0.3))
        with_store(root, partial(keeps, root=root, promises=promises))
        made += 1
    assert made >= FEWEST


# --- disks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Generator[Path]:
    """An ext4 file system of 24 MB."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    image, where = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(24 * MB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True, capture_output=True)
    where.mkdir()
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(where)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


@root_only
@pytest.mark.root
def test_full_disk_keeps_the_ingest_and_lets_itself_be_freed(disk: Path) -> None:
    data = pattern(700_000)  # no divisor of the disk: the last write finds room for a part

    async def run(store: LocalContentStore) -> None:
        small = await put(store, b"small")
        writer = await store.writer("big")
        offset = 0
        while True:
            try:
                offset = await writer.write(data)
            except ResourceExhausted as error:
                text = error.text
                break
        assert "no space left" in text
        assert 10 * MB < offset < 24 * MB
        assert (await writer.status()).offset == offset
        assert writer.digest == digest_of(data * (offset // len(data)))
        (file,) = (disk / "content" / "ingest").glob("*/data")
        assert file.stat().st_size == offset
        while True:  # the last blocks too
            try:
                await writer.write(data[:4096])
            except ResourceExhausted:
                break
        await fails_with(ResourceExhausted, writer.write(data))
        await writer.close()

        assert await get(store, small) == b"small"
        assert (await store.status("big")).offset >= offset
        await fails_with(ResourceExhausted, _fill(store))
        await store.delete(small)
        async with await store.writer("big") as again:
            await again.truncate(offset - len(data))
            assert again.digest == digest_of(data * (offset // len(data) - 1))
            blob = (await again.commit()).digest
        await store.delete(blob)
        for status in await store.list_statuses():
            await store.abort(status.ref)
        assert await get(store, await put(store, data * 10)) == data * 10

    with_store(disk / "content", run)


async def _fill(store: LocalContentStore) -> None:
    """Begin ingests until there is no room for one more."""
    for number in range(10_000):
        async with await store.writer(f"fill {number}") as writer:
            await writer.write(b"x" * 4096)


@root_only
@pytest.mark.root
def test_begin_on_a_full_disk_leaves_nothing_and_frees_the_ref(disk: Path) -> None:
    async def run(store: LocalContentStore) -> None:
        (disk / "ballast").write_bytes(bytes(18 * MB))
        await fails_with(ResourceExhausted, _fill(store))
        refs = [status.ref for status in await store.list_statuses()]
        assert len(refs) == len(list((disk / "content" / "ingest").iterdir()))
        for ref in refs:
            await store.abort(ref)
        async with await store.writer(f"fill {len(refs)}") as writer:
            await writer.write(b"x")

    with_store(disk / "content", run)


@root_only
@pytest.mark.root
def test_read_only_disk_serves_reads_and_refuses_the_rest(disk: Path) -> None:
    root = disk / "content"
    digest = with_store(root, lambda store: put(store, b"data"))

    async def begin(store: LocalContentStore) -> None:
        async with await store.writer("begun") as writer:
            await writer.write(b"half")

    with_store(root, begin)

    async def run(store: LocalContentStore) -> None:
        assert await get(store, digest) == b"data"
        assert (await store.verify(digest)).size == 4
        assert (await store.status("begun")).offset == 4
        assert [info.digest async for info in store.walk()] == [digest]
        for call in (store.writer("begun"), store.writer("new"), store.delete(digest), store.abort("begun")):
            error = await fails_with(FailedPrecondition, call)
            assert "read-only file system" in error.text

    remount(disk, "ro")
    with_store(root, run)

    remount(disk, "rw")
    with_store(root, lambda store: store.abort("begun"))


@root_only
@pytest.mark.root
def test_disk_that_turns_read_only_frees_the_ref_of_an_open_writer(disk: Path) -> None:
    async def run(store: LocalContentStore) -> None:
        writer = await store.writer("ref")
        await writer.write(b"01234")
        await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,rw,sync", str(disk)], check=True)
        await store.delete(await put(store, b"other"))
        await writer.close()
        remount(disk, "ro")  # no file is open for writing
        await fails_with(FailedPrecondition, store.writer("ref"))
        remount(disk, "rw")
        async with await store.writer("ref") as again:
            assert (await again.status()).offset == 5

    with_store(disk / "content", run)


@root_only
@pytest.mark.root
def test_start_on_an_empty_read_only_disk_fails_with_the_reason(disk: Path) -> None:
    remount(disk, "ro")

    with pytest.raises(FailedPrecondition, match="read-only file system"):
        with_store(disk / "content", lambda store: store.list_statuses())


# --- failing calls ----------------------------------------------------------------------------------------------------

SCENE = """
import asyncio, os, sys
from pathlib import Path
import structlog
from moored.kernel.conformance.content import pattern
from moored.kernel.errors import MooredError
from moored.plugins.content.local.store import open_store

def say(*words):
    # not by write(2), of which some are made to fail
    os.writev(1, [" ".join(map(str, words)).encode() + b"\\n"])

async def main():
    async with open_store(Path(sys.argv[1]), structlog.get_logger(), 1) as store:
        for attempt in range(2):
            try:
                async with await store.writer("ref") as writer:
                    if (await writer.status()).offset == 0:
                        await writer.write(pattern(100_000))
                    info = await writer.commit(100_000)
                say(attempt, "committed", info.digest)
            except MooredError as error:
                say(attempt, type(error).__name__, error.text, len(os.listdir(sys.argv[1] + "/ingest")))
        say("left", [status.ref for status in await store.list_statuses()])
asyncio.run(main())
"""


@pytest.fixture
def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed")
    tried = subprocess.run([found, "-f", "-qq", "-e", "trace=none", "true"], capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"strace may not trace here: {tried.stderr.decode().strip()}")
    return found


RACE = """
import asyncio, sys
from pathlib import Path
import structlog
from moored.kernel.ports.content import Info
from moored.plugins.content.local.store import open_store

async def main():
    async with open_store(Path(sys.argv[1]), structlog.get_logger(), 4) as store:
        writers = [await store.writer(f"ref {number}") for number in range(2)]
        done = await asyncio.gather(*(writer.commit() for writer in writers), return_exceptions=True)
        print(sorted(type(one).__name__ for one in done))
asyncio.run(main())
"""


def play(strace: str, root: Path, inject: str, scene: str = SCENE) -> list[str]:
    """Run a scene on a store that exists, with a call made to fail; the lines that it prints."""
    with_store(root, lambda store: put(store, b"so that all folders are there"))
    # Python writes no log here, so the only lines are the scene's.
    command = [strace, "-f", "-qq", "-o", "/dev/null", "-e", f"inject={inject}", sys.executable, "-c", scene, str(root)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": MODULES}, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


DIGEST = digest_of(pattern(100_000))
# A start syncs each folder of blobs (only sha256 is there); then come data, blob folder, ingest folder.
STARTING = 1


@pytest.mark.parametrize("at", [1, 2, 3], ids=["data", "blob folder", "ingest folder"])
def test_failed_sync_of_a_commit_is_data_loss_and_begins_again(strace: str, tmp_path: Path, at: int) -> None:
    root = tmp_path / "content"

    lines = play(strace, root, f"fsync:error=EIO:when={STARTING + at}")

    assert lines[0].startswith("0 DataLoss ")
    assert lines[0].endswith("input/output error 0")
    assert lines[1:] == [f"1 committed {DIGEST}", "left []"]
    assert with_store(root, lambda store: store.verify(DIGEST)).size == 100_000


def test_failed_sync_of_the_data_leaves_no_blob(strace: str, tmp_path: Path) -> None:
    root = tmp_path / "content"

    lines = play(strace, root, f"fsync:error=EIO:when={STARTING + 1}+")

    assert lines[0].startswith("0 DataLoss ")
    assert lines[1].startswith("1 DataLoss ")
    assert lines[2] == "left []"
    with_store(root, lambda store: fails_with(NotFound, store.info(DIGEST)))


@pytest.mark.parametrize(
    ("error", "kind"),
    [("EIO", DataLoss), ("EROFS", FailedPrecondition), ("EACCES", PermissionDenied), ("EDQUOT", ResourceExhausted)],
)
def test_failed_write_has_its_class_and_the_ref_is_free(
    strace: str, tmp_path: Path, error: str, kind: type[Exception]
) -> None:
    lines = play(strace, tmp_path / "content", f"pwrite64:error={error}:when=1")

    text = os.strerror(getattr(errno, error)).lower()
    assert lines == [f"0 {kind.__name__} ingest ref 'ref': {text} 1", f"1 committed {DIGEST}", "left []"]


def test_slow_disk_lets_only_one_commit_of_a_digest_win(strace: str, tmp_path: Path) -> None:
    lines = play(strace, tmp_path / "content", "renameat:delay_enter=50000", RACE)

    assert lines == ["['AlreadyExists', 'Info']"]


@pytest.mark.parametrize("at", [1, 2, 3], ids=["ref", "startedat", "updatedat"])
def test_failed_begin_leaves_nothing_and_the_ref_is_free(strace: str, tmp_path: Path, at: int) -> None:
    lines = play(strace, tmp_path / "content", f"write:error=ENOSPC:when={at}")

    text = "no space left on device"
    assert lines == [f"0 ResourceExhausted ingest ref 'ref': {text} 0", f"1 committed {DIGEST}", "left []"]


def test_failed_rename_keeps_the_ingest(strace: str, tmp_path: Path) -> None:
    root = tmp_path / "content"

    lines = play(strace, root, "rename,renameat,renameat2:error=EIO:when=1")

    assert lines == [f"0 DataLoss content {DIGEST}: input/output error 1", f"1 committed {DIGEST}", "left []"]


@pytest.mark.parametrize(
    "call", ["mkdirat", "fchmod", "write", "renameat", "pwrite64", "utimensat", "fsync", "unlinkat"]
)
def test_killed_at_any_call_of_an_ingest_it_is_whole_or_absent(strace: str, tmp_path: Path, call: str) -> None:
    root = tmp_path / "content"
    with_store(root, lambda store: put(store, b"so that all folders are there"))
    inject = f"inject={call}:signal=SIGKILL:when="
    states = []
    for at in range(1, 30):
        command = [
            strace,
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            f"{inject}{at}",
            sys.executable,
            "-c",
            SCENE,
            str(root),
        ]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": MODULES}, capture_output=True, timeout=60, check=False
        )
        states.append(with_store(root, lambda store: _state(store, root)))
        if b"0 committed" in done.stdout:
            assert states[-1] == "blob"
            break
        assert done.returncode == -signal.SIGKILL
    assert len(states) > 1  # some kills came before the acknowledgement


async def _state(store: LocalContentStore, root: Path) -> str:
    """Which of its states the content is in, after which it is gone; what has no state fails."""
    statuses = await store.list_statuses()
    assert len(list((root / "ingest").iterdir())) == len(statuses)
    try:
        info = await store.verify(DIGEST)
    except NotFound:
        for status in statuses:
            async with await store.writer(status.ref) as writer:
                assert writer.digest == digest_of(pattern(100_000)[: status.offset])
            await store.abort(status.ref)
        return "ingest" if statuses else "absent"
    assert info.size == 100_000
    for status in statuses:
        await store.abort(status.ref)
    await store.delete(DIGEST)
    return "blob"


# --- leaks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False], ids=["memory", "disk"])
def test_calls_that_fail_or_are_cancelled_leak_no_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    data = pattern(300_000)
    if not cached:
        monkeypatch.setattr(Blobs, "open_cached", lambda *_: None)

    async def rounds(store: LocalContentStore, count: int) -> None:
        for number in range(count):
            task = asyncio.ensure_future(store.writer(f"ref {number}"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            reading = asyncio.ensure_future(store.reader(digest_of(data)))
            await asyncio.sleep(0)
            reading.cancel()
            (found,) = await asyncio.gather(reading, return_exceptions=True)
            if not isinstance(found, BaseException):
                await found.close()
            await fails_with(DataLoss, store.reader(digest_of(data), 1))
            async with await store.writer("ref") as writer:
                await writer.write(data)
                await fails_with(FailedPrecondition, writer.commit(1))
            await store.abort("ref")

    async def run() -> None:
        async with open_store(tmp_path / "content", structlog.get_logger(), 4) as store:
            await put(store, data)
            await rounds(store, 3)
            before = descriptors()
            await rounds(store, 30)
            assert descriptors() == before

    asyncio.run(run())
