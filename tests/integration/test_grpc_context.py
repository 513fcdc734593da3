"""What a handler is given beside its request, as grpc.aio documents a context, seen by a client of grpc.aio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue as Text

from harness import Client, on_loop
from moored.kernel.ports.services import GrpcRegistrar
from rawhttp2 import calls_alive, eventually, listening

Handler = Callable[[Text, Any], Awaitable[Any]]
INVALID = grpc.StatusCode.INVALID_ARGUMENT


class Given:
    """A service whose handlers are given by its test."""

    def __init__(self, unary: Handler, stream: Callable[[Text, Any], Any] | None = None) -> None:
        self.unary, self.stream = unary, stream

    def register(self, server: GrpcRegistrar) -> None:
        coding = {"request_deserializer": Text.FromString, "response_serializer": Text.SerializeToString}
        handlers = {"Do": grpc.unary_unary_rpc_method_handler(self.unary, **coding)}
        if self.stream is not None:
            handlers["Stream"] = grpc.unary_stream_rpc_method_handler(self.stream, **coding)
        server.add_registered_method_handlers("test.Given", handlers)


@asynccontextmanager
async def client(folder: Path, *handlers: Any) -> AsyncGenerator[Client]:
    """A client of these handlers; no call is left in the end."""
    async with listening(folder, Given(*handlers)), grpc.aio.insecure_channel(f"unix:{folder}/m.sock") as channel:
        yield Client(channel)
        await eventually(lambda: calls_alive() == 0)


def call(of: Client, **more: Any) -> Any:
    """Begin a call of the unary handler."""
    make = of.channel.unary_unary("/test.Given/Do", Text.SerializeToString, Text.FromString)
    return make(Text(value="x"), **more)


async def failure(of: Client, **more: Any) -> grpc.aio.AioRpcError:
    """How a call fails, which it must."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(of, **more)
    return caught.value


# --- status -----------------------------------------------------------------------------------------------------------


@on_loop
async def test_abort_ends_the_call_with_code_text_and_metadata(tmp_path: Path) -> None:
    async def handler(request: Text, context: Any) -> Text:
        context.set_trailing_metadata((("earlier", "1"),))
        await context.abort(INVALID, "no such thing: é%", (("later", "2"), ("some-bin", b"\0\xff")))
        raise AssertionError("abort returned")

    async with client(tmp_path, handler) as of:
        error = await failure(of)
    assert (error.code(), error.details()) == (INVALID, "no such thing: é%")
    assert set(error.trailing_metadata()) == {("earlier", "1"), ("later", "2"), ("some-bin", b"\0\xff")}


@on_loop
async def test_abort_that_is_caught_still_counts(tmp_path: Path) -> None:
    async def handler(request: Text, context: Any) -> Text:
        try:
            await context.abort(INVALID, "no")
        except grpc.aio.AbortError:
            return request
        raise AssertionError("abort returned")

    async with client(tmp_path, handler) as of:
        error = await failure(of)
    assert (error.code(), error.details()) == (INVALID, "no")


@pytest.mark.parametrize("code", [grpc.StatusCode.OK, 0, 99, None])
@on_loop
async def test_abort_never_ends_well(tmp_path: Path, code: Any) -> None:
    async def handler(request: Text, context: Any) -> Text:
        await context.abort(code, "no")
        raise AssertionError("abort returned")

    async with client(tmp_path, handler) as of:
        assert (await failure(of)).code() is grpc.StatusCode.UNKNOWN


@on_loop
async def test_abort_after_messages_ends_the_stream(tmp_path: Path) -> None:
    async def stream(request: Text, context: Any) -> Any:
        yield request
        await context.abort(INVALID, "no more")

    async with client(tmp_path, stream, stream) as of:
        got = of.channel.unary_stream("/test.Given/Stream", Text.SerializeToString, Text.FromString)(Text(value="x"))
        assert (await got.read()).value == "x"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await got.read()
        assert (caught.value.code(), caught.value.details()) == (INVALID, "no more")


@on_loop
async def test_code_that_is_set_fails_the_call_and_keeps_the_answer_back(tmp_path: Path) -> None:
    async def handler(request: Text, context: Any) -> Text:
        assert (context.code(), context.details()) == (grpc.StatusCode.OK, "")
        context.set_code(INVALID)
        context.set_details("not so")
        assert (context.code(), context.details()) == (INVALID, "not so")
        return request

    async with client(tmp_path, handler) as of:
        error = await failure(of)
    assert (error.code(), error.details()) == (INVALID, "not so")


@on_loop
async def test_code_ok_that_is_set_lets_the_answer_pass(tmp_path: Path) -> None:
    async def handler(request: Text, context: Any) -> Text:
        context.set_code(grpc.StatusCode.OK)
        context.set_details("all is well")
        return request

    async with client(tmp_path, handler) as of:
        got = call(of)
        assert ((await got).value, await got.code()) == ("x", grpc.StatusCode.OK)


@on_loop
async def test_metadata_that_cannot_be_sent_fails_the_call_and_not_the_connection(tmp_path: Path) -> None:
    async def handler(request: Text, context: Any) -> Text:
        context.set_trailing_metadata((("key", object()),))
        return request

    async with client(tmp_path, handler) as of:
        assert (await failure(of)).code() is grpc.StatusCode.UNKNOWN


# --- metadata ---------------------------------------------------------------------------------------------------------


@on_loop
async def test_metadata_passes_in_both_directions(tmp_path: Path) -> None:
    seen: list[tuple[str, str | bytes]] = []

    async def handler(request: Text, context: Any) -> Text:
        seen.extend(context.invocation_metadata())
        await context.send_initial_metadata((("first", "1"), ("first-bin", b"\1\2\3")))
        context.set_trailing_metadata((("last", "a b"), ("last-bin", b""), ("last-bin", bytes(range(256)))))
        assert len(context.trailing_metadata()) == 3
        return request

    sent = (("key", "one"), ("key", "two, three"), ("raw-bin", b"\0\xff,="), ("empty-bin", b""))
    async with client(tmp_path, handler) as of:
        got = call(of, metadata=sent)
        assert (await got).value == "x"
        initial, trailing = await got.initial_metadata(), await got.trailing_metadata()
    assert [pair for pair in seen if pair[0] != "user-agent"] == list(sent)
    assert {("first", "1"), ("first-bin", b"\1\2\3")} <= set(initial)
    assert list(trailing) == [("last", "a b"), ("last-bin", b""), ("last-bin", bytes(range(256)))]


@on_loop
async def test_initial_metadata_arrives_before_the_first_message(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def stream(request: Text, context: Any) -> Any:
        await context.send_initial_metadata((("first", "1"),))
        await go_on.wait()
        yield request

    async with client(tmp_path, stream, stream) as of:
        got = of.channel.unary_stream("/test.Given/Stream", Text.SerializeToString, Text.FromString)(Text(value="x"))
        assert ("first", "1") in tuple(await got.initial_metadata())
        go_on.set()
        assert (await got.read()).value == "x"
        assert await got.read() is grpc.aio.EOF


# --- the client, and the end ------------------------------------------------------------------------------------------


@on_loop
async def test_remaining_time_is_that_of_the_client(tmp_path: Path) -> None:
    seen: list[float | None] = []

    async def handler(request: Text, context: Any) -> Text:
        seen.append(context.time_remaining())
        return request

    async with client(tmp_path, handler) as of:
        await call(of)
        await call(of, timeout=50)
    assert seen[0] is None
    assert seen[1] is not None
    assert 40 < seen[1] < 51


@on_loop
async def test_client_on_a_unix_socket_is_nobody_in_particular(tmp_path: Path) -> None:
    seen: list[Any] = []

    async def handler(request: Text, context: Any) -> Text:
        seen.extend((context.peer(), context.peer_identities(), context.peer_identity_key(), context.auth_context()))
        return request

    async with client(tmp_path, handler) as of:
        await call(of)
    assert seen == ["unix:", None, None, {}]


@on_loop
async def test_done_callbacks_are_told_of_the_end(tmp_path: Path) -> None:
    told: list[tuple[bool, bool]] = []

    async def handler(request: Text, context: Any) -> Text:
        context.add_done_callback(lambda one: told.append((one.done(), one.cancelled())))
        assert not context.done()
        return request

    async with client(tmp_path, handler) as of:
        await call(of)
        await eventually(lambda: told)
    assert told == [(True, False)]


@on_loop
async def test_done_callbacks_are_told_of_a_cancelled_call(tmp_path: Path) -> None:
    began, told = asyncio.Event(), []

    async def handler(request: Text, context: Any) -> Text:
        context.add_done_callback(lambda one: told.append((one.done(), one.cancelled())))
        began.set()
        await asyncio.Event().wait()
        return request

    async with client(tmp_path, handler) as of:
        got = call(of)
        await began.wait()
        got.cancel()
        await eventually(lambda: told)
    assert told == [(True, True)]


@on_loop
async def test_deadline_counts_as_cancelled(tmp_path: Path) -> None:
    told: list[tuple[bool, float]] = []

    async def handler(request: Text, context: Any) -> Text:
        try:
            await asyncio.Event().wait()
        finally:
            told.append((context.cancelled(), context.time_remaining() < 0.1))
        return request

    async with client(tmp_path, handler) as of:
        assert (await failure(of, timeout=0.1)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: told)
    assert told == [(True, True)]


@on_loop
async def test_writing_after_the_client_has_gone_fails(tmp_path: Path) -> None:
    began, told = asyncio.Event(), []

    async def stream(request: Text, context: Any) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            try:
                await context.write(request)
            except Exception as error:
                told.append(str(error))
            raise

    async with client(tmp_path, stream, stream) as of:
        got = of.channel.unary_stream("/test.Given/Stream", Text.SerializeToString, Text.FromString)(Text(value="x"))
        await began.wait()
        got.cancel()
        await eventually(lambda: told)
    assert told == ["call '/test.Given/Stream' has ended"]


@on_loop
async def test_task_of_a_handler_that_reads_is_told_of_the_end(tmp_path: Path) -> None:
    began, told = asyncio.Event(), []

    class Service:
        def register(self, server: GrpcRegistrar) -> None:
            handler = grpc.stream_stream_rpc_method_handler(self.chat, Text.FromString, Text.SerializeToString)
            server.add_registered_method_handlers("test.Chat", {"Chat": handler})

        async def chat(self, requests: Any, context: Any) -> None:
            self.reading = asyncio.create_task(self.read(context))
            began.set()
            await asyncio.Event().wait()

        async def read(self, context: Any) -> None:
            try:
                await context.read()
            except Exception as error:
                told.append(str(error))

    async with listening(tmp_path, Service()), grpc.aio.insecure_channel(f"unix:{tmp_path}/m.sock") as channel:
        got = channel.stream_stream("/test.Chat/Chat", Text.SerializeToString, Text.FromString)()
        await began.wait()
        got.cancel()
        await eventually(lambda: told)
    assert told == ["the client gave up"]
