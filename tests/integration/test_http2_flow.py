"""The gRPC server's HTTP/2, met by raw frames: windows both ways, messages in data, clients that ask for too much."""

from __future__ import annotations

import asyncio
import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue as Text

from harness import on_loop
from moored.kernel.ports.services import GrpcRegistrar
from moored.plugins.server.grpc import connection
from rawhttp2 import (
    ACK,
    CALM,
    CANCEL,
    DATA,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    HEADERS,
    INITIAL_WINDOW,
    MAX_FRAME_SIZE,
    NO_ERROR,
    PING,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    RESET,
    Session,
    calls_alive,
    connections,
    eventually,
    flooded,
    frame,
    greeted,
    handlers,
    listening,
    message,
    more,
    plain,
    request,
    session,
    settings,
)

MIB = 1 << 20
MAX_WINDOW = (1 << 31) - 1
TEXT = "x" * 3000
TEXT_BYTES = len(message(TEXT))

# --- answers ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_answer_waits_for_the_window_of_its_stream(tmp_path: Path) -> None:
    async with session(tmp_path, (INITIAL_WINDOW, 100)) as (raw, _):
        raw.call(1, "Echo", TEXT)
        await raw.settled()
        assert len(raw.answers[1].data) == 100
        raw.send(more(1, 50))
        await raw.settled()
        assert len(raw.answers[1].data) == 150
        raw.send(more(1, TEXT_BYTES))
        assert (await raw.until(1)).texts == [TEXT]


@on_loop
async def test_answer_waits_for_the_window_of_the_connection(tmp_path: Path) -> None:
    async with session(tmp_path, (INITIAL_WINDOW, MIB)) as (raw, _):
        raw.call(1, "Big", "100000")
        await raw.received(1, 65535)
        raw.call(3)
        await raw.settled()
        assert len(raw.answers[1].data) == 65535
        assert not raw.answers[3].data
        raw.send(more(0, MIB))
        assert len((await raw.until(1)).texts[0]) == 100000
        assert (await raw.until(3)).texts == ["x"]


@on_loop
async def test_answer_without_room_holds_back_no_other_stream(tmp_path: Path) -> None:
    async with session(tmp_path, (INITIAL_WINDOW, 0)) as (raw, _):
        raw.call(1, "Echo", TEXT)
        raw.open(3)
        raw.send(more(3, 1000), frame(DATA, END_STREAM, 3, message("y")))
        assert (await raw.until(3)).texts == ["y"]
        assert not raw.answers[1].data


@on_loop
async def test_window_that_settings_shrank_below_zero_must_be_filled_first(tmp_path: Path) -> None:
    async with session(tmp_path, (INITIAL_WINDOW, 1000)) as (raw, _):
        raw.call(1, "Echo", TEXT)
        await raw.received(1, 1000)
        raw.send(settings((INITIAL_WINDOW, 0)), more(1, 500))
        await raw.settled()
        raw.send(more(1, 500))
        await raw.settled()
        assert len(raw.answers[1].data) == 1000
        raw.send(more(1, 1))
        await raw.settled()
        assert len(raw.answers[1].data) == 1001
        raw.send(settings((INITIAL_WINDOW, 10000)))
        assert (await raw.until(1)).texts == [TEXT]


@on_loop
async def test_answer_is_cut_into_frames_that_the_client_takes(tmp_path: Path) -> None:
    async with session(tmp_path, (INITIAL_WINDOW, 4 * MIB), (MAX_FRAME_SIZE, 16384)) as (raw, _):
        raw.send(more(0, 4 * MIB))
        raw.call(1, "Big", str(2 * MIB))
        assert len((await raw.until(1)).texts[0]) == 2 * MIB


@on_loop
async def test_settings_that_take_a_window_over_its_end_break_the_connection(tmp_path: Path) -> None:
    async with session(tmp_path, (INITIAL_WINDOW, 10)) as (raw, _):
        raw.open(1, "Chat")
        raw.send(more(1, MAX_WINDOW - 10))
        await raw.settled()
        raw.send(settings((INITIAL_WINDOW, 11)))
        assert await raw.broken() == FLOW_CONTROL_ERROR


@pytest.mark.parametrize(("size", "code"), [(0, PROTOCOL_ERROR), (MAX_WINDOW, FLOW_CONTROL_ERROR)])
@on_loop
async def test_wrong_window_of_a_call_ends_it_and_its_handler(tmp_path: Path, size: int, code: int) -> None:
    async with session(tmp_path) as (raw, probe):
        raw.call(1, "Hang")
        await probe.began.wait()
        raw.send(more(1, size))
        assert (await raw.until(1)).reset == code
        await probe.cancelled.wait()
        raw.send(more(1, size))
        await raw.works(3)


@on_loop
async def test_reset_cancels_a_handler_that_waits_for_room(tmp_path: Path) -> None:
    async with session(tmp_path, (INITIAL_WINDOW, 10)) as (raw, probe):
        raw.call(1, "Endless")
        await raw.received(1, 10)
        raw.send(frame(RESET, 0, 1, struct.pack(">I", CANCEL)))
        await probe.cancelled.wait()
        await eventually(lambda: calls_alive() == 0)


@on_loop
async def test_deadline_ends_a_call_that_waits_for_room(tmp_path: Path) -> None:
    async with session(tmp_path, (INITIAL_WINDOW, 10)) as (raw, probe):
        raw.call(1, "Endless", "x", ("grpc-timeout", "100m"))
        answer = await raw.until(1)
        assert answer.status[0] == 4
        await probe.cancelled.wait()


class Duet:
    """Two tasks that write to one stream at once."""

    def __init__(self, count: int) -> None:
        self.count = count

    def register(self, server: GrpcRegistrar) -> None:
        handler = grpc.unary_stream_rpc_method_handler(self.sing, Text.FromString, Text.SerializeToString)
        server.add_registered_method_handlers("test.Duet", {"Sing": handler})

    async def sing(self, request: Text, context: Any) -> None:
        async def one(voice: str) -> None:
            for number in range(self.count):
                await context.write(Text(value=voice * (number * 37 % 900)))

        async with asyncio.TaskGroup() as group:
            group.create_task(one("a"))
            group.create_task(one("b"))


@on_loop
async def test_messages_of_two_tasks_do_not_mix(tmp_path: Path) -> None:
    async with session(tmp_path, (INITIAL_WINDOW, 7), service=Duet(60)) as (raw, _):
        raw.send(more(0, MIB))
        raw.call(1, "/test.Duet/Sing")
        turn = 0
        while not (raw.answers.get(1) and raw.answers[1].ended):
            turn += 1
            raw.send(more(1, 1 + turn * 331 % 1200))
            await raw.settled()
        texts = raw.answers[1].texts
    for voice in "ab":
        expected = [voice * (number * 37 % 900) for number in range(60)]
        assert [text for text in texts if text and set(text) == {voice}] == [text for text in expected if text]
    assert len(texts) == 120


# --- requests ---------------------------------------------------------------------------------------------------------


async def pushed(raw: Session, stream: int, data: bytes) -> None:
    """Send all data of a stream and its end as fast as the server's windows allow."""
    sent = 0
    while sent < len(data):
        room = min(MIB + raw.updates(stream), 16 * MIB + raw.updates(0)) - sent
        if room <= 0:
            assert await raw.next(), raw.goaway
            continue
        size = min(room, 16384)
        raw.send(frame(DATA, 0, stream, data[sent : sent + size]))
        await raw.writer.drain()
        sent += size
    raw.send(frame(DATA, END_STREAM, stream))


@on_loop
async def test_windows_are_given_back_while_a_long_message_comes(tmp_path: Path) -> None:
    text = "x" * (16 * MIB - 10)
    async with session(tmp_path, (INITIAL_WINDOW, MAX_WINDOW)) as (raw, _):
        raw.send(more(0, 1 << 30))
        while not raw.updates(0):
            await raw.next()
        raw.others.clear()
        raw.open(1)
        await pushed(raw, 1, message(text))
        assert (await raw.until(1)).texts == [text]
        # And the connection's window is whole enough for another one.
        raw.open(3)
        await pushed(raw, 3, message(text))
        assert (await raw.until(3)).texts == [text]


def unread(raw: Session, stream: int) -> None:
    """Begin a call whose handler takes one message, and never another."""
    raw.open(stream, "ChatByReading")
    raw.send(frame(DATA, 0, stream, message("taken")))


@on_loop
async def test_client_that_ignores_the_window_of_a_stream_loses_the_call(tmp_path: Path) -> None:
    async with session(tmp_path, (INITIAL_WINDOW, 0)) as (raw, probe):
        unread(raw, 1)
        part = message(bytes(16379))
        raw.send(*(frame(DATA, 0, 1, part) for _ in range(64)))
        assert (await raw.until(1)).reset == FLOW_CONTROL_ERROR
        await probe.cancelled.wait()
        raw.open(3)
        raw.send(more(3, 1000), frame(DATA, END_STREAM, 3, message("y")))
        assert (await raw.until(3)).texts == ["y"]


@on_loop
async def test_padding_counts_as_data_and_is_given_back(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        raw.open(1, "Join")
        await raw.settled()
        before = raw.updates(0)
        for _ in range(80 * 64):
            raw.send(frame(DATA, 8, 1, b"\xff" + bytes(255)))
        raw.send(frame(DATA, END_STREAM, 1, message("z")))
        assert (await raw.until(1)).texts == ["z"]
        assert raw.updates(1) >= MIB // 2
        assert raw.updates(0) == before


@on_loop
async def test_client_that_ignores_the_window_of_the_connection_is_sent_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_UNREAD", 0)
    async with listening(tmp_path):
        begin, part = plain(request("ChatByReading")), message(bytes(16379))
        said = settings((INITIAL_WINDOW, 0))
        for stream in range(1, 41, 2):
            said += frame(HEADERS, END_HEADERS, stream, begin) + frame(DATA, 0, stream, message("taken"))
            said += frame(DATA, 0, stream, part) * 63
        raw = await flooded(tmp_path, said)
        assert await raw.broken() == FLOW_CONTROL_ERROR


@on_loop
async def test_handler_that_does_not_read_holds_back_its_client_and_nobody_else(tmp_path: Path) -> None:
    text = "y" * (16 * MIB - 10)
    async with session(tmp_path, (INITIAL_WINDOW, 0)) as (raw, probe):
        unread(raw, 1)
        await probe.began.wait()
        part = message(bytes(16379))
        raw.send(*(frame(DATA, 0, 1, part) for _ in range(63)))
        await raw.settled()
        assert raw.updates(1) == 0
        raw.send(settings((INITIAL_WINDOW, MAX_WINDOW)), settings((INITIAL_WINDOW, 0)))
        raw.open(3)
        raw.send(more(0, 1 << 30), more(3, MAX_WINDOW))
        raw.others.clear()
        await pushed(raw, 3, message(text))
        assert (await raw.until(3)).texts == [text]


@on_loop
async def test_unread_bytes_of_a_call_that_ends_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_UNREAD", 0)
    part = message(bytes(16379))
    async with session(tmp_path, (INITIAL_WINDOW, 0)) as (raw, _):
        await raw.settled()
        before = raw.updates(0)
        for number in range(40):
            stream = 2 * number + 1
            unread(raw, stream)
            raw.send(*(frame(DATA, 0, stream, part) for _ in range(63)))
            raw.send(frame(RESET, 0, stream, bytes(4)))
            await raw.settled()
        assert raw.updates(0) - before > 24 * MIB


# --- messages ---------------------------------------------------------------------------------------------------------


@on_loop
async def test_messages_need_not_fit_their_frames(tmp_path: Path) -> None:
    words = ["a", "", "bb" * 100, "c"]
    data = b"".join(message(word) for word in words)
    async with session(tmp_path) as (raw, _):
        for number, size in enumerate((1, 4, 7, len(data))):
            stream = 2 * number + 1
            raw.open(stream, "Join")
            raw.send(*(frame(DATA, 0, stream, data[at : at + size]) for at in range(0, len(data), size)))
            raw.send(frame(DATA, END_STREAM, stream))
            assert (await raw.until(stream)).texts == ["".join(words)]


@pytest.mark.parametrize("method", ["Echo", "Join", "Count", "Chat"])
@pytest.mark.parametrize("data", [b"\0", b"\0\0\0\0", message(b"abc")[:-1], message(bytes(20000))[:10]])
@on_loop
async def test_end_in_the_middle_of_a_message_is_an_internal_error(tmp_path: Path, method: str, data: bytes) -> None:
    async with session(tmp_path) as (raw, _):
        raw.open(1, method)
        raw.send(frame(DATA, END_STREAM, 1, data))
        assert (await raw.until(1)).status == (13, "unexpected EOF")


@on_loop
async def test_empty_message_is_a_message(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        raw.open(1)
        raw.send(frame(DATA, END_STREAM, 1, message(b"")))
        answer = await raw.until(1)
        assert (answer.texts, answer.status) == ([""], (0, ""))


@pytest.mark.parametrize("method", ["Echo", "Count"])
@on_loop
async def test_request_without_its_message_is_refused(tmp_path: Path, method: str) -> None:
    async with session(tmp_path) as (raw, _):
        raw.open(1, method, flags=END_STREAM)
        raw.open(3, method)
        raw.send(frame(DATA, END_STREAM, 3))
        assert [(await raw.until(stream)).status for stream in (1, 3)] == [(2, "EOF")] * 2


@on_loop
async def test_call_whose_message_never_comes_ends_at_its_deadline(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        raw.open(1, "Echo", ("grpc-timeout", "30m"))
        raw.send(frame(DATA, 0, 1, message("long")[:-1]))
        raw.open(3, "Echo", ("grpc-timeout", "0n"))
        assert (await raw.until(3)).status == (4, "context deadline exceeded")
        assert (await raw.until(1)).status == (4, "context deadline exceeded")
        await raw.works(5)
        assert calls_alive() == 0


@on_loop
async def test_too_long_message_is_refused_as_soon_as_its_length_is_known(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        for stream, method in ((1, "Echo"), (3, "Chat")):
            raw.open(stream, method)
            raw.send(frame(DATA, 0, stream, struct.pack(">BI", 0, 0xFFFFFFFF)))
            answer = await raw.until(stream)
            assert answer.status == (8, "grpc: received message larger than max (4294967295 vs. 16777216)")


# --- compression ------------------------------------------------------------------------------------------------------


def packed(coding: str, data: bytes) -> bytes:
    return message(gzip.compress(data) if coding == "gzip" else zlib.compress(data), packed=True)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@on_loop
async def test_compressed_messages_are_read(tmp_path: Path, coding: str) -> None:
    async with session(tmp_path) as (raw, _):
        raw.open(1, "Join", ("grpc-encoding", coding))
        for word in ("hello ", "", "world"):
            raw.send(frame(DATA, 0, 1, packed(coding, Text(value=word).SerializeToString())))
        raw.send(frame(DATA, END_STREAM, 1, message(" plain")))
        answer = await raw.until(1)
        assert (answer.texts, answer.status) == (["hello world plain"], (0, ""))


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@on_loop
async def test_compressed_message_may_be_as_long_as_any_other_and_no_longer(tmp_path: Path, coding: str) -> None:
    async with session(tmp_path, max_recv_message_size=1000) as (raw, _):
        for stream, size, status in ((1, 997, 0), (3, 998, 8), (5, 50_000_000, 8)):
            raw.open(stream, "Echo", ("grpc-encoding", coding))
            data = b"\n" + (b"\xe5\x07" if size == 997 else b"\xe6\x07") + b"x" * size
            raw.send(*(frame(DATA, 0, stream, part) for part in _parts(packed(coding, data))))
            assert (await raw.until(stream)).status[0] == status


def _parts(data: bytes) -> list[bytes]:
    return [data[at : at + 16384] for at in range(0, len(data), 16384)]


@pytest.mark.parametrize(
    ("coding", "data", "code", "text"),
    [
        ("identity", packed("gzip", b""), 13, "compressed flag set with identity"),
        ("snappy", packed("gzip", b""), 12, "Decompressor is not installed for grpc-encoding"),
        ("gzip", message(b"not gzip", packed=True), 13, "failed to decompress"),
        ("gzip", message(b"", packed=True), 13, "unexpected EOF"),
        ("gzip", message(gzip.compress(b"cut")[:-1], packed=True), 13, "unexpected EOF"),
        ("gzip", packed("deflate", b"other"), 13, "failed to decompress"),
    ],
)
@pytest.mark.parametrize("method", ["Echo", "Join", "ChatByReading"])
@on_loop
async def test_message_that_cannot_be_decompressed_is_refused(
    tmp_path: Path, method: str, coding: str, data: bytes, code: int, text: str
) -> None:
    async with session(tmp_path) as (raw, _):
        raw.open(1, method, ("grpc-encoding", coding))
        raw.send(frame(DATA, 0, 1, data + message("after")))
        answer = await raw.until(1)
        assert answer.status[0] == code
        assert text in answer.status[1]
        assert not answer.data
        await raw.works(3)
        await eventually(lambda: calls_alive() == 0)


# --- too much ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [frame(RESET, 0, 0, bytes(4)), more(0, 0)], ids=["rapid reset", "made you reset"])
@on_loop
async def test_10000_calls_that_are_reset_leave_nothing_behind(tmp_path: Path, ending: bytes) -> None:
    async with session(tmp_path) as (raw, _):
        raw.call(1, "Echo", "x", ("grpc-timeout", "99999999H"))
        block = plain(request("Hang", ("grpc-timeout", "99999999H")))
        for stream in range(5, 20005, 2):
            number = struct.pack(">I", stream)
            raw.send(frame(HEADERS, END_HEADERS, stream, block), frame(DATA, END_STREAM, stream, message("x")))
            raw.send(ending[:5] + number + ending[9:])
            if stream % 1000 == 5:
                await raw.settled()
        await raw.settled()
        await raw.works(20005)
        await eventually(lambda: handlers() == 0 and calls_alive() == 0)


@pytest.mark.parametrize("asking", [frame(PING, payload=bytes(8)), settings()], ids=["pings", "settings"])
@on_loop
async def test_client_that_asks_and_does_not_read_is_sent_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asking: bytes
) -> None:
    monkeypatch.setattr(connection, "WRITE_BUFFER", 1 << 16)
    async with listening(tmp_path):
        raw = await flooded(tmp_path, asking * 100_000)
        assert await raw.broken() == CALM
        assert sum(one[1] == ACK for one in raw.others) < 60_000


@on_loop
async def test_answers_to_pings_count_only_while_the_client_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_REPLIES", 10)
    async with session(tmp_path, (INITIAL_WINDOW, MAX_WINDOW)) as (raw, _):
        for _ in range(20):
            await raw.settled()
        raw.send(more(0, 1 << 30))
        raw.call(1, "Big", str(8 * MIB))
        await eventually(lambda: connections()[0]._paused)
        await raw.settled()
        assert len((await raw.until(1)).texts[0]) == 8 * MIB


@on_loop
async def test_client_that_calls_and_does_not_read_is_sent_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "WRITE_BUFFER", 1 << 16)
    monkeypatch.setattr(connection, "MAX_WRITE_BUFFER", 1 << 20)
    async with listening(tmp_path):
        block = plain(request("/" + "x" * 3000 + "/Method"))
        calls = [frame(HEADERS, END_HEADERS | END_STREAM, stream, block) for stream in range(1, 4001, 2)]
        raw = await flooded(tmp_path, b"".join(calls))
        assert await raw.broken() == CALM
        await eventually(lambda: handlers() == 0 and calls_alive() == 0)


@on_loop
async def test_more_calls_at_once_than_allowed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_STREAMS", 3)
    async with session(tmp_path) as (raw, probe):
        for stream in (1, 3, 5):
            raw.call(stream, "Hang")
        raw.call(7, "Echo")
        assert (await raw.until(7)).reset == REFUSED_STREAM
        probe.release.set()
        for stream in (1, 3, 5):
            assert (await raw.until(stream)).texts == ["released"]
        await raw.works(9)


@on_loop
async def test_handlers_that_still_clean_up_count_as_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_STREAMS", 2)
    async with session(tmp_path) as (raw, probe):
        for stream in (1, 3):
            raw.call(stream, "HangHard")
        await probe.began.wait()
        await raw.settled()
        raw.send(frame(RESET, 0, 1, bytes(4)), frame(RESET, 0, 3, bytes(4)))
        raw.call(5, "Echo")
        assert (await raw.until(5)).reset == REFUSED_STREAM
        await eventually(lambda: handlers() == 0)
        await raw.works(7)


# --- the end ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_stop_tells_the_last_call_that_is_served_and_refuses_later_ones(tmp_path: Path) -> None:
    async with listening(tmp_path) as (world, probe), greeted(tmp_path) as raw:
        raw.call(1, "Echo")
        raw.call(3, "Hang")
        await probe.began.wait()
        stopping = asyncio.create_task(world.kernel.stop())
        while raw.goaway is None:
            assert await raw.next()
        assert raw.goaway[:2] == (3, NO_ERROR)
        raw.call(5, "Echo")
        assert (await raw.until(5)).reset == REFUSED_STREAM
        probe.release.set()
        assert (await raw.until(3)).texts == ["released"]
        assert not await raw.next()
        await stopping


@on_loop
async def test_call_that_came_together_with_the_stop_is_answered(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, probe):
        await raw.settled()
        (server,) = connections()
        server.data_received(frame(HEADERS, END_HEADERS, 1, raw.block(request("Hang"))))
        server.data_received(frame(DATA, END_STREAM, 1, message("x")))
        # The handler's task has not had its first step.
        server.cut()
        assert (await raw.until(1)).status == (14, "the daemon stops")
        assert not probe.began.is_set()
        assert calls_alive() == 0


@on_loop
async def test_call_that_ends_before_its_client_has_said_all_is_reset_gently(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        raw.open(1, "/no.such/Method")
        answer = await raw.until(1)
        assert answer.status[0] == 12
        while answer.reset is None:
            assert await raw.next()
        assert answer.reset == NO_ERROR
        raw.send(frame(DATA, 0, 1, message("late")))
        await raw.works(3)


@on_loop
async def test_deadline_while_a_refusal_settles_still_answers(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        raw.open(1, "/no.such/Method", ("grpc-timeout", "1m"))
        assert (await raw.until(1)).status[0] in (4, 12)
        await eventually(lambda: calls_alive() == 0)
