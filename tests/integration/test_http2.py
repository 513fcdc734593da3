"""The gRPC server's HTTP/2, met by raw frames over a real socket: what a connection is, and how it is broken."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from harness import on_loop
from moored.plugins.server.grpc import connection
from rawhttp2 import (
    ACK,
    CALM,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW,
    MAX_FRAME_SIZE,
    NO_ERROR,
    PADDED,
    PING,
    PREFACE,
    PRIORITISED,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH,
    RESET,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW,
    calls_alive,
    eventually,
    frame,
    greeted,
    handlers,
    listening,
    message,
    plain,
    request,
    session,
    settings,
    silent,
)

# --- the beginning ----------------------------------------------------------------------------------------------------


@on_loop
async def test_session_sent_byte_by_byte_is_understood(tmp_path: Path) -> None:
    async with listening(tmp_path), silent(tmp_path) as raw:
        said = PREFACE + settings((INITIAL_WINDOW, 1000)) + frame(HEADERS, END_HEADERS, 1, raw.block(request()))
        said += frame(DATA, 0, 1, message("by")) + frame(PING, payload=b"12345678")
        for number in said:
            raw.send(bytes((number,)))
            await raw.writer.drain()
        answer = await raw.until(1)
        assert (answer.texts, answer.status) == (["by"], (0, ""))
        await raw.settled()


@on_loop
async def test_server_greets_first_and_acknowledges_settings(tmp_path: Path) -> None:
    async with listening(tmp_path), silent(tmp_path) as raw:
        assert await raw.next()
        kind, flags, stream, payload = raw.others[0]
        assert (kind, flags, stream, len(payload) % 6) == (SETTINGS, 0, 0, 0)
        raw.send(PREFACE, settings())
        await raw.settled()
        assert (SETTINGS, ACK, 0, b"") in raw.others


@on_loop
async def test_client_that_says_nothing_is_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PREFACE_SECONDS", 0.05)
    async with listening(tmp_path), silent(tmp_path) as raw:
        while await raw.next():
            pass
        assert raw.goaway is None


@on_loop
async def test_preface_that_never_ends_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PREFACE_SECONDS", 0.05)
    async with listening(tmp_path), silent(tmp_path) as raw:
        raw.send(PREFACE[:-1])
        while await raw.next():
            pass
        async with greeted(tmp_path) as other:
            await other.works(1)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", PREFACE[:-1] + b"\0", b"\x16\x03\x01\x02\x00\x01", b"X"])
@on_loop
async def test_wrong_preface_is_refused(tmp_path: Path, said: bytes) -> None:
    async with listening(tmp_path), silent(tmp_path) as raw:
        raw.send(said)
        assert await raw.broken() == PROTOCOL_ERROR


@pytest.mark.parametrize(
    "first",
    [frame(PING, payload=bytes(8)), frame(HEADERS, END_HEADERS, 1), frame(77), frame(SETTINGS, ACK) + frame(PING)],
    ids=["ping", "headers", "unknown", "acknowledgement"],
)
@on_loop
async def test_first_frame_must_be_settings(tmp_path: Path, first: bytes) -> None:
    async with listening(tmp_path), silent(tmp_path) as raw:
        raw.send(PREFACE, first)
        assert await raw.broken() == PROTOCOL_ERROR


# --- frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (settings((ENABLE_PUSH, 2)), PROTOCOL_ERROR),
        (settings((INITIAL_WINDOW, 1 << 31)), FLOW_CONTROL_ERROR),
        (settings((MAX_FRAME_SIZE, 16383)), PROTOCOL_ERROR),
        (settings((MAX_FRAME_SIZE, 1 << 24)), PROTOCOL_ERROR),
        (frame(SETTINGS, payload=b"12345"), FRAME_SIZE_ERROR),
        (frame(SETTINGS, stream=1), PROTOCOL_ERROR),
        (frame(SETTINGS, ACK, payload=bytes(6)), FRAME_SIZE_ERROR),
        (frame(PING, payload=bytes(7)), FRAME_SIZE_ERROR),
        (frame(PING, stream=1, payload=bytes(8)), PROTOCOL_ERROR),
        (frame(GOAWAY, stream=1, payload=bytes(8)), PROTOCOL_ERROR),
        (frame(PUSH, END_HEADERS, 1, bytes(4)), PROTOCOL_ERROR),
        (frame(PRIORITY, stream=0, payload=bytes(5)), PROTOCOL_ERROR),
        (frame(RESET, stream=0, payload=bytes(4)), PROTOCOL_ERROR),
        (frame(RESET, stream=5, payload=bytes(4)), PROTOCOL_ERROR),
        (frame(WINDOW, payload=bytes(4)), PROTOCOL_ERROR),
        (frame(WINDOW, payload=b"\x7f\xff\xff\xff"), FLOW_CONTROL_ERROR),
        (frame(WINDOW, payload=bytes(3)), FRAME_SIZE_ERROR),
        (frame(WINDOW, stream=5, payload=b"\0\0\0\1"), PROTOCOL_ERROR),
        (frame(DATA, stream=0, payload=b"x"), PROTOCOL_ERROR),
        (frame(DATA, stream=5, payload=b"x"), PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 0), PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 2), PROTOCOL_ERROR),
        (frame(CONTINUATION, END_HEADERS, 1), PROTOCOL_ERROR),
        (frame(PING, payload=bytes(16385)), FRAME_SIZE_ERROR),
        (b"\xff\xff\xff\x06\0\0\0\0\0", FRAME_SIZE_ERROR),
    ],
)
@on_loop
async def test_frame_that_breaks_a_rule_breaks_the_connection(tmp_path: Path, said: bytes, code: int) -> None:
    async with session(tmp_path) as (raw, _):
        raw.send(said)
        assert await raw.broken() == code


@pytest.mark.parametrize(
    "said",
    [
        settings((ENABLE_PUSH, 0), (MAX_FRAME_SIZE, (1 << 24) - 1), (INITIAL_WINDOW, (1 << 31) - 1), (99, 1)),
        settings((HEADER_TABLE_SIZE, 0)),
        frame(SETTINGS, ACK),
        frame(99, 255, 7, b"from a later time"),
        frame(PING, ACK, payload=bytes(8)),
        frame(PRIORITY, stream=7, payload=bytes(5)),
        frame(GOAWAY, payload=bytes(8)),
        frame(PING, stream=1 << 31, payload=bytes(8)),
    ],
    ids=["settings", "table", "ack", "unknown", "pong", "priority", "goaway", "reserved bit"],
)
@on_loop
async def test_frame_that_means_nothing_here_is_passed_over(tmp_path: Path, said: bytes) -> None:
    async with session(tmp_path) as (raw, _):
        raw.send(said)
        await raw.works(9)


@on_loop
async def test_nothing_after_the_fault_is_looked_at(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, probe):
        raw.send(frame(WINDOW, payload=bytes(4)))
        raw.call(1, "Hang")
        assert await raw.broken() == PROTOCOL_ERROR
        assert raw.goaway is not None
        assert raw.goaway[0] == 0
        assert not probe.began.is_set()


@on_loop
async def test_text_of_a_goaway_is_short_whatever_the_client_sent(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        raw.send(frame(HEADERS, END_HEADERS, 1, b"\x40\x01x\x7f" + b"\xff" * 12000))
        assert await raw.broken() == COMPRESSION_ERROR
        assert raw.goaway is not None
        assert len(raw.goaway[2]) < 1000


# --- headers in several frames ----------------------------------------------------------------------------------------


@on_loop
async def test_headers_in_continuation_frames_are_put_together(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        block = raw.block(request("Where", ("containerd-namespace", "one")))
        raw.send(frame(HEADERS, 0, 1, block[:1]))
        for at in range(1, 20):
            raw.send(frame(CONTINUATION, 0, 1, block[at : at + 1]))
        raw.send(frame(CONTINUATION, 0, 1), frame(CONTINUATION, END_HEADERS, 1, block[20:]))
        raw.send(frame(DATA, END_STREAM, 1, message("x")))
        assert (await raw.until(1)).texts == ["one "]


@pytest.mark.parametrize(
    "between",
    [
        frame(PING, payload=bytes(8)),
        frame(DATA, 0, 1, b"x"),
        frame(CONTINUATION, END_HEADERS, 3),
        frame(HEADERS, END_HEADERS, 3),
        frame(99, 0, 1),
    ],
)
@on_loop
async def test_nothing_comes_between_headers_and_their_continuation(tmp_path: Path, between: bytes) -> None:
    async with session(tmp_path) as (raw, _):
        raw.send(frame(HEADERS, 0, 1, raw.block(request())), between)
        assert await raw.broken() == PROTOCOL_ERROR


@on_loop
async def test_headers_of_too_many_frames_are_refused(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        raw.send(frame(HEADERS, 0, 1), *(frame(CONTINUATION, 0, 1) for _ in range(connection.MAX_HEADER_FRAMES)))
        assert await raw.broken() == CALM


@on_loop
async def test_headers_of_too_many_bytes_are_refused(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        raw.send(frame(HEADERS, 0, 1, bytes(16384)), frame(CONTINUATION, 0, 1, b"x"))
        assert await raw.broken() == CALM


@on_loop
async def test_small_block_of_huge_headers_is_refused(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        raw.call(1, "Echo", "x", ("bomb", "x" * 3500))
        assert (await raw.until(1)).texts == ["x"]
        raw.send(frame(HEADERS, END_HEADERS, 3, raw.block(request()) + b"\xbe" * 10000))
        assert await raw.broken() == CALM


@pytest.mark.parametrize("block", [b"\xff\xff\xff\xff\xff\xff", b"\x80", b"\xfe", b"\x40\x05ab", b"\x3f\xff\xff\x7f"])
@on_loop
async def test_block_that_cannot_be_decompressed_breaks_the_connection(tmp_path: Path, block: bytes) -> None:
    async with session(tmp_path) as (raw, _):
        raw.send(frame(HEADERS, END_HEADERS, 1, block))
        assert await raw.broken() == COMPRESSION_ERROR


@on_loop
async def test_bad_block_of_a_refused_stream_breaks_the_connection_too(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        raw.open(1, "Chat")
        raw.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x80"))
        assert await raw.broken() == COMPRESSION_ERROR


@on_loop
async def test_block_of_nothing_but_indices_is_understood_each_time(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        blocks = set()
        for number in range(5):
            block = raw.block(request("Where", ("containerd-namespace", "one")))
            blocks.add(block)
            raw.send(frame(HEADERS, END_HEADERS, 2 * number + 1, block))
            raw.send(frame(DATA, END_STREAM, 2 * number + 1, message("x")))
        assert len(blocks) == 2
        assert [(await raw.until(2 * number + 1)).texts for number in range(5)] == [["one "]] * 5


@on_loop
async def test_same_bytes_mean_other_headers_once_the_table_has_changed(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        common = plain(request("Where"))
        stream, heard = 1, []
        for name in ("one", "two", "two", "one"):
            added = b"\x40" + plain([("containerd-namespace", name)])[1:]
            # Index 62 is the newest entry of the table.
            for block in (common + added, *[common + b"\xbe"] * 3):
                raw.send(frame(HEADERS, END_HEADERS, stream, block), frame(DATA, END_STREAM, stream, message("x")))
                heard += (await raw.until(stream)).texts
                stream += 2
        assert heard == [f"{name} " for name in ("one", "two", "two", "one") for _ in range(4)]


# --- what an HTTP request must be -------------------------------------------------------------------------------------

MALFORMED = {
    "upper case": [*request(), ("X-Name", "1")],
    "no method": request(**{":method": None}),
    "no scheme": request(**{":scheme": None}),
    "no path": request(**{":path": None}),
    "empty path": request(**{":path": ""}),
    "pseudo header after another": [*request(), (":authority", "late")],
    "pseudo header twice": [(":path", "/test.Probe/Echo"), *request()],
    "unknown pseudo header": [(":protocol", "websocket"), *request()],
    "pseudo header of an answer": [(":status", "200"), *request()],
    "other transfer encoding": request("Echo", ("te", "gzip")),
    "connection": request("Echo", ("connection", "close")),
    "transfer-encoding": request("Echo", ("transfer-encoding", "chunked")),
    "keep-alive": request("Echo", ("keep-alive", "1")),
    "proxy-connection": request("Echo", ("proxy-connection", "1")),
    "upgrade": request("Echo", ("upgrade", "h2c")),
    "line break": request("Echo", ("name", "a\r\nb: c")),
    "zero byte": request("Echo", ("name", "a\0b")),
    "no name": request("Echo", ("", "x")),
    "space in a name": request("Echo", ("a b", "x")),
}


@pytest.mark.parametrize("headers", MALFORMED.values(), ids=MALFORMED.keys())
@on_loop
async def test_malformed_request_is_reset_and_the_connection_lives(
    tmp_path: Path, headers: list[tuple[str, str]]
) -> None:
    async with session(tmp_path) as (raw, _):
        raw.send(frame(HEADERS, END_HEADERS, 1, raw.block(headers)))
        answer = await raw.until(1)
        assert (answer.reset, answer.headers) == (PROTOCOL_ERROR, [])
        # Once more, as the server may remember the block.
        raw.send(frame(HEADERS, END_HEADERS, 3, raw.block(headers)))
        assert (await raw.until(3)).reset == PROTOCOL_ERROR
        await raw.works(5)


@pytest.mark.parametrize(
    ("headers", "http", "code"),
    [
        (request(**{"content-type": "text/html"}), 415, 3),
        (request(**{"content-type": None}), 415, 3),
        (request(**{"content-type": "application/grpcweb"}), 415, 3),
        (request(**{":method": "GET"}), 405, 13),
        (request("Echo", ("grpc-timeout", "")), 400, 13),
        (request("Echo", ("grpc-timeout", "5")), 400, 13),
        (request("Echo", ("grpc-timeout", "-5S")), 400, 13),
        (request("Echo", ("grpc-timeout", "123456789S")), 400, 13),
        (request("Echo", ("grpc-timeout", "5s")), 400, 13),
        (request("Echo", ("grpc-timeout", "\u0665S")), 400, 13),
    ],
)
@on_loop
async def test_request_of_something_else_than_grpc_is_told_so(
    tmp_path: Path, headers: list[tuple[str, str]], http: int, code: int
) -> None:
    async with session(tmp_path) as (raw, _):
        raw.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, raw.block(headers)))
        answer = await raw.until(1)
        assert (answer.headers[0][":status"], answer.status[0]) == (str(http), code)
        raw.send(frame(HEADERS, END_HEADERS, 3, raw.block(headers)))
        answer = await raw.until(3)
        while answer.reset is None:
            assert await raw.next()
        assert answer.reset == NO_ERROR
        await raw.works(5)


@pytest.mark.parametrize("kind", ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"])
@on_loop
async def test_content_types_of_grpc_are_served(tmp_path: Path, kind: str) -> None:
    async with session(tmp_path) as (raw, _):
        headers = request(**{"content-type": kind})
        raw.send(frame(HEADERS, END_HEADERS, 1, raw.block(headers)), frame(DATA, END_STREAM, 1, message("x")))
        assert (await raw.until(1)).texts == ["x"]


@on_loop
async def test_text_of_a_refusal_is_short_whatever_the_client_sent(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        headers = request(**{"content-type": "é" * 2000})
        raw.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, raw.block(headers)))
        assert len((await raw.until(1)).status[1]) < 1000


@pytest.mark.parametrize("value", ["é", "\u0665", "!!!", "a", "AAAA,é", "=="])
@on_loop
async def test_binary_header_that_is_no_base64_is_left_out(tmp_path: Path, value: str) -> None:
    async with session(tmp_path) as (raw, _):
        raw.call(1, "Echo", "x", ("some-bin", value))
        assert (await raw.until(1)).texts == ["x"]


@on_loop
async def test_header_that_is_no_utf8_reaches_the_handler_escaped(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        block = raw.block(request("Where")) + b"\0\x14containerd-namespace\x03a\xffb"
        raw.send(frame(HEADERS, END_HEADERS, 1, block), frame(DATA, END_STREAM, 1, message("x")))
        code, text = (await raw.until(1)).status
        assert code == 3
        assert "xff" in text


# --- padding and priority ---------------------------------------------------------------------------------------------


@on_loop
async def test_padding_is_taken_off(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        block = raw.block(request())
        priority = struct.pack(">IB", 0, 200)
        flags = END_HEADERS | PADDED | PRIORITISED
        raw.send(frame(HEADERS, flags, 1, b"\x09" + priority + block + bytes(9)))
        raw.send(frame(DATA, PADDED, 1, b"\0" + message("padded")[:3]))
        raw.send(frame(DATA, PADDED | END_STREAM, 1, b"\xff" + message("padded")[3:] + bytes(255)))
        raw.send(
            frame(HEADERS, END_HEADERS | PRIORITISED, 3, struct.pack(">IB", 1 << 31 | 1, 0) + raw.block(request()))
        )
        raw.send(frame(DATA, PADDED | END_STREAM, 3, b"\x05" + message("") + bytes(5)))
        assert (await raw.until(1)).texts == ["padded"]
        assert (await raw.until(3)).texts == [""]


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x05abcd", b"\xff" + bytes(254)])
@pytest.mark.parametrize("kind", [DATA, HEADERS])
@on_loop
async def test_more_padding_than_payload_breaks_the_connection(tmp_path: Path, kind: int, payload: bytes) -> None:
    async with session(tmp_path) as (raw, _):
        raw.open(1, "Chat")
        raw.send(frame(kind, PADDED | END_HEADERS, 1 if kind == DATA else 3, payload))
        assert await raw.broken() == PROTOCOL_ERROR


@pytest.mark.parametrize(("payload", "code"), [(bytes(4), FRAME_SIZE_ERROR), (b"\0\0\0\1\0", PROTOCOL_ERROR)])
@on_loop
async def test_headers_with_wrong_priority_break_the_connection(tmp_path: Path, payload: bytes, code: int) -> None:
    async with session(tmp_path) as (raw, _):
        raw.send(frame(HEADERS, END_HEADERS | PRIORITISED, 1, payload))
        assert await raw.broken() == code


@pytest.mark.parametrize(("payload", "code"), [(bytes(4), FRAME_SIZE_ERROR), (b"\0\0\0\1\0", PROTOCOL_ERROR)])
@on_loop
async def test_wrong_priority_breaks_the_connection_and_cancels_its_handlers(
    tmp_path: Path, payload: bytes, code: int
) -> None:
    async with session(tmp_path) as (raw, probe):
        raw.call(1, "Hang")
        await probe.began.wait()
        raw.send(frame(PRIORITY, 0, 1, payload))
        assert await raw.broken() == code
        await probe.cancelled.wait()


# --- streams ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_data_of_an_even_stream_breaks_the_connection(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        await raw.works(5)
        raw.send(frame(DATA, 0, 2, b"x"))
        assert await raw.broken() == PROTOCOL_ERROR


@on_loop
async def test_headers_of_a_stream_that_is_over_break_the_connection(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        await raw.works(5)
        raw.call(3)
        assert await raw.broken() == STREAM_CLOSED


@on_loop
async def test_data_of_a_stream_that_is_over_is_answered_by_a_reset(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        await raw.works(1)
        raw.send(frame(DATA, 0, 1, b"late"))
        await raw.settled()
        assert raw.answers[1].reset == STREAM_CLOSED
        await raw.works(3)


@pytest.mark.parametrize("said", [frame(DATA, 0, 1, b"more"), frame(HEADERS, END_HEADERS | END_STREAM, 1)])
@on_loop
async def test_client_that_goes_on_after_its_last_word_loses_the_call(tmp_path: Path, said: bytes) -> None:
    async with session(tmp_path) as (raw, probe):
        raw.call(1, "Hang")
        await probe.began.wait()
        raw.send(said)
        assert (await raw.until(1)).reset == STREAM_CLOSED
        await probe.cancelled.wait()
        await raw.works(3)


@on_loop
async def test_trailers_of_a_client_end_what_it_says(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, _):
        raw.open(1, "Join")
        raw.send(frame(DATA, 0, 1, message("a")))
        raw.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, raw.block([("some", "trailer")])))
        answer = await raw.until(1)
        assert (answer.texts, answer.status) == (["a"], (0, ""))


@on_loop
async def test_second_headers_that_do_not_end_the_stream_lose_the_call(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, probe):
        raw.open(1, "ChatByReading")
        await probe.began.wait()
        raw.send(frame(HEADERS, END_HEADERS, 1, raw.block([("some", "trailer")])))
        assert (await raw.until(1)).reset == PROTOCOL_ERROR
        await probe.cancelled.wait()


@on_loop
async def test_reset_cancels_the_handler(tmp_path: Path) -> None:
    async with session(tmp_path) as (raw, probe):
        raw.call(1, "Hang")
        await probe.began.wait()
        raw.send(frame(RESET, 0, 1, bytes(4)))
        await probe.cancelled.wait()
        await raw.settled()
        assert 1 not in raw.answers
        await raw.works(3)


@on_loop
async def test_client_that_vanishes_leaves_no_handler_and_no_call(tmp_path: Path) -> None:
    async with listening(tmp_path) as (_, probe):
        async with greeted(tmp_path) as raw:
            raw.call(1, "Hang")
            raw.open(3, "Chat")
            raw.open(5, "Echo")
            raw.open(7, "Echo", ("grpc-timeout", "99999999H"))
            raw.send(frame(HEADERS, 0, 9, b""))
            await probe.began.wait()
        await probe.cancelled.wait()
        await eventually(lambda: calls_alive() == 0 and handlers() == 0)
