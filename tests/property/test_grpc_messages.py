"""What clients send to the gRPC server in any shape: messages, blocks of headers, and frames without any sense."""

from __future__ import annotations

import asyncio
import gzip
import struct
import tracemalloc
import zlib
from collections.abc import Coroutine
from typing import Any

import pytest
import structlog
from hpack import Decoder, Encoder, HPACKError
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import Probe
from moored.api.http2 import MAX_FRAME, Broken
from moored.kernel.errors import Internal, ResourceExhausted, Unimplemented
from moored.kernel.hooks import new_manager
from moored.plugins.server.grpc.calls import Calls
from moored.plugins.server.grpc.connection import Connection
from moored.plugins.server.grpc.headers import Blocks
from moored.plugins.server.grpc.messages import Incoming
from rawhttp2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW,
    PADDED,
    PREFACE,
    PRIORITISED,
    PRIORITY,
    RESET,
    SETTINGS,
    WINDOW,
    frame,
    message,
    plain,
    request,
)
from rawhttp2 import settings as settings_frame

LIMIT = 1000
CODINGS = {"identity": bytes, "gzip": gzip.compress, "deflate": zlib.compress}

# --- messages ---------------------------------------------------------------------------------------------------------


def split(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


@given(
    st.sampled_from(sorted(CODINGS)),
    st.lists(st.tuples(st.booleans(), st.binary(max_size=300)), max_size=8),
    st.lists(st.integers(0, 60), max_size=60),
    st.lists(st.booleans(), min_size=61, max_size=61),
)
def test_messages_survive_any_split_and_every_byte_is_given_back_once(
    coding: str, messages: list[tuple[bool, bytes]], sizes: list[int], reads: list[bool]
) -> None:
    incoming, pack = Incoming(coding, LIMIT), CODINGS[coding]
    wire = b"".join(
        message(pack(data), packed=True) if packed and coding != "identity" else message(data)
        for packed, data in messages
    )
    read, came, paid = [], 0, 0
    for piece, reading in zip(split(wire, sizes), reads, strict=False):
        came += len(piece)
        paid += incoming.feed(piece)
        while reading and incoming:
            data, size = incoming.take()
            read.append(data)
            paid += size
        assert paid <= came
        # Nobody is kept waiting for room in the middle of a message.
        assert incoming or paid == came
    incoming.end()
    while incoming:
        data, size = incoming.take()
        read.append(data)
        paid += size
    assert incoming.error is None
    assert read == [data for _, data in messages]
    assert paid == came == len(wire)


@given(st.sampled_from([*sorted(CODINGS), "snappy"]), st.lists(st.binary(max_size=200), max_size=8), st.booleans())
def test_no_bytes_whatever_raise_anything_else_than_what_is_documented(
    coding: str, pieces: list[bytes], reading: bool
) -> None:
    incoming, came, paid, fault = Incoming(coding, LIMIT), 0, 0, None
    for piece in pieces:
        came += len(piece)
        paid += incoming.feed(piece)
        while reading and incoming:
            try:
                data, size = incoming.take()
            except (Internal, ResourceExhausted, Unimplemented) as error:
                fault = error
                break
            assert len(data) <= LIMIT
            paid += size
        assert paid <= came
    if fault is not None:
        assert incoming.error is fault
        assert not incoming
    incoming.end()
    assert paid + incoming.drop() == came


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_bombs_that_nobody_has_read_stay_as_small_as_they_came(coding: str) -> None:
    bomb = message(CODINGS[coding](bytes(1 << 20)), packed=True)
    tracemalloc.start()
    try:
        incoming = Incoming(coding, 1 << 20)
        for _ in range(50):
            incoming.feed(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(incoming) == 50
    assert peak < 1 << 20


# --- headers ----------------------------------------------------------------------------------------------------------

names = st.sampled_from(["a", "b-bin", "containerd-namespace", "user-agent", "grpc-timeout", "te", "x" * 50])
values = st.sampled_from(["", "1", "trailers", "AAEC", "5S", "one", "two", "y" * 1500, "é"])
lists = st.lists(st.tuples(names, values), max_size=5)


def as_read(block: bytes, decoder: Decoder) -> Any:
    """What somebody who remembers nothing reads: the same headers, written out."""
    fields = decoder.decode(block, raw=True)
    return Blocks().read(plain((bytes(name), bytes(value)) for name, value in fields))


@settings(deadline=None)
@given(
    st.lists(st.tuples(lists, st.sampled_from([None, None, None, 0, 50, 200, 4096]), st.integers(1, 3)), max_size=30)
)
def test_block_read_again_means_what_it_means_now(
    said: list[tuple[list[tuple[str, str]], int | None, int]],
) -> None:
    encoder, decoder, blocks = Encoder(), Decoder(), Blocks()
    for extra, table, times in said:
        if table is not None:
            encoder.header_table_size = table
        for _ in range(times):
            block = encoder.encode(request("Echo", *extra))
            assert blocks.read(block) == as_read(block, decoder)


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=12), min_size=1, max_size=4), st.lists(st.integers(0, 3), max_size=30))
def test_same_bytes_mean_what_a_plain_decoder_says_whatever_came_before(pieces: list[bytes], order: list[int]) -> None:
    decoder, blocks, common = Decoder(), Blocks(), plain(request())
    for number in order:
        # An update of the table's size stands in front, everything else behind.
        piece = pieces[number % len(pieces)]
        block = piece + common if 0x20 <= piece[0] < 0x40 else common + piece
        try:
            expected = [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
        except (HPACKError, IndexError, ValueError):
            with pytest.raises(Broken):
                blocks.read(block)
            return
        found = blocks.read(block)
        assert found == Blocks().read(plain(expected))


@given(st.binary(max_size=400))
def test_no_block_whatever_raises_anything_else_than_broken(block: bytes) -> None:
    for start in (b"", plain(request()), plain(request("Echo", ("some-bin", "é")))):
        blocks = Blocks()
        try:
            blocks.read(start + block)
            blocks.read(start + block)
        except Broken:
            continue


# --- frames -----------------------------------------------------------------------------------------------------------


class Wire(asyncio.Transport):
    """A transport that keeps what is written, and takes nothing after the end."""

    def __init__(self, protocol: Connection) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = b""
        self.closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    def write(self, data: Any) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        assert not self.closed
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed


def new_calls() -> Calls:
    log = structlog.get_logger()
    calls = Calls(observers=[], hooks=new_manager(), log=log, max_receive=1 << 20, max_send=1 << 20)
    Probe().register(calls.registrar("probe"))
    return calls


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    faults: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        await coroutine
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert not faults


methods = st.sampled_from(["Echo", "Chat", "Join", "Count", "Hang", "ChatByReading", "Endless", "Crash", "/no/Method"])
extras = st.sampled_from([(), (("grpc-timeout", "1n"),), (("grpc-encoding", "gzip"),), (("te", "gzip"),)])
blocks_ = st.one_of(
    st.builds(lambda method, extra: plain(request(method, *extra)), methods, extras), st.binary(max_size=40)
)
streams = st.sampled_from([0, 1, 1, 1, 2, 3, 3, 5, 7, 9])
payloads = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([message("1"), message("x") + message("y"), message(b"\xff", packed=True), message(bytes(1000))]),
)
numbers = st.sampled_from([0, 1, 10, 70000, (1 << 31) - 1]).map(lambda number: struct.pack(">I", number))
sensible = st.one_of(
    st.builds(
        frame,
        st.just(HEADERS),
        st.sampled_from(
            [END_HEADERS, END_HEADERS, END_HEADERS | 1, 0, END_HEADERS | PADDED, END_HEADERS | PRIORITISED]
        ),
        streams,
        blocks_,
    ),
    st.builds(frame, st.just(CONTINUATION), st.sampled_from([END_HEADERS, 0]), streams, blocks_),
    st.builds(frame, st.just(DATA), st.sampled_from([0, 0, 1, PADDED]), streams, payloads),
    st.builds(frame, st.sampled_from([RESET, WINDOW]), st.just(0), streams, numbers),
    st.builds(lambda number: settings_frame((INITIAL_WINDOW, struct.unpack(">I", number)[0])), numbers),
    st.builds(frame, st.just(PRIORITY), st.just(0), streams, st.binary(min_size=4, max_size=5)),
)
senseless = st.builds(frame, st.integers(0, 12), st.integers(0, 255), streams, st.binary(max_size=40))
turns = st.lists(
    st.tuples(st.one_of(sensible, sensible, sensible, senseless), st.sampled_from([0, 0, 1, 3])), max_size=25
)


@settings(deadline=None, max_examples=300)
@given(turns, st.sampled_from(["lost", "closed", "cut"]), st.integers(1, 50))
def test_no_frames_whatever_leave_a_task_or_are_answered_after_the_end(
    said: list[tuple[bytes, int]], ending: str, chunk: int
) -> None:
    gone: list[Connection] = []

    async def main() -> None:
        connection = Connection(new_calls(), lambda _: None, gone.append)
        wire = Wire(connection)
        connection.connection_made(wire)
        connection.data_received(PREFACE + frame(SETTINGS))
        for data, turn in said:
            for at in range(0, len(data), chunk):
                connection.data_received(data[at : at + chunk])
            for _ in range(turn):
                await asyncio.sleep(0)
        if ending != "lost":
            connection.leave()
            connection.cut()
            for _ in range(10):
                await asyncio.sleep(0)
            assert not connection._streams
            if ending == "closed" and not wire.closed:
                connection.close()
        connection.data_received(frame(99))
        connection.connection_lost(None)
        async with asyncio.timeout(20):
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        check_frames(wire.written)
        assert connection._unread == 0
        assert not connection._streams
        assert connection._handlers == 0

    run(main())
    assert len(gone) == 1


def check_frames(data: bytes) -> None:
    """Whole frames, none of a kind that servers do not send, and nothing after a GOAWAY with an error."""
    broken, ended = False, set()
    while data:
        size, kind, stream = int.from_bytes(data[:3]), data[3], int.from_bytes(data[5:9])
        assert size <= MAX_FRAME
        assert not broken
        if kind in (HEADERS, DATA):
            assert stream not in ended
        if kind == RESET or (kind in (HEADERS, DATA) and data[4] & 1):
            ended.add(stream)
        broken = kind == GOAWAY and data[13:17] != bytes(4)
        assert len(data) >= 9 + size
        data = data[9 + size :]
