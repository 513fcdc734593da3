"""Copies of the metadata of a daemon that is written to, and of a stopped one's; and a second daemon on such a copy."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from daemons import Daemon
from fault.test_hostile_calls import OK, Client
from moored.api.services.images.v1 import images_pb2
from moored.api.services.leases.v1 import leases_pb2
from moored.api.services.snapshots.v1 import snapshots_pb2

WRITERS = 4
BACKUPS = 3
ROOTED = {"containerd.io/gc.root": "x"}
HOME = "io.moored.database.v1.lmdb"


def moored(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(daemon.command("metadata", *words), capture_output=True, text=True, check=False)


def moorctl(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moored.api.cli.main", "--address", str(daemon.socket), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@dataclass
class Load:
    """Writers that go on until told; what was acknowledged, in the order of its end."""

    made: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    leases: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    failures: list[object] = field(default_factory=list)

    def write(self, daemon: Daemon, writer: int) -> None:
        """Images, of which each third goes again; leases; snapshots, of which each second goes again."""
        with daemon.channel() as channel:
            client = Client(channel, "ns")
            number = 0
            while not self.ended.is_set():
                name = f"{writer}-{number}"
                self._want(client.image(name))
                self.made.append(name)
                if number % 3 == 0:
                    self._want(client.fails(client.images.Delete, images_pb2.DeleteImageRequest(name=name)))
                    self.removed.append(name)
                self._want(client.fails(client.leases.Create, leases_pb2.CreateRequest(id=name)))
                self.leases.append(name)
                prepare = snapshots_pb2.PrepareSnapshotRequest(snapshotter="native", key=name, labels=ROOTED)
                self._want(client.fails(client.snapshots.Prepare, prepare))
                commit = snapshots_pb2.CommitSnapshotRequest(
                    snapshotter="native", key=name, name=f"c-{name}", labels=ROOTED
                )
                self._want(client.fails(client.snapshots.Commit, commit))
                if number % 2:
                    remove = snapshots_pb2.RemoveSnapshotRequest(snapshotter="native", key=f"c-{name}")
                    self._want(client.fails(client.snapshots.Remove, remove))
                number += 1

    def _want(self, answer: object) -> None:
        if answer != OK:
            self.failures.append(answer)

    @contextmanager
    def running(self, daemon: Daemon) -> Iterator[None]:
        threads = [threading.Thread(target=self.write, args=(daemon, writer)) for writer in range(WRITERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.ended.set()
            for thread in threads:
                thread.join()


def images_of(client: Client) -> set[str]:
    return {image.name for image in client.ask(client.images.List, images_pb2.ListImagesRequest()).images}


def unreadable(client: Client) -> list[object]:
    """The snapshots with a record whose snapshotter does not know them."""
    listed = client.ask(client.snapshots.List, snapshots_pb2.ListSnapshotsRequest(snapshotter="native"))
    names = [info.name for part in listed for info in part.info]
    stat_of = [snapshots_pb2.StatSnapshotRequest(snapshotter="native", key=name) for name in names]
    answers = [client.fails(client.snapshots.Stat, request) for request in stat_of]
    return [answer for answer in answers if answer != OK]


@pytest.mark.timeout(180)
def test_copy_of_a_daemon_under_load_has_all_that_was_acknowledged_before(tmp_path: Path) -> None:
    load, before = Load(), list[tuple[set[str], set[str], set[str]]]()
    (tmp_path / "first").mkdir()
    with Daemon(tmp_path / "first") as first, load.running(first):
        for number in range(BACKUPS):
            enough = (number + 1) * 20
            while len(load.made) < enough and not load.failures:
                load.ended.wait(0.01)
            before.append((set(load.made), set(load.removed), set(load.leases)))
            done = moorctl(first, "metadata", "backup", str(tmp_path / f"copy-{number}"))
            assert done.returncode == 0, done.stderr

    assert load.failures == []
    for number, (made, removed, held) in enumerate(before):
        (tmp_path / f"second-{number}").mkdir()
        second = Daemon(tmp_path / f"second-{number}")
        restored = moored(second, "restore", str(tmp_path / f"copy-{number}"))
        assert restored.returncode == 0, restored.stderr
        with second, second.channel() as channel:
            client = Client(channel, "ns")
            there = images_of(client)
            leases = {lease.id for lease in client.ask(client.leases.List, leases_pb2.ListRequest()).leases}
            assert made - set(load.removed) <= there
            assert not removed & there
            assert held <= leases
            assert unreadable(client) == []
            assert client.image("new") == OK
        assert "Traceback" not in second.text()


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    """One that was stopped, with an image."""
    (tmp_path / "d").mkdir()
    made = Daemon(tmp_path / "d")
    with made, made.channel() as channel:
        assert Client(channel, "ns").image("kept") == OK
    made.log.unlink()  # by which the next start is told to be up
    return made


def test_backup_is_private_whole_and_never_over_another_file(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "copies" / "copy"
    file.parent.mkdir()
    with daemon:
        first = moored(daemon, "backup", str(file))
        written = file.read_bytes()
        second = moored(daemon, "backup", str(file))
        told = moorctl(daemon, "--json", "metadata", "backup", str(file.with_name("other")))

    assert (first.returncode, first.stderr) == (0, "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert second.returncode == 1
    assert "is there already" in second.stderr
    assert file.read_bytes() == written
    assert json.loads(told.stdout) == {"file": str(file.with_name("other")), "size": len(written)}
    assert sorted(path.name for path in file.parent.iterdir()) == ["copy", "other"]


def test_backup_that_fails_leaves_nothing(daemon: Daemon, tmp_path: Path) -> None:
    away = moorctl(daemon, "metadata", "backup", str(tmp_path / "copy"))
    nowhere = moored(daemon, "backup", str(tmp_path / "no" / "copy"))

    assert away.returncode == nowhere.returncode == 1
    assert "is the daemon running?" in away.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_metadata_of_a_stopped_daemon_goes_over_and_back(daemon: Daemon, tmp_path: Path) -> None:
    copied = moored(daemon, "backup", str(tmp_path / "copy"))
    occupied = moored(daemon, "restore", str(tmp_path / "copy"))
    (daemon.root / HOME).rename(tmp_path / HOME)

    restored = moored(daemon, "restore", str(tmp_path / "copy"))

    assert (copied.returncode, restored.returncode) == (0, 0), copied.stderr + restored.stderr
    assert f"{daemon.root / HOME} -> {tmp_path / 'copy'}" in copied.stdout
    assert occupied.returncode == 1
    assert "move it away first" in occupied.stderr
    with daemon, daemon.channel() as channel:
        assert images_of(Client(channel, "ns")) == {"kept"}


def test_restore_refuses_a_running_daemon_and_damaged_files(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    assert moored(daemon, "backup", str(file)).returncode == 0
    with daemon:
        running = moored(daemon, "restore", str(file))
    (tmp_path / "e").mkdir()
    other = Daemon(tmp_path / "e")
    whole = file.read_bytes()
    for damaged in (b"", b"x" * 5000, whole[: len(whole) // 2], whole[:3000] + b"\xff" + whole[3001:]):
        file.write_bytes(damaged)
        refused = moored(other, "restore", str(file))

        assert refused.returncode == 1
        assert str(file) in refused.stderr
        assert "Traceback" not in refused.stderr
        assert not (other.root / HOME).exists()
    assert running.returncode == 1
    assert "in use by the daemon" in running.stderr
