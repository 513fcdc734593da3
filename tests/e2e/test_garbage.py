"""Snapshots and garbage collection in a real daemon, driven by real clients."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from daemons import Daemon
from moored.api.services.content.v1 import content_pb2, content_pb2_grpc
from moored.api.services.leases.v1 import leases_pb2, leases_pb2_grpc
from moored.api.services.namespaces.v1 import namespace_pb2, namespace_pb2_grpc
from moored.api.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc

CTRS = [path for path in [shutil.which("ctr"), *os.environ.get("MOORED_TEST_CTRS", "").split(os.pathsep)] if path]
ctr_of_any_age = pytest.mark.parametrize("ctr", CTRS or [pytest.param("ctr", marks=pytest.mark.skip("needs ctr"))])
SOON = 5.0
"""Seconds in which garbage is gone."""
NS = (("containerd-namespace", "t"),)

pytestmark = [pytest.mark.root, pytest.mark.peer]


@pytest.fixture(name="daemon")
def _daemon(tmp_path: Path) -> Generator[Daemon]:
    with Daemon(tmp_path) as daemon:
        yield daemon


def ctr_of(daemon: Daemon, ctr: str) -> Callable[..., tuple[int, str]]:
    def run(*arguments: str) -> tuple[int, str]:
        command = [ctr, "-a", str(daemon.socket), "-n", "t", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


def snapshots_of(daemon: Daemon, ctr: str) -> Callable[..., tuple[int, str]]:
    run = ctr_of(daemon, ctr)
    return lambda *arguments: run("snapshots", "--snapshotter", "native", *arguments)


def rows(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines()[1:]]


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def folders(daemon: Daemon) -> list[str]:
    return sorted(path.name for path in (native(daemon) / "snapshots").iterdir())


def native(daemon: Daemon) -> Path:
    return daemon.root / "io.containerd.snapshotter.v1.native"


@ctr_of_any_age
def test_ctr_works_on_snapshots(daemon: Daemon, ctr: str) -> None:
    run = snapshots_of(daemon, ctr)
    assert run("prepare", "work") == (0, "")
    status, output = run("mounts", "/mnt", "work")
    assert (status, output.split()[:3]) == (0, ["mount", "-t", "bind"]), output
    assert rows(run("ls")[1]) == [["work", "Active"]]
    (native(daemon) / "snapshots" / folders(daemon)[0] / "file").write_bytes(b"x" * 8192)
    assert rows(run("usage")[1]) == [["work", "12.0", "KiB", "2"]]
    assert run("commit", "base", "work") == (0, "")
    assert run("prepare", "top", "base") == (0, "")
    assert run("tree")[1].split() == ["base", "\\_", "top"]
    assert run("label", "base", "a=b")[0] == 0
    assert '"a": "b"' in run("info", "base")[1]
    for arguments, text in (
        (("rm", "base"), 'failed to remove "base": cannot remove snapshot with child: failed precondition'),
        (("prepare", "top"), 'snapshot "top": already exists'),
        (("prepare", "x", "nope"), "parent snapshot nope does not exist: not found"),
        (("commit", "x", "nope"), "snapshot nope does not exist: not found"),
        (("mounts", "/mnt", "nope"), "snapshot nope does not exist: not found"),
    ):
        status, output = run(*arguments)
        assert (status, output.strip().removeprefix("ctr: ")) == (1, text), arguments
    status, output = ctr_of(daemon, ctr)("snapshots", "--snapshotter", "nope", "ls")
    assert (status, output.strip()) == (1, "ctr: snapshotter not loaded: nope: invalid argument")
    assert run("rm", "top", "base")[0] == 0
    assert rows(run("ls")[1]) == []
    until(lambda: folders(daemon) == [], "the files of removed snapshots are still there")


@ctr_of_any_age
def test_views_go_and_what_is_rooted_stays(daemon: Daemon, ctr: str) -> None:
    run = snapshots_of(daemon, ctr)
    assert run("prepare", "a") == (0, "")
    assert run("commit", "base", "a") == (0, "")
    assert run("view", "look", "base") == (0, "")
    assert run("prepare", "b", "base") == (0, "")
    assert run("rm", "b") == (0, "")  # a deletion is what makes a collection due
    until(lambda: rows(run("ls")[1]) == [["base", "Committed"]], "the view is still there")
    assert run("label", "base", "containerd.io/gc.root=")[0] == 0
    assert run("prepare", "b") == (0, "")
    assert run("rm", "b") == (0, "")
    until(lambda: rows(run("ls")[1]) == [], "what nothing refers to is still there")


def test_expired_lease_goes_in_an_idle_daemon(daemon: Daemon) -> None:
    with daemon.channel() as channel:
        leases, snapshots = leases_pb2_grpc.LeasesStub(channel), snapshots_pb2_grpc.SnapshotsStub(channel)
        expiry = (datetime.now(UTC) + timedelta(seconds=4)).isoformat(timespec="milliseconds")
        leases.Create(
            leases_pb2.CreateRequest(id="l", labels={"containerd.io/gc.expire": expiry}), metadata=NS, timeout=10
        )
        held = (*NS, ("containerd-lease", "l"))
        snapshots.Prepare(
            snapshots_pb2.PrepareSnapshotRequest(snapshotter="native", key="k"), metadata=held, timeout=10
        )
        snapshots.Prepare(
            snapshots_pb2.PrepareSnapshotRequest(snapshotter="native", key="gone"), metadata=NS, timeout=10
        )
        snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter="native", key="gone"), metadata=NS, timeout=10)
        until(lambda: len(folders(daemon)) == 1, "the files of a removed snapshot are still there")
        assert datetime.now(UTC).isoformat(timespec="milliseconds") < expiry
        until(lambda: folders(daemon) == [], "what an expired lease held is still there")
        assert not leases.List(leases_pb2.ListRequest(), metadata=NS, timeout=10).leases


def test_lease_deleted_synchronously_has_freed_the_disk(daemon: Daemon) -> None:
    with daemon.channel() as channel:
        leases, snapshots = leases_pb2_grpc.LeasesStub(channel), snapshots_pb2_grpc.SnapshotsStub(channel)
        leases.Create(leases_pb2.CreateRequest(id="l"), metadata=NS, timeout=10)
        held = (*NS, ("containerd-lease", "l"))
        snapshots.Prepare(
            snapshots_pb2.PrepareSnapshotRequest(snapshotter="native", key="k"), metadata=held, timeout=10
        )
        leases.Delete(leases_pb2.DeleteRequest(id="l", sync=True), metadata=NS, timeout=10)
        assert folders(daemon) == []


def test_what_a_crash_left_goes_after_the_start(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    with daemon, daemon.channel() as channel:
        key = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter="native", key="k", labels={"containerd.io/gc.root": "kept"}
        )
        snapshots_pb2_grpc.SnapshotsStub(channel).Prepare(key, metadata=NS, timeout=10)
    kept = folders(daemon)
    content = daemon.root / "io.containerd.content.v1.content"
    data = b"nobody knows me"
    blob = content / "blobs" / "sha256" / hashlib.sha256(data).hexdigest()
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    ingest = content / "ingest" / hashlib.sha256(b"t/1/ref").hexdigest()
    ingest.mkdir(parents=True)
    moment = datetime.now(UTC).isoformat()
    for name, text in (("ref", "t/1/ref"), ("data", "some"), ("startedat", moment), ("updatedat", moment)):
        (ingest / name).write_text(text)
    (native(daemon) / "snapshots" / "77").mkdir()
    (native(daemon) / "snapshots" / "new-78").mkdir()
    with daemon:
        until(lambda: not blob.exists(), "the blob is still there")
        until(lambda: not ingest.exists(), "the ingest is still there")
        until(lambda: folders(daemon) == kept, "the folders are still there")


def test_wire_texts(daemon: Daemon) -> None:
    """As containerd's where clients may depend on them."""
    with daemon.channel() as channel:
        stub = snapshots_pb2_grpc.SnapshotsStub(channel)

        def fails(call: Callable[..., Any], request: Any, metadata: Any = NS) -> tuple[str, str]:
            with pytest.raises(grpc.RpcError) as caught:
                list(call(request, metadata=metadata, timeout=10))
            error: Any = caught.value
            return error.code().name, error.details()

        def prepare(**fields: Any) -> snapshots_pb2.PrepareSnapshotRequest:
            return snapshots_pb2.PrepareSnapshotRequest(**{"snapshotter": "native", "key": "k", **fields})

        absent = "INVALID_ARGUMENT", "snapshotter argument missing: invalid argument"
        assert fails(stub.Prepare, prepare(snapshotter="")) == absent
        assert fails(stub.Prepare, prepare(key="")) == ("UNKNOWN", "bucket name required")
        assert fails(stub.Prepare, prepare(), ()) == (
            "FAILED_PRECONDITION",
            "namespace is required: failed precondition",
        )
        assert fails(stub.Prepare, prepare(), (*NS, ("containerd-lease", "nope"))) == (
            "NOT_FOUND",
            "lease does not exist: not found",
        )
        listing = snapshots_pb2.ListSnapshotsRequest(snapshotter="native")
        assert fails(stub.List, listing, ()) == ("UNKNOWN", "namespace is required: failed precondition")
        cleanup = snapshots_pb2.CleanupRequest(snapshotter="native")
        assert fails(stub.Cleanup, cleanup) == (
            "UNIMPLEMENTED",
            "snapshotter does not implement Cleanup method: not implemented",
        )
        update = snapshots_pb2.UpdateSnapshotRequest(snapshotter="native")
        assert fails(stub.Update, update)[0] == "INVALID_ARGUMENT"
        stub.Prepare(prepare(labels={"containerd.io/snapshot.ref": "t"}), metadata=NS, timeout=10)
        commit = snapshots_pb2.CommitSnapshotRequest(snapshotter="native", name="t", key="k")
        stub.Commit(commit, metadata=NS, timeout=10)
        assert fails(stub.Prepare, prepare(key="x", labels={"containerd.io/snapshot.ref": "t"})) == (
            "ALREADY_EXISTS",
            'target snapshot "t": already exists',
        )


def test_removed_namespace_takes_its_ingests_with_it(daemon: Daemon) -> None:
    folder = daemon.root / "io.containerd.content.v1.content" / "ingest"
    with daemon.channel() as channel:
        leases = leases_pb2_grpc.LeasesStub(channel)
        leases.Create(leases_pb2.CreateRequest(id="gone"), metadata=NS, timeout=10)
        leases.Delete(leases_pb2.DeleteRequest(id="gone", sync=True), metadata=NS, timeout=10)
        requests = [content_pb2.WriteContentRequest(action=content_pb2.WRITE, ref="half", data=b"half")]
        answers = content_pb2_grpc.ContentStub(channel).Write(iter(requests), metadata=NS, timeout=10)
        assert [answer.offset for answer in answers] == [4]
        assert len(list(folder.iterdir())) == 1

        request = namespace_pb2.DeleteNamespaceRequest(name="t")
        namespace_pb2_grpc.NamespacesStub(channel).Delete(request, timeout=10)

        until(lambda: not list(folder.iterdir()), "the ingest is still there")
