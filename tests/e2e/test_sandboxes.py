"""What ctr 2 does with sandboxes and the containers in them, over our shim and a pause container; nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from daemons import Daemon
from e2e.containers import IMAGE, World, busybox_image, eventually, imported, short_folder
from e2e.images import CTRS, local
from leftovers import Place, nothing_left
from moored.api.services.events.v1 import events_pb2, events_pb2_grpc
from moored.api.services.sandbox.v1 import sandbox_pb2 as pb
from moored.api.services.sandbox.v1 import sandbox_pb2_grpc as rpc
from peers import needs_containerd

NEW = [
    path
    for path in CTRS
    if subprocess.run([path, "sandboxes"], capture_output=True, check=False).stdout.find(b"run") > 0
]
pytestmark = [
    *needs_containerd,
    pytest.mark.skipif(not shutil.which("busybox"), reason="needs a static busybox"),
    pytest.mark.skipif(not NEW, reason="needs a ctr with sandboxes, named by MOORED_TEST_CTRS"),
]
CONFIG = f"""version = 4
[plugins."io.containerd.podsandbox.controller.v1.podsandbox"]
image = "{IMAGE}"
"""
KINDS = ("ipc", "uts", "pid", "network")
HOLDS = {"hostname": "the-pod", "linux": {"namespaces": [{"type": kind} for kind in KINDS]}}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Daemon, World]]:
    with short_folder() as folder, Daemon(folder, CONFIG) as daemon:
        place = Place(folder, f"test-sandboxes-{os.getpid()}", daemon.socket)
        with imported(World(NEW[-1], place, "runc", (), daemon.log)) as world:
            yield daemon, world


@pytest.fixture
def daemon(served: tuple[Daemon, World]) -> Daemon:
    return served[0]


@pytest.fixture
def world(served: tuple[Daemon, World]) -> Iterator[World]:
    world = served[1]
    before = world.place.found()
    at = len(world.used)
    try:
        yield world
        nothing_left(world.place, before, world.used[at:])
        assert world.does("sandboxes", "ls").split() == ["ID", "CREATED", "RUNTIME"]
    finally:
        for id_ in world.ctr("c", "ls", "-q").out.split():
            world.remove(id_)
        for line in world.ctr("sandboxes", "ls").out.splitlines()[1:]:
            world.ctr("sandboxes", "rm", "--force", line.split()[0])


@pytest.fixture
def lone() -> Iterator[tuple[Daemon, World]]:
    """A daemon that a test may kill."""
    with short_folder() as folder:
        place = Place(folder, f"test-killed-{os.getpid()}", folder / "m.sock")
        before = place.found()
        daemon = Daemon(folder, CONFIG)
        world = World(NEW[-1], place, "runc", (), daemon.log)
        try:
            with daemon:
                archive = busybox_image(folder)
                base = IMAGE.removesuffix(":latest")
                world.does("images", "import", *local(world.binary), "--base-name", base, str(archive))
                yield daemon, world
                for id_ in world.ctr("c", "ls", "-q").out.split():
                    world.remove(id_)
            nothing_left(place, before, world.used)
        finally:
            place.cleared(before)


def made(world: World, spec: dict[str, object], *flags: str) -> str:
    """A new sandbox by ctr; its id."""
    file = world.place.folder / "pod.json"
    file.write_text(json.dumps(spec))
    id_ = world.new()
    assert world.does("sandboxes", "run", *flags, file, id_).strip() == id_
    return id_


def stub(daemon: Daemon, channel: grpc.Channel) -> rpc.ControllerStub:
    return rpc.ControllerStub(channel)  # type: ignore[no-untyped-call]


def status(daemon: Daemon, world: World, id_: str, sandboxer: str = "shim") -> pb.ControllerStatusResponse:
    """What the controller says of a sandbox."""
    request = pb.ControllerStatusRequest(sandbox_id=id_, sandboxer=sandboxer)
    with daemon.channel() as channel:
        return stub(daemon, channel).Status(
            request, metadata=(("containerd-namespace", world.place.namespace),), timeout=20
        )


@contextmanager
def killed(daemon: Daemon) -> Iterator[None]:
    """Kill the daemon, and start it again after the block."""
    daemon.stop(signal.SIGKILL)
    yield
    daemon.log.unlink()
    daemon.start()


def in_sandbox(world: World, sandbox: str, *more: str) -> tuple[str, ...]:
    """Flags of `run` for a container of a sandbox."""
    return ("--sandbox", sandbox, *more)


def shim_of(world: World, pid: int) -> int:
    """The parent of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[1])


def test_ctr_makes_lists_and_removes_sandboxes(world: World, daemon: Daemon) -> None:
    id_ = made(world, {})

    listed = world.does("sandboxes", "ls").splitlines()
    info = json.loads(world.does("sandboxes", "info", id_))
    found = status(daemon, world, id_)

    assert [line.split()[0] for line in listed[1:]] == [id_]
    assert (info["ID"], info["Sandboxer"], info["Runtime"]["Name"]) == (id_, "shim", "io.containerd.runc.v2")
    assert found.state == "SANDBOX_READY"
    assert "moored-shim" in Path(f"/proc/{found.pid}/comm").read_text()
    world.does("sandboxes", "rm", id_)


@pytest.mark.parametrize("kind", ["runc", "crun"])
def test_containers_share_the_shim_of_their_sandbox(world: World, daemon: Daemon, kind: str) -> None:
    if not shutil.which(kind):
        pytest.skip(f"needs {kind}")
    id_ = made(world, {})
    shim = status(daemon, world, id_).pid
    flags = in_sandbox(world, id_, "--runtime", f"io.containerd.{kind}.v2")

    with world.running(flags=flags) as first, world.running(flags=flags) as second:
        assert {shim_of(world, world.pid(one)) for one in (first, second)} == {shim}
        invocation = world.place.folder / f"state/io.containerd.runtime.v2.task/{world.place.namespace}/{first}"
        assert kind in json.loads((invocation / "runtime.json").read_text())["binary"]
        done = world.ctr("task", "exec", "--exec-id", "e", first, "echo", "hello")
        assert (done.status, done.out) == (0, "hello\n")
    done = world.run("sh", "-c", "exit 3", flags=flags)
    assert done.status == 3, done.err
    assert status(daemon, world, id_).state == "SANDBOX_READY"
    world.does("sandboxes", "rm", id_)


def test_containers_join_the_namespaces_of_their_sandbox(world: World, daemon: Daemon) -> None:
    id_ = made(world, HOLDS)
    pid = status(daemon, world, id_).pid
    files = {"ipc": "ipc", "uts": "uts", "pid": "pid", "network": "net"}
    flags = [word for kind, file in files.items() for word in ("--with-ns", f"{kind}:/proc/{pid}/ns/{file}")]

    done = world.run("sh", "-c", "hostname; echo $$; ps", flags=in_sandbox(world, id_, *flags))

    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "the-pod"
    assert int(lines[1]) > 1
    assert [line for line in lines if line.split()[0] == "1" and "moored-shim" in line]
    world.does("sandboxes", "rm", id_)


def test_removal_of_a_sandbox_ends_its_containers(world: World) -> None:
    id_ = made(world, HOLDS)
    with world.running(flags=in_sandbox(world, id_)) as container:
        world.does("sandboxes", "rm", id_)
        eventually(lambda: world.status(container) == "", lambda: world.status(container))


def test_containers_of_an_unknown_sandbox_have_a_shim_of_their_own(world: World) -> None:
    done = world.run("echo", "hello", flags=in_sandbox(world, "no-such-sandbox"))

    assert (done.status, done.out) == (0, "hello\n")


def test_sandbox_and_containers_are_known_after_a_kill(lone: tuple[Daemon, World]) -> None:
    daemon, world = lone
    id_ = made(world, HOLDS)
    shim = status(daemon, world, id_).pid
    with world.running(flags=in_sandbox(world, id_)) as container:
        pid = world.pid(container)
        with killed(daemon):
            pass
        found = status(daemon, world, id_)
        assert (found.state, found.pid) == ("SANDBOX_READY", shim)
        assert (world.status(container), world.pid(container)) == ("RUNNING", pid)
        with world.running(flags=in_sandbox(world, id_)) as other:
            assert shim_of(world, world.pid(other)) == shim_of(world, pid)
    world.does("sandboxes", "rm", id_)


def exits(daemon: Daemon, channel: grpc.Channel) -> Iterator[events_pb2.types_dot_event__pb2.Envelope]:  # type: ignore[name-defined]
    """The ends of sandboxes from now on."""
    filters = ['topic=="/sandboxes/exit"']
    return iter(events_pb2_grpc.EventsStub(channel).Subscribe(events_pb2.SubscribeRequest(filters=filters), timeout=30))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("whole", [False, True], ids=["of its process", "of its shim"])
def test_end_while_the_daemon_is_away_is_known(lone: tuple[Daemon, World], whole: bool) -> None:
    daemon, world = lone
    id_ = made(world, HOLDS)
    pid = status(daemon, world, id_).pid
    with killed(daemon):
        os.kill(shim_of(world, pid) if whole else pid, signal.SIGKILL)
        eventually(lambda: not Path(f"/proc/{pid}/ns/uts").exists(), lambda: f"{pid} lives")

    if whole:
        eventually(lambda: status(daemon, world, id_).pid == 0, lambda: "the sandbox is there")
    else:
        eventually(lambda: status(daemon, world, id_).state == "SANDBOX_NOTREADY", lambda: "it is ready")
        request = pb.ControllerWaitRequest(sandbox_id=id_, sandboxer="shim")
        with daemon.channel() as channel:
            metadata = (("containerd-namespace", world.place.namespace),)
            ended = stub(daemon, channel).Wait(request, metadata=metadata, timeout=20)
        assert ended.exit_status == 137
        noted = (
            world.place.folder / f"state/io.containerd.sandbox.controller.v1.shim/{world.place.namespace}/{id_}/exited"
        )
        eventually(noted.exists, lambda: "the end was not told")
    world.does("sandboxes", "rm", id_)


def test_end_of_a_sandbox_is_told_to_subscribers(world: World, daemon: Daemon) -> None:
    with daemon.channel() as channel:
        events = exits(daemon, channel)
        id_ = made(world, HOLDS)
        os.kill(status(daemon, world, id_).pid, signal.SIGKILL)
        envelope = next(events)
    assert (envelope.namespace, envelope.topic) == (world.place.namespace, "/sandboxes/exit")
    eventually(lambda: status(daemon, world, id_).state == "SANDBOX_NOTREADY", lambda: "it is ready")
    done = world.ctr(*world.words(world.new(), "true", flags=("--rm", *in_sandbox(world, id_))))
    assert done.status != 0
    assert "is not running" in done.err
    world.remove(world.used[-1])
    world.does("sandboxes", "rm", id_)


# --- pause containers -------------------------------------------------------------------------------------------------


def paused(world: World, daemon: Daemon) -> str:
    """A sandbox of the pause controller, with a record; its id."""
    metadata = (("containerd-namespace", world.place.namespace),)
    id_ = world.new()
    spec = json.dumps({"hostname": "the-pod", "process": {"args": ["/bin/sleep", "1000"]}}).encode()
    with daemon.channel() as channel:
        store, controller = rpc.StoreStub(channel), stub(daemon, channel)  # type: ignore[no-untyped-call]
        create = pb.StoreCreateRequest()
        create.sandbox.sandbox_id, create.sandbox.sandboxer = id_, "podsandbox"
        create.sandbox.runtime.name = "io.containerd.runc.v2"
        create.sandbox.spec.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
        create.sandbox.spec.value = spec
        record = store.Create(create, metadata=metadata, timeout=20).sandbox
        request = pb.ControllerCreateRequest(sandbox_id=id_, sandboxer="podsandbox", sandbox=record)
        controller.Create(request, metadata=metadata, timeout=20)
        start = pb.ControllerStartRequest(sandbox_id=id_, sandboxer="podsandbox")
        assert controller.Start(start, metadata=metadata, timeout=20).pid > 0
    return id_


def test_pause_container_holds_a_sandbox(lone: tuple[Daemon, World]) -> None:
    daemon, world = lone
    id_ = paused(world, daemon)
    pid = status(daemon, world, id_, "podsandbox").pid

    assert world.status(id_) == "RUNNING"
    assert world.pid(id_) == pid
    flags = in_sandbox(world, id_, "--with-ns", f"uts:/proc/{pid}/ns/uts")
    with world.running(flags=flags) as container:
        assert shim_of(world, world.pid(container)) == shim_of(world, pid)
        assert world.does("task", "exec", "--exec-id", "e", container, "hostname") == "the-pod\n"
        with killed(daemon):
            pass
        found = status(daemon, world, id_, "podsandbox")
        assert (found.state, found.pid) == ("SANDBOX_READY", pid)
    world.does("sandboxes", "rm", id_)
    assert world.does("c", "ls", "-q") == ""


def test_end_of_a_pause_container_while_the_daemon_is_away(lone: tuple[Daemon, World]) -> None:
    daemon, world = lone
    id_ = paused(world, daemon)
    pid = status(daemon, world, id_, "podsandbox").pid
    with killed(daemon):
        os.kill(pid, signal.SIGKILL)

    eventually(lambda: status(daemon, world, id_, "podsandbox").exited_at.seconds > 0, lambda: "no end is known")

    request = pb.ControllerWaitRequest(sandbox_id=id_, sandboxer="podsandbox")
    with daemon.channel() as channel:
        metadata = (("containerd-namespace", world.place.namespace),)
        assert stub(daemon, channel).Wait(request, metadata=metadata, timeout=20).exit_status == 137
    world.does("sandboxes", "rm", id_)
