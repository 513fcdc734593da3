"""The ttrpc server and client keep every rule of the wire, on real sockets; raw sockets stand in for odd peers."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BytesValue, StringValue, UInt64Value

from integration.ttrpc_world import (
    NS,
    SERVICE,
    Echo,
    data,
    echo,
    request,
    run,
    stalled,
    text,
    world,
)
from moored.api.services.content.v1 import content_pb2
from moored.api.ttrpc.client import connect
from moored.api.ttrpc.frame import (
    DATA,
    END,
    HEADER,
    MAX_DATA,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    REQUEST,
    RESPONSE,
    Frame,
)
from moored.api.ttrpc.request_pb2 import Response
from moored.api.ttrpc.server import CallContext, Kind, Server, Services, methods_of
from moored.api.ttrpc.service import snake_case
from moored.kernel.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    MooredError,
    NotFound,
    ResourceExhausted,
    Unimplemented,
    Unknown,
)

# Unary.


def test_a_unary_call_is_one_request_and_one_response_with_flags_0() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(request(1, "unary", text("x")))
            frame = await raw.recv()
            assert frame[:3] == (1, RESPONSE, 0)
            response = Response.FromString(frame.data)
            assert not response.HasField("status")
            assert StringValue.FromString(response.payload).value == "x"

    run(main())


@pytest.mark.parametrize("flags", [REMOTE_CLOSED, REMOTE_OPEN])
def test_a_unary_method_is_served_whatever_the_flags(flags: int) -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(request(1, "unary", text("x"), flags), Frame(1, DATA, END))
            assert (await raw.recv())[:3] == (1, RESPONSE, 0)

    run(main())


def test_an_empty_message_is_a_message() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(request(1, "nothing"))
            assert await raw.recv() == Frame(1, RESPONSE, 0, b"")
            client = await w.client()
            assert await client.unary(SERVICE, "nothing", Empty(), Empty) == Empty()

    run(main())


def test_a_thousand_calls_at_once_each_get_their_own_answer() -> None:
    async def main() -> None:
        async with world() as w:
            client = await w.client()
            calls = (client.unary(SERVICE, "unary", text(str(n)), StringValue) for n in range(1000))
            answers = await asyncio.gather(*calls)
            assert [a.value for a in answers] == [str(n) for n in range(1000)]
            assert client.pending == 0

    run(main())


def test_a_slow_call_does_not_hold_up_the_next_one() -> None:
    async def main() -> None:
        async with world() as w:
            client = await w.client()
            slow = asyncio.create_task(client.unary(SERVICE, "hang", Empty(), Empty))
            await w.echo.entered.wait()
            await echo(client)
            assert not slow.done()
            w.echo.gate.set()
            assert await slow == Empty()

    run(main())


def test_metadata_arrives_in_order_and_namespace_is_its_first_value() -> None:
    async def main() -> None:
        async with world() as w:
            client = await w.client()
            metadata = {NS: ["k8s.io", "other"], "Traceparent": ["a"]}
            await client.unary(SERVICE, "unary", text("x"), StringValue, metadata=metadata, timeout=60)
            (context,) = w.echo.contexts
            assert context.metadata == {NS: ["k8s.io", "other"], "traceparent": ["a"]}
            assert context.namespace == "k8s.io"
            assert (context.service, context.method) == (SERVICE, "unary")
            remaining = context.remaining()
            assert remaining is not None
            assert 50 < remaining <= 60
            await echo(client)
            assert w.echo.contexts[1].namespace == ""
            assert w.echo.contexts[1].remaining() is None

    run(main())


def test_messages_up_to_the_limit_pass_and_longer_ones_are_not_written() -> None:
    async def main() -> None:
        async with world() as w:
            client = await w.client()
            fits = MAX_DATA - 100
            assert len((await client.unary(SERVICE, "sized", UInt64Value(value=fits), BytesValue)).value) == fits
            assert len((await client.unary(SERVICE, "unary", text("x" * fits), StringValue)).value) == fits
            with pytest.raises(ResourceExhausted, match=r"exceed maximum message size of 4194304$"):
                await client.unary(SERVICE, "unary", text("x" * MAX_DATA), StringValue)
            with pytest.raises(ResourceExhausted, match=r"^message length \d+ exceed maximum message size of 4194304$"):
                await client.unary(SERVICE, "sized", UInt64Value(value=MAX_DATA), BytesValue)
            assert w.echo.seen == ["x" * fits]
            await echo(client)

    run(main())


# Stream ids and frames.


def test_even_ids_are_refused() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            for frame in (request(2, "unary", text("x")), data(4, "x"), Frame(0, RESPONSE, 0)):
                await raw.send(frame)
                expected = (3, "StreamID must be odd for client initiated streams")
                assert await raw.status(frame.stream_id) == expected
            await raw.send(request(1, "unary", text("x")))
            assert (await raw.recv())[:2] == (1, RESPONSE)
            assert w.echo.seen == ["x"]

    run(main())


def test_ids_must_rise_and_may_leave_gaps() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(request(7, "unary", text("7")), request(0xFFFFFF01, "unary", text("gap")))
            assert {(await raw.recv()).stream_id for _ in range(2)} == {7, 0xFFFFFF01}
            for stream_id in (7, 5, 0xFFFFFF01):
                await raw.send(request(stream_id, "unary", text("again")))
                assert await raw.status(stream_id) == (3, "StreamID cannot be re-used and must increment")
            assert w.echo.seen == ["7", "gap"]

    run(main())


def test_data_for_unknown_and_finished_streams_is_refused() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(data(9, "x"))
            assert await raw.status(9) == (3, "StreamID is no longer active")
            await raw.send(request(11, "unary", text("x")))
            assert (await raw.recv())[:2] == (11, RESPONSE)
            await raw.send(data(11, "x"))
            assert await raw.status(11) == (3, "StreamID is no longer active")

    run(main())


def test_unknown_frame_types_are_ignored() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(*(Frame(1, kind, 0xFF, b"?") for kind in (0, RESPONSE, 4, 255)), request(1, "nothing"))
            assert await raw.recv() == Frame(1, RESPONSE, 0)

    run(main())


def test_an_oversize_frame_is_answered_and_the_connection_goes_on() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            size = MAX_DATA + 1
            await raw.send(HEADER.pack(size, 1, REQUEST, 0) + bytes(size), request(1, "nothing"))
            expected = (8, f"message length {size} exceed maximum message size of 4194304")
            assert await raw.status(1) == expected
            assert await raw.recv() == Frame(1, RESPONSE, 0)

    run(main())


def test_data_on_a_stream_whose_client_half_is_closed_is_refused() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(request(1, "gated_join", flags=REMOTE_OPEN), Frame(1, DATA, END), data(1, "late"))
            assert await raw.status(1) == (3, "data handling error: ttrpc: stream closed")
            await raw.send(request(3, "hang"))
            await w.echo.entered.wait()
            await raw.send(data(3, "for a unary call"))
            assert await raw.status(3) == (3, "data handling error: ttrpc: stream closed")
            await w.echo.cancelled.wait()
            await stalled(w)  # neither call has a second answer
            await raw.send(request(5, "nothing"))
            assert await raw.recv() == Frame(5, RESPONSE, 0)

    run(main())


# Errors.


def test_unknown_service_and_method_are_told_apart() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(request(1, "x", service="no.Such"), request(3, "Nope"))
            assert await raw.status(1) == (12, "service no.Such")
            assert await raw.status(3) == (12, "method Nope")
            client = await w.client()
            with pytest.raises(Unimplemented):
                await client.unary("no.Such", "x", Empty(), Empty)

    run(main())


def test_bytes_that_do_not_parse_are_told_apart() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(Frame(1, REQUEST, 0, b"\xff\xff"))
            code, message = await raw.status(1)
            assert code == 3
            assert message.startswith("unmarshal request error: ")
            await raw.send(
                request(3, "unary", payload=b"\xff\xff"),
                request(5, "join", flags=REMOTE_OPEN),
                Frame(5, DATA, 0, b"\xff\xff"),
            )
            for _ in range(2):
                frame = await raw.recv()
                status = Response.FromString(frame.data).status
                assert frame.stream_id in {3, 5}
                assert status.code == 13
                assert status.message.startswith("ttrpc: error unmarshalling payload: ")

    run(main())


ERRORS: list[tuple[Exception, int, str, type[MooredError]]] = [
    (NotFound("task 't'"), 5, "task 't': not found", NotFound),
    (NotFound("task t not found", bare=True), 5, "task t not found", NotFound),
    (AlreadyExists("x"), 6, "x: already exists", AlreadyExists),
    (Conflict("x"), 9, "x: conflict", Conflict),
    (Unknown("runc did not terminate"), 2, "runc did not terminate", Unknown),
    (ValueError("odd \udcff name"), 2, "odd \\udcff name", Unknown),
]


@pytest.mark.parametrize(("error", "code", "message", "kind"), ERRORS)
def test_error_class_survives_the_wire(error: Exception, code: int, message: str, kind: type[MooredError]) -> None:
    async def main() -> None:
        async with world() as w:
            w.echo.error = error
            raw = await w.raw()
            await raw.send(request(1, "fail"))
            assert await raw.status(1) == (code, message)
            client = await w.client()
            with pytest.raises(kind) as caught:
                await client.unary(SERVICE, "fail", Empty(), Empty)
            assert type(caught.value) is kind

    run(main())


def test_an_unexpected_error_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with world() as w:
            w.echo.error = ZeroDivisionError("by nought")
            client = await w.client()
            with pytest.raises(Unknown, match=r"^by nought$"):
                await client.unary(SERVICE, "fail", Empty(), Empty)

    run(main())

    (record,) = [r for r in caplog.records if r.name == "moored.ttrpc"]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_a_handler_that_gives_no_message_is_an_unknown_error() -> None:
    async def main() -> None:
        async with world() as w:
            with pytest.raises(Unknown, match=r"gave 'NoneType', wanted 'google\.protobuf\.Empty'"):
                await (await w.client()).unary(SERVICE, "wrong", Empty(), Empty)

    run(main())


def test_a_handler_that_gives_up_by_itself_is_code_1() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(request(1, "gives_up"))
            assert await raw.status(1) == (1, "context canceled")

    run(main())


# Time.


@pytest.mark.parametrize("nano", [1, 20_000_000, -1])
def test_the_server_ends_a_call_at_its_deadline(nano: int) -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(request(1, "hang", timeout_nano=nano))
            assert await raw.status(1) == (4, "context deadline exceeded")
            assert w.echo.cancelled.is_set() is w.echo.entered.is_set() is (nano > 0)

    run(main())


def test_a_handler_that_heeds_no_deadline_is_answered_with_its_result() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(request(1, "stubborn", timeout_nano=20_000_000))
            assert Response.FromString((await raw.recv()).data).HasField("status") is False

    run(main())


def test_a_stream_ends_at_its_deadline_too() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(request(1, "join", flags=REMOTE_OPEN, timeout_nano=10_000_000))
            assert await raw.status(1) == (4, "context deadline exceeded")

    run(main())


def test_a_client_that_gives_up_forgets_the_stream_and_drops_the_late_answer() -> None:
    async def main() -> None:
        async with world() as w:
            client = await w.client()
            with pytest.raises(DeadlineExceeded, match=r"^context deadline exceeded$"):
                await client.unary(SERVICE, "stubborn", Empty(), StringValue, timeout=0.01)
            assert client.pending == 0
            waiting = asyncio.create_task(client.unary(SERVICE, "hang", Empty(), Empty))
            await w.echo.entered.wait()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert client.pending == 0
            w.echo.gate.set()  # both answers come now
            await echo(client)

    run(main())


@pytest.mark.parametrize("seconds", [0, -1])
def test_no_time_left_sends_nothing(seconds: float) -> None:
    async def main() -> None:
        async with world() as w:
            client = await w.client()
            with pytest.raises(DeadlineExceeded):
                await client.unary(SERVICE, "unary", text("never"), StringValue, timeout=seconds)
            await echo(client)
            assert w.echo.seen == ["still here"]

    run(main())


# Registration.


def test_methods_come_from_a_descriptor_and_an_object() -> None:
    class Store:
        async def info(self, request: Message, context: CallContext) -> Message:
            return request

        async def ListStatuses(self, request: Message, context: CallContext) -> Message:
            return request

        async def read(self, request: Message, context: CallContext) -> AsyncIterator[Message]:
            yield request

        async def write(self, requests: AsyncIterator[Message], context: CallContext) -> AsyncIterator[Message]:
            async for message in requests:
                yield message

    descriptor = content_pb2.DESCRIPTOR.services_by_name["Content"]

    methods = methods_of(descriptor, Store())

    assert {name: m.kind for name, m in methods.items()} == {
        "Info": Kind.UNARY,
        "ListStatuses": Kind.UNARY,
        "Read": Kind.SERVER_STREAM,
        "Write": Kind.BIDI,
    }
    assert methods["Read"].request_type is content_pb2.ReadContentRequest
    assert methods["Read"].response_type is content_pb2.ReadContentResponse
    with pytest.raises(InvalidArgument, match=r"'object' has no method of 'containerd\.services\.content"):
        methods_of(descriptor, object())


def test_a_service_is_registered_once() -> None:
    services = Services()
    services.register("a", {})

    with pytest.raises(AlreadyExists, match="'a'"):
        services.register("a", {})
    assert services.names() == ("a",)


@pytest.mark.parametrize(
    ("name", "snake"),
    [("Create", "create"), ("CloseIO", "close_io"), ("ListPids", "list_pids"), ("IOClose", "io_close")],
)
def test_rpc_names_in_snake_case(name: str, snake: str) -> None:
    assert snake_case(name) == snake


def test_a_socket_left_behind_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        async with Server(Echo().services()) as server:
            await server.listen(str(path), mode=0o600)
            assert path.stat().st_mode & 0o777 == 0o600
            async with await connect(str(path)) as client:
                await echo(client)
        path.write_text("kept")
        async with Server(Echo().services()) as server:
            with pytest.raises(OSError, match="in use"):
                await server.listen(str(path))
        assert path.read_text() == "kept"

    run(main())


def test_an_abstract_socket_serves_too() -> None:
    async def main() -> None:
        path = f"\0moored-test-{os.getpid()}"
        async with Server(Echo().services()) as server:
            await server.listen(path)
            async with await connect(path) as client:
                await echo(client)

    run(main())
