"""Events of a real daemon: what ctr shows of them beside containerd, who is cut off, what subscribers leave behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from daemons import Daemon, connects
from harness import on_loop
from moored.api.services.events.v1 import events_pb2 as pb
from moored.api.services.events.v1 import events_pb2_grpc as rpc
from moored.api.types.event_pb2 import Envelope
from moored.kernel import payloads as p

DEBIAN = Path("/usr/bin/containerd")
CTRS = [Path(p) for p in (shutil.which("ctr"), *os.environ.get("MOORED_TEST_CTRS", "").split(os.pathsep)) if p]
SECONDS = 30.0
ONE = (("containerd-namespace", "one"),)

PEER = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{folder}/c.sock"
[ttrpc]
address = "{folder}/c.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
"""


def beside_containerd(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that starts Debian's containerd."""
    skip = pytest.mark.skipif(not DEBIAN.exists() or os.geteuid() != 0, reason=f"needs {DEBIAN} and root")
    return pytest.mark.peer(pytest.mark.root(skip(test)))


ctr_of_any_age = pytest.mark.parametrize(
    "ctr",
    [pytest.param(ctr, id=str(number)) for number, ctr in enumerate(CTRS)],
)

EVENTS: Sequence[tuple[str, p.Payload | p.Packed]] = (
    ("/namespaces/create", p.NamespaceCreate(name="one", labels={"a": "b"})),
    ("/images/create", p.ImageCreate(name="docker.io/library/a:1", labels={"a": "b", "c": "ü<&"})),
    ("/images/delete", p.ImageDelete(name="docker.io/library/a:1")),
    ("/content/delete", p.ContentDelete(digest="sha256:00")),
    ("/snapshot/prepare", p.SnapshotPrepare(key="k", parent="sha256:11")),
    ("/snapshot/commit", p.SnapshotCommit(key="k", name="n")),
    ("/containers/create", p.ContainerCreate(id="c", image="a", runtime=p.Runtime(name="io.containerd.runc.v2"))),
    ("/containers/update", p.ContainerUpdate(id="c", image="a", labels={"l": "m"}, snapshot_key="k")),
    (
        "/tasks/create",
        p.TaskCreate(
            container_id="c",
            bundle="/run/b",
            rootfs=(p.Mount(type="overlay", source="overlay", options=("rw", "index=off")),),
            io=p.TaskIO(stdout="/run/o", terminal=True),
            pid=7,
        ),
    ),
    ("/tasks/start", p.TaskStart(container_id="c", pid=7)),
    ("/tasks/exit", p.TaskExit(container_id="c", id="e", pid=7, exit_status=137, exited_at=1_700_000_000_000_000_001)),
    ("/tasks/delete", p.TaskDelete(container_id="c", pid=7, exited_at=0)),
    ("/foreign/type", p.Packed("example.Thing", b"\xff")),
    ("/tasks/oom", p.Packed("type.googleapis.com/containerd.events.TaskOOM", p.TaskOOM(container_id="c").pack().value)),
)


def any_of(event: p.Payload | p.Packed) -> AnyMessage:
    packed = event.pack() if isinstance(event, p.Payload) else event
    return AnyMessage(type_url=packed.type_url, value=packed.value)


def wait_until(what: Callable[[], object], otherwise: Callable[[], object] = str) -> None:
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.01)


@contextmanager
def containerd(folder: Path) -> Iterator[Path]:
    """Debian's containerd on paths of its own; its socket."""
    folder.mkdir()
    (folder / "c.toml").write_text(PEER.format(folder=folder))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([DEBIAN, "-c", folder / "c.toml"], stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: connects(folder / "c.sock"), (folder / "log").read_text)
        yield folder / "c.sock"
    finally:
        process.terminate()
        process.wait(SECONDS)


@contextmanager
def ctr_events(ctr: Path, socket: Path, output: Path, *filters: str) -> Iterator[Callable[[str, int], list[str]]]:
    """`ctr events` that has subscribed; a function (text, count) -> all lines, timeless, once count have the text."""
    with output.open("wb") as out:
        process = subprocess.Popen([ctr, "-a", socket, "events", *filters], stdout=out, stderr=subprocess.DEVNULL)

    def lines() -> list[str]:
        found = [line.split(" UTC ", 1)[1] for line in output.read_text().splitlines() if " UTC " in line]
        return [line for line in found if not line.startswith("probe ")]

    def take(text: str, count: int) -> list[str]:
        wait_until(
            lambda: sum(text in line for line in lines()) == count,
            lambda: f"wanted {count} lines with {text}:\n{output.read_text()}",
        )
        return lines()

    try:
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            stub = rpc.EventsStub(channel)

            def probed() -> bool:
                envelope = Envelope(namespace="probe", topic="/probe", event=any_of(p.TaskOOM()))
                envelope.timestamp.seconds = 1
                stub.Forward(pb.ForwardRequest(envelope=envelope), timeout=SECONDS)
                return "probe" in output.read_text()

            wait_until(probed, lambda: f"ctr does not listen, it ended with {process.poll()}")
        yield take
    finally:
        process.terminate()
        process.wait(SECONDS)


def publish_with(binary: Sequence[str | Path], socket: Path, topic: str, event: AnyMessage) -> tuple[int, str]:
    command = [*binary, "--address", socket, "publish", "--topic", topic, "--namespace", "one"]
    done = subprocess.run(command, input=event.SerializeToString(), capture_output=True, check=False, timeout=SECONDS)
    return done.returncode, done.stderr.decode()


MOORED = (sys.executable, "-m", "moored.kernel.daemon.main")
PUBLISHERS: Sequence[Sequence[str | Path]] = ((DEBIAN,), MOORED)


def send_all(socket: Path) -> None:
    """Every event forwarded at a time of its own, one published, and one published by each binary."""
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        stub = rpc.EventsStub(channel)
        for number, (topic, event) in enumerate(EVENTS):
            envelope = Envelope(namespace="two", topic=topic, event=any_of(event))
            envelope.timestamp.FromNanoseconds(1_700_000_000_120_000_000 + number)
            stub.Forward(pb.ForwardRequest(envelope=envelope), timeout=SECONDS)
        request = pb.PublishRequest(topic="/tasks/paused", event=any_of(p.TaskPaused(container_id="c")))
        stub.Publish(request, metadata=ONE, timeout=SECONDS)
    for binary in PUBLISHERS:
        assert publish_with(binary, socket, "/from/stdin", any_of(p.TaskResumed(container_id="c"))) == (0, "")


@beside_containerd
@ctr_of_any_age
def test_ctr_shows_the_same_as_of_containerd(tmp_path: Path, ctr: Path) -> None:
    shown = []
    with containerd(tmp_path / "peer") as theirs, Daemon(tmp_path) as daemon:
        for socket in (theirs, daemon.socket):
            with ctr_events(ctr, socket, socket.parent / "out") as take:
                send_all(socket)
                shown.append(take("/from/stdin", len(PUBLISHERS)))
                timed = [line for line in (socket.parent / "out").read_text().splitlines() if " two /" in line]
                shown.append(timed)

    assert shown[2] == shown[0]
    assert shown[3] == shown[1]
    assert len(shown[2]) >= len(EVENTS) - 2 + 1 + len(PUBLISHERS)  # a ctr may leave the last two types out
    assert shown[2][0] == 'two /namespaces/create {"name":"one","labels":{"a":"b"}}'
    assert shown[3][0].startswith("2023-11-14 22:13:20.12 +0000 UTC two ")
    assert shown[2][-2:] == ['one /from/stdin {"container_id":"c"}'] * 2


@beside_containerd
@ctr_of_any_age
def test_ctr_filters_as_with_containerd(tmp_path: Path, ctr: Path) -> None:
    filters = ("event.container_id==c,topic~=|exit$|", 'namespace==one,topic=="/tasks/paused"', "event.key")
    shown = []
    refused = []
    with containerd(tmp_path / "peer") as theirs, Daemon(tmp_path) as daemon:
        for socket in (theirs, daemon.socket):
            with ctr_events(ctr, socket, socket.parent / "out", "namespace==probe", *filters) as take:
                send_all(socket)
                shown.append(take("/tasks/paused", 1))
            bad = [ctr, "-a", socket, "events", "topic==/x"]
            done = subprocess.run(bad, capture_output=True, check=False, timeout=SECONDS)
            refused.append((done.returncode, done.stderr.decode().splitlines()[-1]))

    assert shown[1] == shown[0]
    assert [line.split()[1] for line in shown[1]] == [
        "/snapshot/prepare",
        "/snapshot/commit",
        "/tasks/exit",
        "/tasks/paused",
    ]
    assert refused[1] == refused[0]
    assert "subscription error: failed parsing subscription filters" in refused[1][1]


@beside_containerd
def test_publish_command_fails_as_containerds_does(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        for topic in ("", "x", "/a b"):
            theirs, ours = (publish_with(binary, daemon.socket, topic, AnyMessage()) for binary in PUBLISHERS)
            assert ours[0] == theirs[0] == 1
            assert ours[1].removeprefix("moored: ") == theirs[1].removeprefix("containerd: ")


def test_publish_command_takes_the_address_that_shims_are_given(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon, daemon.channel() as channel:
        call = rpc.EventsStub(channel).Subscribe(pb.SubscribeRequest())
        call.initial_metadata()
        command = [*MOORED, "publish", "--topic", "/a", "--namespace", "one"]
        environment = {**os.environ, "GRPC_ADDRESS": str(daemon.socket)}
        event = any_of(p.TaskOOM(container_id="c"))

        done = subprocess.run(
            command, input=event.SerializeToString(), env=environment, timeout=SECONDS, check=False, capture_output=True
        )

        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        got = next(call)
        assert (got.namespace, got.topic, got.event) == ("one", "/a", event)
        call.cancel()


def test_publish_command_says_that_nobody_listens(tmp_path: Path) -> None:
    status, told = publish_with(MOORED, tmp_path / "no.sock", "/a", AnyMessage())
    assert status == 1
    assert told.startswith(f"moored: no daemon answers at '{tmp_path}/no.sock': ")


# --- many, slow and vanished subscribers ------------------------------------------------------------------------------


def bounded(events: int) -> str:
    return f'version = 4\n[plugins."io.containerd.event.v1.exchange"]\nmax_pending = {events}\n'


async def subscribed(channel: grpc.aio.Channel, *filters: str) -> Any:
    call: Any = rpc.EventsStub(channel).Subscribe(pb.SubscribeRequest(filters=filters))
    await asyncio.wait_for(call.initial_metadata(), SECONDS)
    return call


async def publish(channel: grpc.aio.Channel, topic: str, event: AnyMessage | None = None) -> None:
    stub: Any = rpc.EventsStub(channel)
    await stub.Publish(pb.PublishRequest(topic=topic, event=event), metadata=ONE)


@on_loop
async def test_eight_subscribers_see_500_of_500_in_order(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        channels = [grpc.aio.insecure_channel(f"unix:{daemon.socket}") for _ in range(9)]
        calls = [await subscribed(channel) for channel in channels[:8]]

        async def send() -> None:
            for number in range(500):
                await publish(channels[8], f"/n/{number}")

        _, *seen = await asyncio.gather(send(), *(read(call, 500) for call in calls))
        for call in calls:
            call.cancel()
        for channel in channels:
            await channel.close()
    assert seen == [[f"/n/{number}" for number in range(500)]] * 8


async def read(call: Any, count: int) -> list[str]:
    return [(await asyncio.wait_for(call.read(), SECONDS)).topic for _ in range(count)]


async def read_to_the_end(call: Any, seen: list[str]) -> None:
    async with asyncio.timeout(SECONDS):
        async for envelope in call:
            seen.append(envelope.topic)  # noqa: PERF401 - what came before the error counts


@on_loop
async def test_subscriber_that_does_not_read_is_cut_off_alone(tmp_path: Path) -> None:
    filler = AnyMessage(type_url="example.Filler", value=b"x" * (256 << 10))
    with Daemon(tmp_path, bounded(100)) as daemon:
        async with (
            grpc.aio.insecure_channel(f"unix:{daemon.socket}") as one,
            grpc.aio.insecure_channel(f"unix:{daemon.socket}", [("x", 1)]) as other,
        ):
            slow, quick = await subscribed(one), await subscribed(other)
            for number in range(300):
                await publish(other, f"/n/{number}", filler)
                assert await read(quick, 1) == [f"/n/{number}"]
            wait_until(lambda: "subscriber fell behind" in daemon.text(), daemon.text)

            seen: list[str] = []
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await read_to_the_end(slow, seen)

            assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert ended.value.details() == "subscriber fell behind by 101 events: resource exhausted"
            assert seen == [f"/n/{number}" for number in range(len(seen))]
            assert len(seen) < 200
            again = await subscribed(one)
            await publish(other, "/again")
            assert await read(again, 1) == ["/again"]
            again.cancel()
            quick.cancel()


@on_loop
async def test_subscribers_that_go_leave_nothing_behind(tmp_path: Path) -> None:
    with Daemon(tmp_path, bounded(5)) as daemon:
        assert daemon.process is not None
        own = Path(f"/proc/{daemon.process.pid}")
        async with grpc.aio.insecure_channel(f"unix:{daemon.socket}") as channel:
            await publish(channel, "/warm")
            files, threads = len(list((own / "fd").iterdir())), len(list((own / "task").iterdir()))

            for call in [await subscribed(channel) for _ in range(20)]:
                call.cancel()
            killed = await asyncio.create_subprocess_exec(
                sys.executable, "-c", SUBSCRIBER, str(daemon.socket), stdout=asyncio.subprocess.PIPE
            )
            assert killed.stdout is not None
            assert await asyncio.wait_for(killed.stdout.readline(), SECONDS) == b"subscribed\n"
            killed.kill()
            await killed.wait()
            wait_until(lambda: len(list((own / "fd").iterdir())) <= files)

            # Whoever still had a queue would fall behind in it.
            for number in range(20):
                await publish(channel, f"/n/{number}")
            assert len(list((own / "task").iterdir())) <= threads + 2
        assert "fell behind" not in daemon.text()
        assert "call failed" not in daemon.text()


SUBSCRIBER = """
import sys, grpc
from moored.api.services.events.v1 import events_pb2, events_pb2_grpc
call = events_pb2_grpc.EventsStub(grpc.insecure_channel("unix:" + sys.argv[1])).Subscribe(events_pb2.SubscribeRequest())
call.initial_metadata()
print("subscribed", flush=True)
next(call)
"""
