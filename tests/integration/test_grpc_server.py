"""The gRPC listener end to end: real sockets, real clients, every kind of call and every class of error."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue as Text
from harness import BASICS, GRPC_SERVER, Running, on_loop, running

from moored.api.errors import WIRE
from moored.api.services.version.v1 import version_pb2_grpc
from moored.kernel import errors
from moored.kernel.errors import MooredError, NotFound
from moored.kernel.hooks import hookimpl
from moored.kernel.namespaces import LEASE, current_namespace
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.daemon import Outcome
from moored.kernel.ports.metrics import METRICS
from moored.kernel.ports.services import GRPC, GrpcRegistrar

VERSION = "io.containerd.grpc.v1.version"
CLASSES = {kind.__name__: kind for kind in WIRE}


class Probe:
    """A service with one method of each kind, and with methods that go wrong."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.release = asyncio.Event()
        self.ended: list[str] = []

    def register(self, server: GrpcRegistrar) -> None:
        unary, many = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        out, into = grpc.unary_stream_rpc_method_handler, grpc.stream_unary_rpc_method_handler
        kinds = {
            "Echo": (unary, self.echo),
            "Where": (unary, self.where),
            "Fail": (unary, self.fail),
            "Crash": (unary, self.crash),
            "InnerCancel": (unary, self.inner_cancel),
            "Hang": (unary, self.hang),
            "HangHard": (unary, self.hang_hard),
            "Big": (unary, self.big),
            "Absent": (unary, self.absent),
            "Wrong": (unary, self.wrong),
            "Count": (out, self.count),
            "CountByWriting": (out, self.count_by_writing),
            "FailLate": (out, self.fail_late),
            "Endless": (out, self.endless),
            "Join": (into, self.join),
            "JoinByReading": (into, self.join_by_reading),
            "Chat": (many, self.chat),
            "ChatByReading": (many, self.chat_by_reading),
        }
        handlers = {
            name: make(behaviour, request_deserializer=Text.FromString, response_serializer=Text.SerializeToString)
            for name, (make, behaviour) in kinds.items()
        }
        server.add_registered_method_handlers("test.Probe", handlers)

    async def echo(self, request: Text, context: Any) -> Text:
        return request

    async def where(self, request: Text, context: Any) -> Text:
        return Text(value=f"{current_namespace()} {LEASE.get()}")

    async def fail(self, request: Text, context: Any) -> Text:
        raise CLASSES[request.value]("it broke")

    async def crash(self, request: Text, context: Any) -> Text:
        raise KeyError("lost")

    async def inner_cancel(self, request: Text, context: Any) -> Text:
        raise asyncio.CancelledError

    async def hang(self, request: Text, context: Any) -> Text:
        self.began.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.ended.append("hang")
        return Text(value="released")

    async def hang_hard(self, request: Text, context: Any) -> Text:
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.1)
            self.ended.append("cleaned up")
        return Text()

    async def big(self, request: Text, context: Any) -> Text:
        return Text(value="x" * int(request.value))

    def absent(self, request: Text, context: Any) -> Text:
        raise NotImplementedError("Method not implemented!")

    async def wrong(self, request: Text, context: Any) -> Any:
        return "no message"

    async def count(self, request: Text, context: Any) -> AsyncGenerator[Text]:
        for number in range(int(request.value)):
            yield Text(value=str(number))

    async def count_by_writing(self, request: Text, context: Any) -> None:
        for number in range(int(request.value)):
            await context.write(Text(value=str(number)))

    async def fail_late(self, request: Text, context: Any) -> AsyncGenerator[Text]:
        yield Text(value="first")
        raise NotFound("it ended")

    async def endless(self, request: Text, context: Any) -> AsyncGenerator[Text]:
        try:
            while True:
                yield Text(value="x" * 1000)
        finally:
            self.ended.append("endless")
            self.cancelled.set()

    async def join(self, requests: Any, context: Any) -> Text:
        return Text(value="".join([request.value async for request in requests]))

    async def join_by_reading(self, requests: Any, context: Any) -> Text:
        found = []
        while (request := await context.read()) is not grpc.aio.EOF:
            found.append(request.value)
        self.ended.append("read to the end")
        return Text(value="".join(found))

    async def chat(self, requests: Any, context: Any) -> AsyncGenerator[Text]:
        async for request in requests:
            yield Text(value=f"{request.value}!")

    async def chat_by_reading(self, requests: Any, context: Any) -> None:
        self.began.set()
        try:
            while (request := await context.read()) is not grpc.aio.EOF:
                await context.write(Text(value=f"{request.value}?"))
            self.ended.append("half closed")
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            self.cancelled.set()
            raise


def offered(port: Any, kind: Any = GRPC, id_: str = "probe") -> Registration[Any, Any]:
    @asynccontextmanager
    async def open_(ctx: InitContext[Any]) -> AsyncGenerator[Any]:
        yield port

    return Registration(kind=kind, id=id_, open=open_)


class Client:
    """A grpc.aio client of the probe's methods by name."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    async def unary(self, method: str, value: str = "", **more: Any) -> str:
        return (await self._make(self.channel.unary_unary, method)(Text(value=value), **more)).value

    def server_stream(self, method: str, value: str = "", **more: Any) -> Any:
        return self._make(self.channel.unary_stream, method)(Text(value=value), **more)

    def client_stream(self, method: str, *args: Any) -> Any:
        return self._make(self.channel.stream_unary, method)(*args)

    def bidi(self, method: str, *args: Any) -> Any:
        return self._make(self.channel.stream_stream, method)(*args)

    def _make(self, kind: Any, method: str) -> Any:
        path = method if "/" in method else f"/test.Probe/{method}"
        return kind(path, request_serializer=Text.SerializeToString, response_deserializer=Text.FromString)


@asynccontextmanager
async def served(
    folder: Path, *plugins: Any, path: Path | None = None, **config: Any
) -> AsyncGenerator[tuple[Running, Probe, Client]]:
    """The listener with the probe and whatever else, and a client of it."""
    probe = Probe()
    address = path or folder / "m.sock"
    configs = {GRPC_SERVER: {"address": str(address), **config}}
    async with running(folder, GRPC_SERVER, VERSION, offered(probe), *plugins, configs=configs) as world:
        assert world.record(GRPC_SERVER).outcome is Outcome.OK, world.record(GRPC_SERVER).reason
        async with grpc.aio.insecure_channel(f"unix:{address}") as channel:
            yield world, probe, Client(channel)


async def fails(call: Any) -> tuple[str, str]:
    """Code name and text of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details() or ""


async def starts(folder: Path, **config: Any) -> tuple[Outcome, str]:
    """What becomes of the listener's plugin with such a config."""
    async with running(folder, GRPC_SERVER, VERSION, configs={GRPC_SERVER: config}) as world:
        record = world.record(GRPC_SERVER)
        return record.outcome, record.reason


# --- the four kinds ---------------------------------------------------------------------------------------------------


@on_loop
async def test_unary_call_is_answered(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, _, client):
        assert await client.unary("Echo", "hello") == "hello"


@pytest.mark.parametrize("method", ["Count", "CountByWriting"])
@on_loop
async def test_server_stream_sends_all_messages_in_order(tmp_path: Path, method: str) -> None:
    async with served(tmp_path) as (_, _, client):
        got = [message.value async for message in client.server_stream(method, "200")]
    assert got == [str(number) for number in range(200)]


@pytest.mark.parametrize("method", ["Join", "JoinByReading"])
@on_loop
async def test_client_stream_takes_all_messages(tmp_path: Path, method: str) -> None:
    async with served(tmp_path) as (_, _, client):
        answer = await client.client_stream(method, iter([Text(value=word) for word in ("a", "b", "c")]))
    assert answer.value == "abc"


@pytest.mark.parametrize(("method", "mark"), [("Chat", "!"), ("ChatByReading", "?")])
@on_loop
async def test_bidi_stream_answers_each_message_before_the_next(tmp_path: Path, method: str, mark: str) -> None:
    async with served(tmp_path) as (_, _, client):
        call = client.bidi(method)
        for word in ("a", "b"):
            await call.write(Text(value=word))
            assert (await call.read()).value == f"{word}{mark}"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


@on_loop
async def test_64_clients_at_once_are_served(tmp_path: Path) -> None:
    async with served(tmp_path):

        async def one(number: int) -> bool:
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(f"unix:{tmp_path}/m.sock", options=options) as channel:
                client = Client(channel)
                answers = await asyncio.gather(*(client.unary("Echo", f"{number}.{turn}") for turn in range(5)))
                counted = [message.value async for message in client.server_stream("Count", "5")]
            return answers == [f"{number}.{turn}" for turn in range(5)] and len(counted) == 5

        assert all(await asyncio.gather(*(one(number) for number in range(64))))


# --- headers ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_first_value_of_namespace_and_lease_headers_counts(tmp_path: Path) -> None:
    headers = [("containerd-namespace", "one"), ("containerd-namespace", "two"), ("containerd-lease", "a b/c")]
    async with served(tmp_path) as (_, _, client):
        assert await client.unary("Where", metadata=headers) == "one a b/c"


@on_loop
async def test_headers_of_one_call_are_unknown_to_the_next(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, _, client):
        await client.unary("Where", metadata=[("containerd-namespace", "one")])
        code, text = await fails(client.unary("Where"))
    assert (code, text) == ("FAILED_PRECONDITION", "namespace is required: failed precondition")


@on_loop
async def test_bad_namespace_is_an_invalid_argument(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, _, client):
        code, text = await fails(client.unary("Where", metadata=[("containerd-namespace", "a/b")]))
    assert code == "INVALID_ARGUMENT"
    assert text.startswith('namespace validation: identifier "a/b" must match')


@on_loop
async def test_method_that_does_not_ask_for_a_namespace_needs_none(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, _, client):
        answer = await version_pb2_grpc.VersionStub(client.channel).Version(Empty())
    assert (answer.version, answer.revision) == ("0.0.1-test", "cafe")


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
@on_loop
async def test_error_class_survives_the_wire(tmp_path: Path, name: str) -> None:
    wire = WIRE[CLASSES[name]]
    async with served(tmp_path) as (_, _, client):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.unary("Fail", name)
    assert caught.value.code().value[0] == wire.code
    assert caught.value.details() == (f"it broke: {wire.suffix}" if wire.suffix else "it broke")


def test_every_error_class_is_tried() -> None:
    def below(kind: type[MooredError]) -> set[type[MooredError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__() if child.__module__ == errors.__name__))

    assert below(MooredError) - {MooredError} <= set(CLASSES.values())


@on_loop
async def test_error_after_messages_ends_the_stream_with_its_class(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, _, client):
        call = client.server_stream("FailLate")
        assert (await call.read()).value == "first"
        code, text = await fails(call.read())
    assert (code, text) == ("NOT_FOUND", "it ended: not found")


@on_loop
async def test_unexpected_exception_is_unknown_and_the_server_lives_on(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, _, client):
        assert await fails(client.unary("Crash")) == ("UNKNOWN", "'lost'")
        assert await client.unary("Echo", "still here") == "still here"


@on_loop
async def test_cancellation_inside_of_a_handler_is_answered(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, _, client):
        assert await fails(client.unary("InnerCancel", timeout=5)) == ("CANCELLED", "context canceled")


@on_loop
async def test_method_left_out_by_its_servicer_is_unimplemented(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, _, client):
        assert await fails(client.unary("Absent")) == ("UNIMPLEMENTED", "method Absent not implemented")


@on_loop
async def test_unknown_service_and_method_are_named(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, _, client):
        service = await fails(client.unary("/no.such.Service/Do"))
        method = await fails(client.unary("/test.Probe/Nothing"))
    assert service == ("UNIMPLEMENTED", "unknown service no.such.Service")
    assert method == ("UNIMPLEMENTED", "unknown method Nothing for service test.Probe")


@on_loop
async def test_bytes_that_do_not_parse_are_an_internal_error(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, _, client):
        unary = await fails(client.channel.unary_unary("/test.Probe/Echo")(b"\xff\xff"))
        stream = client.channel.stream_stream("/test.Probe/Chat")()
        await stream.write(b"\xff\xff")
        streamed = await fails(stream.read())
    for code, text in (unary, streamed):
        assert code == "INTERNAL"
        assert text.startswith("grpc: error unmarshalling request: ")


@on_loop
async def test_answer_of_a_wrong_type_is_an_internal_error(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, _, client):
        code, _ = await fails(client.unary("Wrong"))
    assert code == "INTERNAL"


@on_loop
async def test_oversize_messages_are_refused_in_both_directions(tmp_path: Path) -> None:
    async with served(tmp_path, max_recv_message_size=1000, max_send_message_size=2000) as (_, _, client):
        received = await fails(client.unary("Echo", "x" * 1001))
        sent = await fails(client.unary("Big", "2001"))
        assert await client.unary("Echo", "x" * 900) == "x" * 900
    assert received[0] == "RESOURCE_EXHAUSTED"
    assert "eceived message larger than max (1004 vs. 1000)" in received[1]
    assert sent == ("RESOURCE_EXHAUSTED", "grpc: trying to send message larger than max (2004 vs. 2000)")


@on_loop
async def test_message_of_almost_16_mib_passes_by_default(tmp_path: Path) -> None:
    size = (16 << 20) - 100
    async with served(tmp_path):
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/m.sock", options=options) as channel:
            assert len(await Client(channel).unary("Echo", "x" * size)) == size


@on_loop
async def test_error_text_too_long_for_a_header_keeps_its_class(tmp_path: Path) -> None:
    class Talkative(Probe):
        async def fail(self, request: Text, context: Any) -> Text:
            raise NotFound("é" * 50_000)

    talkative = Talkative()
    configs = {GRPC_SERVER: {"address": f"{tmp_path}/m.sock"}}
    async with (
        running(tmp_path, GRPC_SERVER, offered(talkative), configs=configs),
        grpc.aio.insecure_channel(f"unix:{tmp_path}/m.sock") as channel,
    ):
        code, text = await fails(Client(channel).unary("Fail"))
    assert code == "NOT_FOUND"
    assert text.endswith("é: not found")


# --- cancellation and stop --------------------------------------------------------------------------------------------


@on_loop
async def test_cancelled_call_cancels_its_handler(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, probe, client):
        call = asyncio.create_task(client.unary("Hang"))
        await probe.began.wait()
        call.cancel()
        await probe.cancelled.wait()
        with pytest.raises(asyncio.CancelledError):
            await call


@on_loop
async def test_deadline_of_a_call_cancels_its_handler(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, probe, client):
        code, _ = await fails(client.unary("Hang", timeout=0.2))
        await probe.cancelled.wait()
    assert code == "DEADLINE_EXCEEDED"


@on_loop
async def test_cancelled_stream_closes_the_generator_behind_it(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, probe, client):
        call = client.server_stream("Endless")
        await call.read()
        call.cancel()
        await probe.cancelled.wait()
    assert probe.ended == ["endless"]


@on_loop
async def test_client_that_vanishes_does_not_look_like_one_that_has_said_all(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, probe, client):
        call = client.bidi("ChatByReading")
        await call.write(Text(value="a"))
        await call.read()
        call.cancel()
        await probe.cancelled.wait()
    assert probe.ended == ["cancelled"]


@on_loop
async def test_stop_lets_a_short_call_end(tmp_path: Path) -> None:
    async with served(tmp_path) as (world, probe, client):
        call = asyncio.create_task(client.unary("Hang"))
        await probe.began.wait()
        stopping = asyncio.create_task(world.kernel.stop())
        while await answers(tmp_path / "m.sock"):
            await asyncio.sleep(0)
        probe.release.set()
        assert await call == "released"
        await stopping


async def answers(path: Path) -> bool:
    """Whether a fresh client gets through."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
        try:
            await Client(channel).unary("Echo", "x", timeout=0.5)
        except grpc.aio.AioRpcError:
            return False
    return True


@on_loop
async def test_stop_cuts_endless_calls_and_waits_for_their_handlers(tmp_path: Path) -> None:
    async with served(tmp_path) as (world, probe, client):
        call = asyncio.create_task(fails(client.unary("HangHard")))
        await probe.began.wait()
        began = asyncio.get_running_loop().time()
        await world.kernel.stop()
        assert asyncio.get_running_loop().time() - began < 4
        assert (await call)[0] == "UNAVAILABLE"
        assert probe.ended == ["cleaned up"]
        assert world.record(GRPC_SERVER).outcome is Outcome.STOPPED


# --- the connection ---------------------------------------------------------------------------------------------------


@on_loop
async def test_client_that_pings_all_the_time_is_not_sent_away(tmp_path: Path) -> None:
    ping, goaway, settings = 6, 7, 4

    def frame(kind: int, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload))[1:] + bytes([kind, 0]) + b"\0\0\0\0" + payload

    async with served(tmp_path):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "m.sock")
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(settings, b""))
        for number in range(50):
            writer.write(frame(ping, struct.pack(">Q", number)))
        answered = 0
        while answered < 50:
            head = await asyncio.wait_for(reader.readexactly(9), 5)
            await reader.readexactly(int.from_bytes(head[:3]))
            assert head[3] != goaway
            answered += head[3] == ping and head[4] == 1
        writer.close()
        await writer.wait_closed()


# --- observers and policies -------------------------------------------------------------------------------------------


class Log:
    """A CallObserver that writes everything down."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []
        self.finished = asyncio.Condition()

    def started(self, *label: str) -> None:
        self.seen.append(("started", *label))

    def received(self, *label: str) -> None:
        self.seen.append(("received", *label))

    def sent(self, *label: str) -> None:
        self.seen.append(("sent", *label))

    def handled(self, kind: str, service: str, method: str, code: str, seconds: float) -> None:
        assert 0 <= seconds < 60
        self.seen.append(("handled", kind, service, method, code))

    async def until(self, event: tuple[Any, ...]) -> None:
        while event not in self.seen:
            await asyncio.sleep(0.001)


@on_loop
async def test_observers_are_told_of_all_four_kinds(tmp_path: Path) -> None:
    log = Log()
    async with served(tmp_path, offered(log, METRICS, "log")) as (_, _, client):
        await client.unary("Echo", "x")
        assert [m.value async for m in client.server_stream("Count", "2")] == ["0", "1"]
        await client.client_stream("Join", iter([Text(value="a"), Text(value="b")]))
        call = client.bidi("Chat", iter([Text(value="a")]))
        assert [m.value async for m in call] == ["a!"]
        await log.until(("handled", "bidi_stream", "test.Probe", "Chat", "OK"))
    per_method = {
        method: [event[0] for event in log.seen if event[3] == method] for method in ("Echo", "Count", "Join", "Chat")
    }
    assert per_method == {
        "Echo": ["started", "received", "sent", "handled"],
        "Count": ["started", "received", "sent", "sent", "handled"],
        "Join": ["started", "received", "received", "sent", "handled"],
        "Chat": ["started", "received", "sent", "handled"],
    }
    assert {event[1] for event in log.seen} == {"unary", "server_stream", "client_stream", "bidi_stream"}


@on_loop
async def test_observers_are_told_codes_as_go_names_them(tmp_path: Path) -> None:
    log = Log()
    async with served(tmp_path, offered(log, METRICS, "log")) as (_, probe, client):
        await fails(client.unary("Fail", "NotFound"))
        await fails(client.unary("Fail", "FailedPrecondition"))
        await fails(client.unary("Hang", timeout=0.2))
        await log.until(("handled", "unary", "test.Probe", "Hang", "DeadlineExceeded"))
        probe.began.clear()
        call = asyncio.create_task(client.unary("Hang"))
        await probe.began.wait()
        call.cancel()
        await log.until(("handled", "unary", "test.Probe", "Hang", "Canceled"))
    codes = [event[4] for event in log.seen if event[0] == "handled"]
    assert codes == ["NotFound", "FailedPrecondition", "DeadlineExceeded", "Canceled"]


@on_loop
async def test_calls_to_nobody_are_observed_under_one_name(tmp_path: Path) -> None:
    log = Log()
    async with served(tmp_path, offered(log, METRICS, "log")) as (_, _, client):
        for number in range(3):
            await fails(client.unary(f"/made.up.Service{number}/Do"))
            await fails(client.unary(f"/test.Probe/MadeUp{number}"))
    assert {event[2:4] for event in log.seen} == {("unknown", "unknown")}
    assert {event[4] for event in log.seen if event[0] == "handled"} == {"Unimplemented"}


@on_loop
async def test_observer_that_raises_does_not_break_calls(tmp_path: Path) -> None:
    class Broken(Log):
        def started(self, *label: str) -> None:
            raise RuntimeError("no")

    log = Log()
    plugins = (offered(Broken(), METRICS, "broken"), offered(log, METRICS, "log"))
    async with served(tmp_path, *plugins) as (_, _, client):
        assert await client.unary("Echo", "x") == "x"
        assert await client.unary("Echo", "y") == "y"
    assert len(log.seen) == 8


class Policy:
    """Refuses what its test says."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, object]] = []

    @hookimpl
    def moored_admit(self, method: str, namespace: str, request: object) -> str | None:
        self.asked.append((method, namespace, request))
        if method.endswith(("Echo", "Chat")):
            return "not on sundays"
        if method.endswith("Count"):
            raise RuntimeError("policy is broken")
        return None


@on_loop
async def test_policy_refuses_calls_with_its_reason(tmp_path: Path) -> None:
    policy = Policy()
    async with served(tmp_path) as (world, _, client):
        world.hooks.register(policy)
        headers = [("containerd-namespace", "ns")]
        unary = await fails(client.unary("Echo", "x", metadata=headers))
        stream = await fails(client.bidi("Chat", iter([Text(value="a")])).read())
        broken = await fails(client.server_stream("Count", "1").read())
        world.hooks.unregister(policy)
        assert await client.unary("Echo", "x") == "x"
    assert unary == stream == ("PERMISSION_DENIED", "not on sundays: permission denied")
    assert broken[0] == "PERMISSION_DENIED"
    assert policy.asked[:2] == [("/test.Probe/Echo", "ns", Text(value="x")), ("/test.Probe/Chat", "", None)]


@on_loop
async def test_service_that_cannot_be_registered_takes_no_other_away(tmp_path: Path) -> None:
    class Broken:
        def register(self, server: GrpcRegistrar) -> None:
            raise RuntimeError("no")

    class Thief:
        def register(self, server: GrpcRegistrar) -> None:
            server.add_registered_method_handlers("test.Probe", {})

    plugins = (offered(Broken(), id_="a-broken"), offered(Thief(), id_="z-thief"))
    async with served(tmp_path, *plugins) as (_, _, client):
        assert await client.unary("Echo", "x") == "x"


@on_loop
async def test_service_of_old_stubs_which_name_no_methods_is_served(tmp_path: Path) -> None:
    class Old:
        def register(self, server: GrpcRegistrar) -> None:
            async def hello(request: Text, context: Any) -> Text:
                return Text(value=f"hello {request.value}")

            handler = grpc.unary_unary_rpc_method_handler(hello, Text.FromString, Text.SerializeToString)
            generic = grpc.method_handlers_generic_handler("test.Old", {"Hello": handler})
            server.add_generic_rpc_handlers((generic,))

    async with served(tmp_path, offered(Old(), id_="old")) as (_, _, client):
        assert await client.unary("/test.Old/Hello", "you") == "hello you"
        assert await fails(client.unary("/test.Old/Bye")) == (
            "UNIMPLEMENTED",
            "unknown method Bye for service test.Old",
        )


# --- the socket file --------------------------------------------------------------------------------------------------


@on_loop
async def test_socket_is_0660_and_alone_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "deep"
    before = os.umask(0)
    try:
        async with served(tmp_path, path=folder / "m.sock"):
            found = (folder / "m.sock").stat()
            assert stat.S_ISSOCK(found.st_mode)
            assert stat.S_IMODE(found.st_mode) == 0o660
            assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())
            assert [entry.name for entry in folder.iterdir()] == ["m.sock"]
            assert stat.S_IMODE(folder.stat().st_mode) == 0o770
        assert list(folder.iterdir()) == []
    finally:
        os.umask(before)


@on_loop
async def test_folder_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o711)
    async with served(tmp_path, path=folder / "m.sock"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o711


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@on_loop
async def test_socket_belongs_to_whom_the_config_says(tmp_path: Path) -> None:
    async with served(tmp_path, path=tmp_path / "new" / "m.sock", uid=12, gid=34):
        for place in (tmp_path / "new", tmp_path / "new" / "m.sock"):
            assert (place.stat().st_uid, place.stat().st_gid) == (12, 34)


@on_loop
async def test_path_with_blanks_and_signs_is_served(tmp_path: Path) -> None:
    path = tmp_path / "a b%20#?é.sock"
    configs = {GRPC_SERVER: {"address": str(path)}}
    async with running(tmp_path, GRPC_SERVER, VERSION, configs=configs) as world:
        assert world.record(GRPC_SERVER).outcome is Outcome.OK, world.record(GRPC_SERVER).reason
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        assert (await reader.readexactly(9))[3] == 4
        writer.close()
        await writer.wait_closed()


@on_loop
async def test_dead_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with served(tmp_path) as (_, _, client):
        assert await client.unary("Echo", "x") == "x"


@on_loop
async def test_live_socket_is_never_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        inode = path.stat().st_ino
        outcome, reason = await starts(tmp_path, address=str(path))
        assert path.stat().st_ino == inode
    assert outcome is Outcome.FAILED
    assert str(path) in reason
    assert "in use" in reason


@on_loop
async def test_live_socket_with_a_full_backlog_counts_as_live(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    waiting = []
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen(0)
        try:
            while True:
                client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                waiting.append(client)
                client.connect(str(path))
        except BlockingIOError:
            pass
        outcome, reason = await starts(tmp_path, address=str(path))
        for client in waiting:
            client.close()
    assert outcome is Outcome.FAILED
    assert "in use" in reason


@on_loop
async def test_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    path.write_text("precious")
    outcome, reason = await starts(tmp_path, address=str(path))
    assert outcome is Outcome.FAILED
    assert "no socket" in reason
    assert path.read_text() == "precious"
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


@on_loop
async def test_socket_that_somebody_else_put_there_survives_the_stop(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as other:
        async with served(tmp_path):
            path.unlink()
            other.bind(str(path))
            inode = path.stat().st_ino
        assert path.stat().st_ino == inode


@on_loop
async def test_address_of_104_bytes_is_the_longest(tmp_path: Path) -> None:
    fits = str(tmp_path / "m.sock").ljust(104, "x")
    async with served(tmp_path, path=Path(fits)) as (_, _, client):
        assert await client.unary("Echo", "x") == "x"
    outcome, reason = await starts(tmp_path, address=f"{fits}x")
    assert outcome is Outcome.FAILED
    assert "105 bytes, at most 104" in reason


@on_loop
async def test_relative_address_is_refused(tmp_path: Path) -> None:
    outcome, reason = await starts(tmp_path, address="m.sock")
    assert outcome is Outcome.FAILED
    assert "must be an absolute path" in reason


@on_loop
async def test_empty_address_skips_the_listener(tmp_path: Path) -> None:
    assert await starts(tmp_path, address="") == (Outcome.SKIPPED, "no address configured")


@on_loop
async def test_listener_that_starts_again_finds_its_place_free(tmp_path: Path) -> None:
    for _ in range(2):
        async with served(tmp_path, *[uri for uri in BASICS if uri != VERSION]) as (_, _, client):
            assert await client.unary("Echo", "x") == "x"
