"""Containers written to disk by CRIU and brought back by real clients, with our shim and containerd's.

MOORED_TEST_CRIU may name a CRIU that knows this kernel, where that on PATH does not.
"""

from __future__ import annotations

import io
import json
import os
import select
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import grpc
import pytest

from daemons import Daemon
from e2e.containers import SECONDS, World, eventually, imported, short_folder, terminal
from e2e.images import CTRS
from e2e.test_run import SHIMS_APART, shim_on_path
from leftovers import Place, nothing_left
from moored.api.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc
from moored.api.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc
from moored.api.types import descriptor_pb2
from peers import containerd, needs_containerd

CRIU = os.environ.get("MOORED_TEST_CRIU") or shutil.which("criu") or ""
DEVICE = "/dev/loop-control"
"""One that CRIU knows nothing of."""
CHECKPOINT = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
SAVED = "docker.io/test/saved:1"
# Its memory, and nothing on disk, knows the token.
SCRIPT = "token=$(cat /proc/sys/kernel/random/uuid); while :; do echo $token > /tmp/token; sleep 0.05; done"
WORLDS = {
    "moored": ("version = 4\n", ()),
    "containerds-shim": (SHIMS_APART, ()),
    "under-containerd": ("", ("--runtime", "io.containerd.moored.v2")),
    "containerd": ("", ()),
}
"""The last one tells whether the tests are right."""


@cache
def criu_works() -> bool:
    """Whether CRIU can work on this kernel, as it says itself."""
    if not CRIU or os.geteuid() != 0:
        return False
    return subprocess.run([CRIU, "check"], capture_output=True, check=False).returncode == 0


pytestmark = [
    *needs_containerd,
    pytest.mark.skipif(not shutil.which("busybox"), reason="needs a static busybox"),
    pytest.mark.skipif(not shutil.which("runc"), reason="needs runc"),
    pytest.mark.skipif(not criu_works(), reason="needs a CRIU that works on this kernel"),
]


def worlds() -> list[tuple[str, str]]:
    """Each client with each world, but no client newer than its daemon."""
    return [(binary, name) for binary in CTRS for name, (config, _) in WORLDS.items() if config or binary == CTRS[0]]


@pytest.fixture(scope="module", params=worlds(), ids=str)
def shared(request: pytest.FixtureRequest) -> Iterator[World]:
    binary, name = request.param
    config, flags = WORLDS[name]
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("PATH", f"{Path(CRIU).parent}:{os.environ['PATH']}")
        folder = stack.enter_context(short_folder())
        if config:
            daemon = stack.enter_context(Daemon(folder, config))
            address, log = daemon.socket, daemon.log
        else:
            shim_on_path(stack, folder)
            address, log = stack.enter_context(containerd(folder / "d")), folder / "d/log"
        place = Place(folder, f"test-criu-{os.getpid()}", address)
        yield stack.enter_context(imported(World(binary, place, "runc", flags, log)))


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    before = shared.place.found()
    at = len(shared.used)
    yield shared
    nothing_left(shared.place, before, shared.used[at:])


def token(world: World, id_: str) -> str:
    """What the script's memory knows, told anew."""
    read = ("task", "exec", "--exec-id", f"e{os.urandom(4).hex()}", id_)
    world.does(*read, "rm", "-f", "/tmp/token")
    told: list[str] = []

    def whole() -> bool:
        told.append(world.ctr(*read, "cat", "/tmp/token").out)
        return told[-1].endswith("\n")

    eventually(whole, lambda: "the script does not go on")
    return told[-1]


@contextmanager
def image_of(world: World, id_: str, name: str = SAVED) -> Iterator[str]:
    """A container with its memory as an image."""
    world.does("c", "checkpoint", "--image", "--task", "--rw", id_, name)
    try:
        yield name
    finally:
        world.does("images", "rm", "--sync", name)


@contextmanager
def restored(world: World, image: str) -> Iterator[str]:
    """A container brought back from an image, running; its id."""
    id_ = world.new()
    try:
        world.does("c", "restore", "--rw", "--live", id_, image)
        yield id_
    finally:
        world.remove(id_)


def checkpoints(world: World) -> list[str]:
    """The images that `task checkpoint` has made."""
    return [name for name in world.does("images", "ls", "-q").split() if "/checkpoint/" in name]


def remove_checkpoints(world: World) -> None:
    world.does("images", "rm", "--sync", *checkpoints(world))


def test_container_goes_on_where_it_was_and_the_first_too(world: World) -> None:
    with world.running("sh", "-c", SCRIPT) as first:
        before = token(world, first)
        with image_of(world, first) as image:
            assert world.status(first) == "RUNNING"
            assert token(world, first) == before
            with restored(world, image) as second:
                assert world.status(second) == "RUNNING"
                assert token(world, second) == before
                assert world.pid(second) != world.pid(first)


def ask(folder: Path, question: str) -> str:
    """Write a line to the input of a container whose FIFOs are in the folder, and read one from its output."""
    stdin, stdout = (next(folder.rglob(f"*{name}")) for name in ("stdin", "stdout"))
    reading, writing = os.open(stdout, os.O_RDONLY), os.open(stdin, os.O_WRONLY)
    try:
        os.write(writing, f"{question}\n".encode())
        answer = b""
        while not answer.endswith(b"\n") and select.select([reading], [], [], SECONDS)[0]:
            answer += os.read(reading, 4096)
        return answer.decode()
    finally:
        os.close(reading)
        os.close(writing)


def restore(world: World, id_: str, image: str, folder: Path) -> None:
    """Have a task made from a checkpoint for a container that has none, with FIFOs in the folder, as a library does."""
    folder.mkdir()
    paths = {name: str(folder / name) for name in ("stdin", "stdout", "stderr")}
    for path in paths.values():
        os.mkfifo(path)
    digest = next(line.split()[2] for line in world.does("images", "ls").splitlines() if line.startswith(image))
    index = json.loads(world.does("content", "get", digest))
    saved = next(one for one in index["manifests"] if one["mediaType"] == CHECKPOINT)
    checkpoint = descriptor_pb2.Descriptor(media_type=CHECKPOINT, digest=saved["digest"], size=saved["size"])
    metadata = (("containerd-namespace", world.place.namespace),)
    readers = [os.open(paths[name], os.O_RDONLY | os.O_NONBLOCK) for name in ("stdout", "stderr")]
    with grpc.insecure_channel(f"unix:{world.place.address}") as channel:
        wanted = snapshots_pb2.MountsRequest(snapshotter="overlayfs", key=id_)
        rootfs = snapshots_pb2_grpc.SnapshotsStub(channel).Mounts(wanted, metadata=metadata).mounts
        tasks = tasks_pb2_grpc.TasksStub(channel)
        request = tasks_pb2.CreateTaskRequest(container_id=id_, rootfs=rootfs, checkpoint=checkpoint, **paths)
        tasks.Create(request, metadata=metadata, timeout=SECONDS)
        tasks.Start(tasks_pb2.StartRequest(container_id=id_), metadata=metadata, timeout=SECONDS)
    for reader in readers:
        os.close(reader)


def test_streams_of_what_is_brought_back_are_the_new_ones(world: World) -> None:
    script = "token=$(cat /proc/sys/kernel/random/uuid); while read -r line; do echo $token $line; done"
    folder = world.place.folder
    with world.running("sh", "-c", script) as id_:
        before = ask(folder / "fifos", "one")
        image = world.does("task", "checkpoint", id_).strip()
        world.ctr("task", "rm", "--force", id_)
        restore(world, id_, image, folder / "new")
        after = ask(folder / "new", "two")
        assert before.split()[1:] == ["one"]
        assert after.split() == [before.split()[0], "two"]
        assert world.status(id_) == "RUNNING"
    shutil.rmtree(folder / "new", ignore_errors=True)  # ctr removes what it finds of FIFOs
    remove_checkpoints(world)


def test_container_brought_back_is_like_any_other(world: World) -> None:
    with world.running("sh", "-c", SCRIPT) as first, image_of(world, first) as image:
        world.remove(first)
        with restored(world, image) as id_:
            inside = world.does("task", "ps", id_).split("\n")[1:]
            assert str(world.pid(id_)) in {line.split()[0] for line in inside if line}
            assert "memory.usage_in_bytes" in world.does("task", "metrics", id_)
            world.does("task", "pause", id_)
            assert world.status(id_) == "PAUSED"
            world.does("task", "resume", id_)
            world.does("task", "kill", "-s", "SIGKILL", id_)
            world.becomes(id_, "STOPPED")
            removed = world.ctr("task", "rm", id_)
            assert "137" in removed.err or removed.status == 137


def test_checkpoint_that_ends_the_task_leaves_it_stopped(world: World) -> None:
    if world.flags:
        pytest.skip("ctr passes options of a checkpoint on for containerd's own runtimes only")
    with world.running("sh", "-c", SCRIPT) as id_:
        world.does("task", "checkpoint", "--exit", id_)
        world.becomes(id_, "STOPPED")
        assert len(checkpoints(world)) == 1
    remove_checkpoints(world)


def test_checkpoint_goes_where_the_client_says(world: World) -> None:
    if world.flags:
        pytest.skip("ctr passes options of a checkpoint on for containerd's own runtimes only")
    image, work = world.place.folder / "criu image", world.place.folder / "criu work"
    with world.running("sh", "-c", SCRIPT) as id_:
        world.does("task", "checkpoint", "--image-path", image, "--work-path", work, id_)
        assert world.status(id_) == "RUNNING"
    assert {"inventory.img", "pstree.img", "core-1.img"} <= {path.name for path in image.iterdir()}
    assert (work / "dump.log").exists()
    assert checkpoints(world) == []


def test_task_made_of_a_folder_has_its_files_and_runs(world: World) -> None:
    """As kubelet has it: the CRIU image, and beside it what the container had changed."""
    if world.flags:
        pytest.skip("ctr passes options of a checkpoint on for containerd's own runtimes only")
    if world.place.address.name == "c.sock":
        pytest.skip("containerd 1.6 does not know this")
    saved = world.place.folder / "saved"
    image = saved / "checkpoint"
    with world.running("sh", "-c", f"echo kept > /kept; {SCRIPT}") as id_:
        before = token(world, id_)
        world.does("task", "checkpoint", "--exit", "--image-path", image, id_)
        world.becomes(id_, "STOPPED")
        with tarfile.open(saved / "rootfs-diff.tar", "w:gz") as archive:
            info = tarfile.TarInfo("brought")
            info.size = 3
            archive.addfile(info, io.BytesIO(b"yes"))
        world.ctr("task", "rm", "--force", id_)
        metadata = (("containerd-namespace", world.place.namespace),)
        with grpc.insecure_channel(f"unix:{world.place.address}") as channel:
            wanted = snapshots_pb2.MountsRequest(snapshotter="overlayfs", key=id_)
            rootfs = snapshots_pb2_grpc.SnapshotsStub(channel).Mounts(wanted, metadata=metadata).mounts
            checkpoint = descriptor_pb2.Descriptor(annotations={"RestoreFromPath": str(image)})
            request = tasks_pb2.CreateTaskRequest(container_id=id_, rootfs=rootfs, checkpoint=checkpoint)
            made = tasks_pb2_grpc.TasksStub(channel).Create(request, metadata=metadata, timeout=SECONDS)
        assert (world.status(id_), world.pid(id_)) == ("RUNNING", made.pid)
        assert token(world, id_) == before
        assert world.does("task", "exec", "--exec-id", "look", id_, "cat", "/brought", "/kept") == "yeskept\n"
        assert checkpoints(world) == []
    shutil.rmtree(saved)


def test_container_with_a_terminal_can_be_written(world: World) -> None:
    id_ = world.new()
    words = world.words(id_, "sh", "-c", "echo ready; read x; echo got $x", flags=("--rm", "-t"))
    with terminal(world.command(*words)) as screen:
        screen.expect("ready")
        world.does("task", "checkpoint", id_)
        screen.type("hello\n")
        screen.expect("got hello")
        assert screen.end() == 0
    remove_checkpoints(world)


@pytest.mark.skipif(not Path(DEVICE).exists(), reason=f"needs {DEVICE}")
def test_failure_of_criu_is_told_and_harms_nobody(world: World) -> None:
    with world.running("sh", "-c", f"exec 3< {DEVICE}; {SCRIPT}", flags=("--device", DEVICE)) as id_:
        before = token(world, id_)
        done = world.ctr("task", "checkpoint", id_)
        assert done.status != 0
        assert "criu failed" in done.err
        assert world.status(id_) == "RUNNING"
        assert token(world, id_) == before
        logs = list(world.place.folder.rglob("criu-dump.log"))
        assert [path.parent.name for path in logs] == [id_]
        assert "Dumping FAILED" in logs[0].read_text()
        assert checkpoints(world) == []


def test_task_that_does_not_run_is_not_written(world: World) -> None:
    with world.running("sh", "-c", "exit 0") as id_:
        world.becomes(id_, "STOPPED")
        done = world.ctr("task", "checkpoint", id_)
        assert done.status != 0
        assert checkpoints(world) == []
