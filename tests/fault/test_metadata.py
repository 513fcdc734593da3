"""What the metadata store keeps when its process is killed, its disk fails or is full."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import selectors
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lmdb
import pytest

from moored.kernel.conformance import fails_with, refuses
from moored.kernel.errors import ResourceExhausted, Unavailable
from moored.kernel.ports.metadata import Bucket
from moored.plugins.metadata.lmdb.database import LmdbDatabase

ROOT = Path(__file__).resolve().parents[2]
WRITERS = 4
ROUNDS = 40
SECONDS = 20.0
KEPT = 5
LONG = b"n" * 1200

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="no strace to make system calls fail")


def start(role: str, folder: Path, *wrapper: str) -> subprocess.Popen[bytes]:
    """Run a role of this file in a process of its own."""
    paths = os.pathsep.join([str(ROOT / "contrib" / "dev"), str(ROOT / "tests")])
    command = [*wrapper, sys.executable, __file__, role, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths})


def changed(root: Bucket, writer: int) -> int:
    """Add entry n in three places and remove entry n - KEPT from them; give n."""
    bucket = root.create_bucket_if_missing(b"v1").create_bucket_if_missing(b"w%d" % writer)
    number = bucket.next_sequence()
    name = LONG + b"%010d" % number
    bucket.create_bucket(name).put(b"value", os.urandom(1) * (number % 5000))
    bucket.create_bucket_if_missing(b"index").put(b"%010d" % number, name)
    bucket.create_bucket_if_missing(b"other").put(name, b"")
    if number > KEPT:
        old = LONG + b"%010d" % (number - KEPT)
        bucket.delete_bucket(old)
        index, other = bucket.bucket(b"index"), bucket.bucket(b"other")
        assert index is not None
        assert other is not None
        index.delete(b"%010d" % (number - KEPT))
        other.delete(old)
    return number


def check_writer(root: Bucket, writer: int, acknowledged: int) -> None:
    """All that was acknowledged is there, at most one more, and the three places agree."""
    top = root.bucket(b"v1")
    bucket = top.bucket(b"w%d" % writer) if top is not None else None
    if bucket is None:
        assert acknowledged == 0
        return
    last = bucket.sequence()
    assert acknowledged <= last <= acknowledged + 1, f"writer {writer}: {acknowledged} acknowledged, {last} stored"
    names = [LONG + b"%010d" % number for number in range(max(1, last - KEPT + 1), last + 1)]
    index, other = bucket.bucket(b"index"), bucket.bucket(b"other")
    assert index is not None
    assert other is not None
    assert [name for name, _ in bucket.items(LONG)] == names
    assert [name for _, name in index.items()] == names
    assert [name for name, _ in other.items()] == names
    for name in names:
        below = bucket.bucket(name)
        value = below.get(b"value") if below is not None else None
        assert value is not None
        assert len(value) == int(name[-10:]) % 5000
        assert value == value[:1] * len(value)


async def write_until_killed(folder: Path) -> None:
    """Acknowledge `writer number` by lines on standard output."""
    db = LmdbDatabase.opened(folder, limit=64 << 20)

    async def write(writer: int) -> None:
        while True:
            number = await db.update(lambda root: changed(root, writer))
            os.write(1, b"%d %d\n" % (writer, number))

    await asyncio.gather(*(write(writer) for writer in range(WRITERS)))


def killed_after(process: subprocess.Popen[bytes], lines: int) -> list[bytes]:
    """Read about so many acknowledgements, kill, and give all that were made."""
    assert process.stdout is not None
    data = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while data.count(b"\n") < lines:
            assert selector.select(30), "the writer process makes no progress"
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            assert chunk, "the writer process ended by itself"
            data += chunk
    process.kill()
    data += process.stdout.read()
    assert process.wait() == -signal.SIGKILL
    return data.splitlines()


def left_behind(folder: Path) -> list[bytes]:
    """Give the keys of all records."""
    with lmdb.open(str(folder / "environment"), readonly=True, lock=False) as env, env.begin() as txn:
        return [key for key, _ in txn.cursor()]


async def emptied(folder: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        db = LmdbDatabase.opened(folder, limit=64 << 20)
        stack.push_async_callback(db.close)
        await db.update(lambda root: root.delete_bucket(b"v1"))


def test_nothing_acknowledged_is_lost_by_kill(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    seeded = random.Random(1)
    acknowledged = dict.fromkeys(range(WRITERS), 0)
    until = time.monotonic() + SECONDS
    rounds = 0
    while rounds < ROUNDS and time.monotonic() < until:
        with start("write", folder) as process:
            for line in killed_after(process, seeded.choice([1, 5, 50, 300, seeded.randrange(1, 1000)])):
                writer, number = map(int, line.split())
                assert number == acknowledged[writer] + 1
                acknowledged[writer] = number
        db = LmdbDatabase.opened(folder, limit=64 << 20)
        with db.view() as root:
            for writer, number in acknowledged.items():
                check_writer(root, writer, number)
                bucket = root.bucket(b"v1")
                below = bucket.bucket(b"w%d" % writer) if bucket is not None else None
                acknowledged[writer] = below.sequence() if below is not None else 0
        asyncio.run(db.close())
        rounds += 1
    assert rounds >= 10
    asyncio.run(emptied(folder))
    assert left_behind(folder) == [bytes(8) + b"format", bytes(8) + b"next"], "all records belong to the tree"


async def fail_stop(folder: Path) -> None:
    """Meet an input or output error in a commit; then everything is refused with that error in the text."""
    db = LmdbDatabase.opened(folder, limit=64 << 20)
    first = await fails_with(Unavailable, db.update(lambda root: root.create_bucket(b"lost")))
    assert "Input/output error" in first.text, first.text
    again = await fails_with(Unavailable, db.update(lambda root: root.create_bucket(b"later")))
    assert "Input/output error" in again.text, again.text
    refuses(Unavailable, lambda: db.view().__enter__(), again.text)
    await fails_with(Unavailable, db.backup(folder.parent / "copy"), again.text)
    assert "Input/output error" in (db.stats().failed or "")
    await db.close()


@needs_strace
@pytest.mark.parametrize("calls", ["fdatasync", "pwrite64", "pwrite64,pwritev,writev"], ids=["sync", "meta", "data"])
def test_store_stops_at_an_input_output_error(calls: str, tmp_path: Path) -> None:
    folder = tmp_path / "db"
    asyncio.run(prepared(folder))
    data = folder / "environment" / "data.mdb"
    trace = ["strace", "-f", "-qq", "-o", str(tmp_path / "trace"), "-P", str(data), "-e", f"trace={calls}"]
    with start("fail-stop", folder, *trace, "-e", f"inject={calls}:error=EIO") as process:
        process.communicate(timeout=60)
    assert process.returncode == 0
    db = LmdbDatabase.opened(folder, limit=64 << 20)
    with db.view() as root:
        assert [name for name, _ in root.items()] == [b"kept"]
    asyncio.run(db.close())


async def prepared(folder: Path) -> None:
    db = LmdbDatabase.opened(folder, limit=64 << 20)
    await db.update(lambda root: root.create_bucket(b"kept"))
    await db.close()


async def fill_the_disk(folder: Path) -> None:
    """Put until there is no room, delete, and put again; the file system holds less than the store may have more."""
    db = LmdbDatabase.opened(folder, limit=64 << 20)
    await db.update(lambda root: root.create_bucket(b"b"))

    def put(root: Bucket, number: int) -> None:
        bucket = root.bucket(b"b")
        assert bucket is not None
        bucket.put(b"%05d" % number, bytes(10_000))

    def delete(root: Bucket, number: int) -> None:
        bucket = root.bucket(b"b")
        assert bucket is not None
        bucket.delete(b"%05d" % number)

    stored = 0
    with contextlib.suppress(ResourceExhausted):
        for stored in range(5000):
            await db.update(lambda root, number=stored: put(root, number))  # type: ignore[misc]
    assert 100 < stored < 2000, stored
    assert db.stats().full
    assert db.stats().failed is None
    with contextlib.suppress(OSError), (folder.parent / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))
    await fails_with(ResourceExhausted, db.update(lambda root: put(root, 9999)))
    await db.close()
    db = LmdbDatabase.opened(folder, limit=64 << 20, create=False)
    for number in range(stored):
        await db.update(lambda root, number=number: delete(root, number))  # type: ignore[misc]
        with db.view() as root:
            bucket = root.bucket(b"b")
            assert bucket is not None
            assert bucket.cursor().first() in ((b"%05d" % (number + 1), bytes(10_000)), None)
    (folder.parent / "ballast").unlink()
    await db.update(lambda root: put(root, 0))
    await db.close()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_full_disk_leaves_deletes_working(kind: str, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    if kind == "tmpfs":
        mounting = f"mount -t tmpfs -o size=12m none {mount}"
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(24 << 20)
        mounting = f"mkfs.ext4 -q -m 0 {image} && mount -o loop {image} {mount}"
    # The mount lives in a namespace of its own and goes with it.
    script = f'{mounting} && exec "$@"'
    with start("full-disk", mount / "db", "unshare", "-m", "sh", "-ec", script, "sh") as process:
        process.communicate(timeout=100)
    assert process.returncode == 0


ROLES = {"write": write_until_killed, "fail-stop": fail_stop, "full-disk": fill_the_disk}

if __name__ == "__main__":
    asyncio.run(ROLES[sys.argv[1]](Path(sys.argv[2])))
