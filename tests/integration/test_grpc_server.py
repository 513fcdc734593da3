"""The gRPC listener end to end: real sockets, real clients, every kind of call and every class of error."""

from __future__ import annotations

import asyncio
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

from harness import ERRORS, GRPC_SERVER, VERSION, Client, Probe, Running, fails, on_loop, plug, running
from moored.api.errors import WIRE
from moored.api.services.version.v1 import version_pb2_grpc
from moored.kernel import errors
from moored.kernel.errors import MooredError, NotFound
from moored.kernel.hooks import hookimpl
from moored.kernel.ports.daemon import Outcome
from moored.kernel.ports.metrics import METRICS
from moored.kernel.ports.services import GRPC, Encoded, GrpcRegistrar


@asynccontextmanager
async def served(
    folder: Path, *plugins: Any, path: Path | None = None, **config: Any
) -> AsyncGenerator[tuple[Running, Probe, Client]]:
    """The listener with the probe and whatever else, and a client of it."""
    probe = Probe()
    address = path or folder / "m.sock"
    configs = {GRPC_SERVER: {"address": str(address), **config}}
    async with running(folder, GRPC_SERVER, VERSION, plug(GRPC, "probe", probe), *plugins, configs=configs) as world:
        assert world.record(GRPC_SERVER).outcome is Outcome.OK, world.record(GRPC_SERVER).reason
        async with grpc.aio.insecure_channel(f"unix:{address}") as channel:
            yield world, probe, Client(channel)


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
async def test_handlers_may_answer_with_the_bytes_of_messages(tmp_path: Path) -> None:
    class Prepared(Probe):
        async def echo(self, request: Text, context: Any) -> Any:
            return Encoded(Text(value="whole").SerializeToString())

        async def count(self, request: Text, context: Any) -> AsyncGenerator[Any]:
            yield Encoded(Text(value="first").SerializeToString())
            yield Text(value="second")

    configs = {GRPC_SERVER: {"address": f"{tmp_path}/m.sock"}}
    async with (
        running(tmp_path, GRPC_SERVER, plug(GRPC, "probe", Prepared()), configs=configs),
        grpc.aio.insecure_channel(f"unix:{tmp_path}/m.sock") as channel,
    ):
        client = Client(channel)
        assert await client.unary("Echo") == "whole"
        assert [message.value async for message in client.server_stream("Count")] == ["first", "second"]


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


@pytest.mark.parametrize("name", ERRORS)
@on_loop
async def test_error_class_survives_the_wire(tmp_path: Path, name: str) -> None:
    wire = WIRE[ERRORS[name]]
    async with served(tmp_path) as (_, _, client):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.unary("Fail", name)
    assert caught.value.code().value[0] == wire.code
    assert caught.value.details() == (f"it broke: {wire.suffix}" if wire.suffix else "it broke")


def test_every_error_class_is_tried() -> None:
    def below(kind: type[MooredError]) -> set[type[MooredError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__() if child.__module__ == errors.__name__))

    assert below(MooredError) - {MooredError} <= set(ERRORS.values())


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
        running(tmp_path, GRPC_SERVER, plug(GRPC, "probe", talkative), configs=configs),
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
    async with served(tmp_path, plug(METRICS, "log", log)) as (_, _, client):
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
    async with served(tmp_path, plug(METRICS, "log", log)) as (_, probe, client):
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
    async with served(tmp_path, plug(METRICS, "log", log)) as (_, _, client):
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
    plugins = (plug(METRICS, "broken", Broken()), plug(METRICS, "log", log))
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

    plugins = (plug(GRPC, "a-broken", Broken()), plug(GRPC, "z-thief", Thief()))
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

    async with served(tmp_path, plug(GRPC, "old", Old())) as (_, _, client):
        assert await client.unary("/test.Old/Hello", "you") == "hello you"
        assert await fails(client.unary("/test.Old/Bye")) == (
            "UNIMPLEMENTED",
            "unknown method Bye for service test.Old",
        )
