"""Decompression: pieces stay small, structure is checked, both sides are hashed."""

from __future__ import annotations

import gzip
import hashlib
import os

import pytest
import zstandard

from moored.kernel.errors import MooredError, ResourceExhausted, Unknown
from moored.plugins.diff.decompress.decoders import Detected
from moored.plugins.diff.decompress.pump import Pump

DATA = os.urandom(300_000) + bytes(3_000_000) + b"end"
GZIP = gzip.compress(DATA)
ZSTD = [
    zstandard.ZstdCompressor(write_checksum=True).compress(DATA),
    zstandard.ZstdCompressor(write_content_size=False).compress(DATA),
    zstandard.ZstdCompressor(level=1).compressobj().compress(b"") + zstandard.compress(DATA),
]
SKIPPED = b"\x50\x2a\x4d\x18\x05\0\0\0hello"


def decoded(data: bytes, step: int = 1 << 20) -> bytes:
    decoder = Detected()
    pieces = []
    for place in range(0, len(data), step):
        pieces += decoder.feed(data[place : place + step])
    pieces += decoder.finish()
    assert max(map(len, pieces), default=0) <= max(1 << 20, step)
    return b"".join(pieces)


@pytest.mark.parametrize("step", [1, 13, 70_000, 1 << 22])
@pytest.mark.parametrize(
    "data",
    [GZIP, GZIP + GZIP, *ZSTD, ZSTD[0] + SKIPPED + ZSTD[1], SKIPPED + ZSTD[0], gzip.compress(b"") * 3 + GZIP],
    ids=["gzip", "two members", "zstd", "no size", "level", "two frames", "skipped first", "empty members"],
)
def test_all_that_is_stored_comes_out(data: bytes, step: int) -> None:
    if step == 1:
        data = data[:0] or (
            gzip.compress(b"small") if data[:2] == b"\x1f\x8b" else SKIPPED + zstandard.compress(b"small")
        )
        assert decoded(data, step) == b"small"
    else:
        assert set(decoded(data, step).split(DATA)) == {b""}


def test_short_and_empty_streams_are_plain() -> None:
    for data in (b"", b"\x1f", b"\x1f\x8b", b"\x28\xb5\x2f", b"plain text", SKIPPED[:7]):
        assert decoded(data) == data


@pytest.mark.parametrize("stored", [GZIP, GZIP + GZIP, ZSTD[0], ZSTD[1], SKIPPED + ZSTD[0]])
def test_every_cut_is_seen(stored: bytes) -> None:
    whole = {0, len(stored)} | ({len(GZIP)} if stored == GZIP + GZIP else set()) | ({len(SKIPPED)})
    for size in {*range(8, 40), *range(len(stored) - 30, len(stored)), len(stored) // 2, len(GZIP) + 3}:
        if size < len(stored) and size not in whole:
            with pytest.raises(Unknown):
                decoded(stored[:size])


def test_what_follows_is_refused() -> None:
    for stored in (GZIP, *ZSTD):
        for junk in (b"\0", b"junk", bytes(512), b"\x1f\x8b"):
            with pytest.raises(Unknown):
                decoded(stored + junk)


def test_flipped_bits_are_seen() -> None:
    for stored in (GZIP, ZSTD[0]):
        for place in range(12, len(stored), len(stored) // 50):
            try:
                # another way to say the same is no fault
                assert decoded(stored[:place] + bytes([stored[place] ^ 0x10]) + stored[place + 1 :]) == DATA
            except MooredError:
                continue


def test_zstd_that_asks_for_too_much_is_refused() -> None:
    with pytest.raises(ResourceExhausted, match="a window of 150994944 bytes"):
        decoded(b"\x28\xb5\x2f\xfd\x00\x89" + bytes(10))
    with pytest.raises(Unknown, match="dictionary"):
        decoded(b"\x28\xb5\x2f\xfd\x01\x50\x07" + bytes(10))
    with pytest.raises(Unknown, match="corrupted block"):
        decoded(b"\x28\xb5\x2f\xfd\x00\x50" + b"\xff" * 20)


def test_pump_hashes_both_sides_and_stops_at_its_budget() -> None:
    pump = Pump(Detected(), max_bytes=len(DATA), algorithm="sha512")
    assert b"".join((*pump.feed(GZIP[:100]), *pump.feed(GZIP[100:]), *pump.finish())) == DATA
    assert pump.digest == f"sha256:{hashlib.sha256(DATA).hexdigest()}"
    assert pump.stored_digest == f"sha512:{hashlib.sha512(GZIP).hexdigest()}"
    assert pump.size == len(DATA)
    with pytest.raises(ResourceExhausted, match=f"over {len(DATA) - 1} bytes uncompressed"):
        list(Pump(Detected(), max_bytes=len(DATA) - 1).feed(GZIP))
    cut = Pump(Detected(), max_bytes=len(DATA))
    list(cut.feed(GZIP[:-1]))
    with pytest.raises(Unknown, match="unexpected end"):
        list(cut.finish())
