"""Streams of ttrpc, all four kinds, and a client before servers that answer strangely."""

from __future__ import annotations

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue, UInt64Value

from integration.ttrpc_world import (
    SERVICE,
    answering,
    data,
    echo,
    open_stream,
    request,
    run,
    text,
    world,
)
from moored.api.ttrpc.frame import (
    DATA,
    END,
    HEADER,
    MAX_DATA,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    RESPONSE,
    Frame,
)
from moored.api.ttrpc.request_pb2 import Response
from moored.api.ttrpc.server import Kind
from moored.kernel.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    MooredError,
    NotFound,
    ResourceExhausted,
    Unknown,
)

# Streams.


def test_a_server_stream_is_data_frames_and_an_empty_end() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(request(1, "count", UInt64Value(value=2), REMOTE_CLOSED))
            assert [await raw.recv() for _ in range(3)] == [
                Frame(1, DATA, 0, b""),
                Frame(1, DATA, 0, UInt64Value(value=1).SerializeToString()),
                Frame(1, DATA, END, b""),
            ]
            client = await w.client()
            async with await open_stream(client, "count", Kind.SERVER_STREAM, UInt64Value(value=300)) as stream:
                assert [m.value async for m in stream] == list(range(300))
                assert await stream.recv() is None
            assert client.pending == 0

    run(main())


def test_a_client_stream_ends_with_an_empty_close_and_one_response() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(request(1, "join", flags=REMOTE_OPEN), data(1, "a"), Frame(1, DATA, 0), Frame(1, DATA, END))
            frame = await raw.recv()
            assert frame[:3] == (1, RESPONSE, 0)
            assert StringValue.FromString(Response.FromString(frame.data).payload).value == "a,"
            client = await w.client()
            async with await open_stream(client, "join", Kind.CLIENT_STREAM, response=StringValue) as stream:
                for n in range(300):
                    await stream.send(text(str(n)))
                assert (await stream.finish()).value == ",".join(map(str, range(300)))
                assert await stream.recv() is None
                await stream.close_send()
                with pytest.raises(FailedPrecondition, match=r"^ttrpc: stream closed$"):
                    await stream.send(text("late"))

    run(main())


@pytest.mark.parametrize("method", ["chat", "listen"])
def test_a_bidi_stream_goes_both_ways_until_each_side_ends(method: str) -> None:
    async def main() -> None:
        async with world() as w:
            client = await w.client()
            async with await open_stream(client, method, Kind.BIDI, response=StringValue) as stream:
                for word in ("a", "", "b"):
                    await stream.send(text(word))
                    assert await stream.recv() == text(word.upper())
                await stream.close_send()
                assert await stream.recv() is None
            raw = await w.raw()
            await raw.send(request(1, method, flags=REMOTE_OPEN), data(1, "q"), Frame(1, DATA, END))
            assert await raw.recv() == data(1, "Q")
            assert await raw.recv() == Frame(1, DATA, END)

    run(main())


def test_a_request_payload_is_the_first_message_of_a_client_half() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(request(1, "join", text("first"), REMOTE_OPEN), data(1, "second"), Frame(1, DATA, END))
            payload = Response.FromString((await raw.recv()).data).payload
            assert StringValue.FromString(payload).value == "first,second"

    run(main())


def test_a_client_half_may_be_one_message_in_a_closed_request() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(request(1, "join", text("only"), REMOTE_CLOSED))
            payload = Response.FromString((await raw.recv()).data).payload
            assert StringValue.FromString(payload).value == "only"

    run(main())


def test_an_empty_response_of_a_client_stream_is_a_message() -> None:
    async def main() -> None:
        async with world() as w:
            client = await w.client()
            async with await open_stream(client, "join", Kind.CLIENT_STREAM, response=StringValue) as stream:
                assert await stream.finish() == StringValue()

    run(main())


def test_the_server_may_end_first_and_the_stream_is_over() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(request(1, "chat", flags=REMOTE_OPEN), data(1, "stop"))
            assert await raw.recv() == Frame(1, DATA, END)
            await raw.send(data(1, "more"))
            assert await raw.status(1) == (3, "StreamID is no longer active")
            client = await w.client()
            async with await open_stream(client, "chat", Kind.BIDI, response=StringValue) as stream:
                await stream.send(text("stop"))
                assert await stream.recv() is None
                with pytest.raises(FailedPrecondition):
                    await stream.send(text("more"))

    run(main())


def test_an_error_ends_a_stream_after_the_messages_before_it() -> None:
    async def main() -> None:
        async with world() as w:
            w.echo.error = NotFound("the rest")
            client = await w.client()
            async with await open_stream(client, "count", Kind.SERVER_STREAM, UInt64Value(value=2)) as stream:
                assert [await stream.recv(), await stream.recv()] == [UInt64Value(value=0), UInt64Value(value=1)]
                for _ in range(2):
                    with pytest.raises(NotFound, match=r"^the rest$"):
                        await stream.recv()
            async with await open_stream(client, "chat", Kind.BIDI, response=StringValue) as chat:
                await chat.send(text("fail"))
                with pytest.raises(NotFound):
                    await chat.recv()
                with pytest.raises(NotFound):
                    await chat.send(text("more"))
            assert client.pending == 0

    run(main())


def test_a_closing_frame_with_data_delivers_it_and_is_refused() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(request(1, "join", flags=REMOTE_OPEN), data(1, "last", REMOTE_CLOSED))
            assert await raw.status(1) == (3, "data close message cannot include data")
            await w.echo.finished.wait()
            assert w.echo.seen == ["last"]
            await raw.send(request(3, "nothing"))  # one answer a stream: the next frame is the next call's
            assert await raw.recv() == Frame(3, RESPONSE, 0)

    run(main())


def test_a_message_too_long_for_a_frame_fails_alone() -> None:
    async def main() -> None:
        async with world() as w:
            client = await w.client()
            async with await open_stream(client, "join", Kind.CLIENT_STREAM, response=StringValue) as stream:
                with pytest.raises(ResourceExhausted):
                    await stream.send(text("x" * MAX_DATA))
                await stream.send(text("y"))
                assert (await stream.finish()).value == "y"

    run(main())


# Strange servers.


def test_the_client_skips_frames_that_are_not_for_it_and_takes_code_0_as_success() -> None:
    async def main() -> None:
        fine = Response(payload=text("ok").SerializeToString())
        fine.status.code = 0
        late = Frame(77, RESPONSE, 0, b"\xff")
        even = HEADER.pack(MAX_DATA + 1, 2, RESPONSE, 0) + bytes(MAX_DATA + 1)
        answer = Frame(1, RESPONSE, 0, fine.SerializeToString())
        async with answering(late, even, Frame(1, 9, 0, b"?"), answer, answer) as client:
            await echo(client, "ok")

    run(main())


ANSWERS: list[tuple[Frame | bytes, type[MooredError], str]] = [
    (Frame(1, RESPONSE, 0, b"\xff"), Internal, "unmarshalling response"),
    (Frame(1, RESPONSE, 0, Response(payload=b"\xff").SerializeToString()), Internal, "unmarshalling payload"),
    (Frame(1, DATA, 0, b""), Unknown, 'unexpected "data" message received: protocol error'),
    (HEADER.pack(MAX_DATA + 1, 1, RESPONSE, 0) + bytes(MAX_DATA + 1), ResourceExhausted, "message length 4194305"),
]


@pytest.mark.parametrize(("answer", "kind", "message"), ANSWERS)
def test_answers_that_make_no_sense_fail_their_call(answer: Frame, kind: type[MooredError], message: str) -> None:
    async def main() -> None:
        async with answering(answer) as client:
            with pytest.raises(kind, match=message):
                await echo(client)
            assert not client.closed

    run(main())


def test_a_closing_data_frame_of_a_server_may_carry_a_message() -> None:
    async def main() -> None:
        async with answering(data(1, "a"), data(1, "b", REMOTE_CLOSED)) as client:
            stream = await open_stream(client, "x", Kind.SERVER_STREAM, Empty(), StringValue)
            assert [m.value async for m in stream] == ["a", "b"]

    run(main())


def test_data_from_a_server_that_does_not_stream_fails_the_call() -> None:
    async def main() -> None:
        async with answering(data(1, "a")) as client:
            stream = await open_stream(client, "x", Kind.CLIENT_STREAM, response=StringValue)
            with pytest.raises(Unknown, match="received data from non-streaming server: protocol error"):
                await stream.recv()

    run(main())


def test_a_stream_gives_up_at_its_timeout() -> None:
    async def main() -> None:
        async with answering() as client:
            stream = await client.stream(SERVICE, "x", Kind.BIDI, StringValue, timeout=0.01)
            with pytest.raises(DeadlineExceeded):
                await stream.recv()
            assert client.pending == 0

    run(main())
