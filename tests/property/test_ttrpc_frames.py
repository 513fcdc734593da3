"""Frames of ttrpc survive any split, and no bytes whatever make the decoder fail or grow."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moored.api.ttrpc.frame import (
    DATA,
    HEADER,
    HEADER_SIZE,
    MAX_DATA,
    MAX_STREAM_ID,
    REQUEST,
    Decoder,
    Event,
    Frame,
    Oversize,
    encode,
)
from moored.kernel.errors import InvalidArgument, ResourceExhausted

frames = st.builds(
    Frame,
    stream_id=st.integers(0, MAX_STREAM_ID),
    kind=st.integers(0, 255),
    flags=st.integers(0, 255),
    data=st.binary(max_size=300),
)


def decode(*pieces: bytes) -> list[Event]:
    decoder = Decoder()
    events: list[Event] = []
    for piece in pieces:
        decoder.feed(piece)
        events.extend(decoder)
    return events


def split(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


@given(frames)
def test_a_frame_survives_the_round_trip(frame: Frame) -> None:
    assert decode(encode(frame)) == [frame]


@given(st.lists(frames, max_size=8), st.lists(st.integers(0, 60), max_size=60))
def test_any_split_gives_the_same_frames(sent: list[Frame], sizes: list[int]) -> None:
    data = b"".join(map(encode, sent))

    assert decode(*split(data, sizes)) == sent


@given(st.lists(frames, max_size=4))
def test_single_bytes_give_the_same_frames(sent: list[Frame]) -> None:
    data = b"".join(map(encode, sent))

    assert decode(*(data[i : i + 1] for i in range(len(data)))) == sent


@given(st.lists(frames, min_size=1, max_size=8), st.data())
def test_iteration_left_in_the_middle_loses_nothing(sent: list[Frame], data: st.DataObject) -> None:
    decoder = Decoder()
    taken: list[Event] = []
    for frame in sent:
        decoder.feed(encode(frame))
        for _ in range(data.draw(st.integers(0, 2))):
            taken.extend([event for event in [next(decoder, None)] if event is not None])

    taken.extend(decoder)

    assert taken == sent


@given(st.binary(max_size=2000), st.lists(st.integers(0, 200), max_size=20))
def test_garbage_never_fails_and_nothing_is_invented(garbage: bytes, sizes: list[int]) -> None:
    decoder = Decoder()
    size = 0
    for piece in split(garbage, sizes):
        decoder.feed(piece)
        for event in decoder:
            size += HEADER_SIZE + (event.length if isinstance(event, Oversize) else len(event.data))
        assert decoder.held <= len(garbage)

    assert size <= len(garbage)


@given(
    st.integers(MAX_DATA + 1, MAX_DATA + 100),
    st.integers(0, MAX_STREAM_ID),
    st.integers(1, 1 << 20),
    frames,
)
def test_an_oversize_frame_is_dropped_and_told(length: int, stream_id: int, step: int, after: Frame) -> None:
    decoder = Decoder()
    decoder.feed(HEADER.pack(length, stream_id, REQUEST, 0))
    assert list(decoder) == []
    step = max(step, 1 << 16)  # smaller steps only cost time
    for start in range(0, length, step):
        assert decoder.held == 0
        decoder.feed(bytes(min(step, length - start)))
        events = list(decoder)
    decoder.feed(encode(after))

    assert [*events, *decoder] == [Oversize(stream_id, length), after]


def test_an_oversize_frame_may_come_in_one_piece() -> None:
    after = Frame(3, DATA, 0, b"x")

    events = decode(HEADER.pack(MAX_DATA + 1, 1, DATA, 0) + bytes(MAX_DATA + 1) + encode(after))

    assert events == [Oversize(1, MAX_DATA + 1), after]


@given(st.lists(st.sampled_from([1, 10, 500, 16 << 10, 40_000]), min_size=1, max_size=20), st.integers())
def test_pieces_of_any_size_keep_their_order(sizes: list[int], seed: int) -> None:
    frame = Frame(1, DATA, 0, Random(seed).randbytes(sum(sizes)))

    assert decode(*split(encode(frame), sizes)) == [frame]


def test_the_longest_frame_is_allowed_and_one_byte_more_is_not() -> None:
    longest = Frame(1, DATA, 0, bytes(MAX_DATA))

    assert decode(encode(longest)) == [longest]
    with pytest.raises(ResourceExhausted, match=r"^message length 4194305 exceed maximum message size of 4194304$"):
        encode(longest._replace(data=bytes(MAX_DATA + 1)))


@pytest.mark.parametrize("frame", [Frame(-1, 1, 0), Frame(1 << 32, 1, 0), Frame(1, 256, 0), Frame(1, 1, -1)])
def test_numbers_that_do_not_fit_are_refused(frame: Frame) -> None:
    with pytest.raises(InvalidArgument, match="does not fit"):
        encode(frame)


@pytest.mark.parametrize(
    ("size", "length"), [(1, 1 << 15), (1000, MAX_DATA), (16 << 10, MAX_DATA), (256 << 10, MAX_DATA)]
)
def test_a_frame_in_pieces_costs_little_more_than_its_data(size: int, length: int) -> None:
    decoder = Decoder()
    tracemalloc.start()
    try:
        decoder.feed(HEADER.pack(length, 1, DATA, 0))
        for _ in range((length - 1) // size):
            decoder.feed(bytes(size))
            assert next(decoder, None) is None
        held = decoder.held
        decoder.feed(bytes(length - held))
        (frame,) = decoder
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert isinstance(frame, Frame)
    assert len(frame.data) == length
    assert (decoder.held, decoder.partial) == (0, False)
    assert peak < 2.5 * length + (64 << 10)


def test_dropping_four_gigabytes_holds_nothing() -> None:
    decoder = Decoder()
    chunk = bytes(1 << 20)
    decoder.feed(HEADER.pack(0xFFFFFFFF, 7, REQUEST, 0))
    assert list(decoder) == []
    for _ in range(4095):
        decoder.feed(chunk)
        assert list(decoder) == []
        assert decoder.held == 0
    decoder.feed(chunk)

    assert list(decoder) == [Oversize(7, 0xFFFFFFFF)]
    assert decoder.held == 1


def test_the_codec_loads_without_asyncio_and_protobuf() -> None:
    code = (
        "import sys, moored.api.ttrpc.frame\n"
        "heavy = {'asyncio', 'google', 'google.protobuf', 'grpc', 'socket', 'logging'} & set(sys.modules)\n"
        "sys.exit(f'loads {heavy}' if heavy else 0)"
    )
    env = {"PYTHONPATH": ":".join(p for p in sys.path if p)}

    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False, env=env)

    assert done.returncode == 0, done.stderr
