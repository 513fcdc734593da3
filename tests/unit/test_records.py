"""Records are written to the byte as containerd writes them."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import given
from hypothesis import strategies as st

from harness import on_loop
from moored.kernel import records
from moored.kernel.errors import DataLoss
from moored.kernel.ports.containers import TypedBytes
from unit.metadata.memory import MemoryDatabase


def test_numbers_have_the_known_bytes() -> None:
    assert records.encode_uvarint(146) == bytes.fromhex("9201")
    known = {4: "08", 9: "12", 1000: "d00f", 4096: "8040", -1: "01"}
    assert {number: records.encode_zigzag(number).hex() for number in known} == known


def test_time_has_the_known_bytes() -> None:
    unix = 1_700_000_000 * 10**9 + 123_456_789

    assert records.encode_time(unix).hex() == "010000000edce5e800075bcd15ffff"
    assert records.decode_time(records.encode_time(unix)) == unix


def test_missing_time_is_the_year_one() -> None:
    assert records.decode_time(None) == records.ZERO_TIME
    assert records.encode_time(records.ZERO_TIME).hex() == "01" + "00" * 12 + "ffff"


def test_times_of_any_zone_are_read() -> None:
    seconds = (62135596800 + 5).to_bytes(8, "big") + bytes(4)

    assert records.decode_time(b"\1" + seconds + b"\x00\x3c") == 5 * 10**9
    assert records.decode_time(b"\2" + seconds + b"\x00\x3c\x07") == 5 * 10**9


@pytest.mark.parametrize("data", [b"", b"\1", b"\1" * 16, b"\2" * 15, b"\3" * 15])
def test_what_is_no_time_is_told(data: bytes) -> None:
    with pytest.raises(DataLoss, match="record has the time"):
        records.decode_time(data)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 11, b"\xff" * 9 + b"\x02"])
def test_what_is_no_number_is_told(data: bytes) -> None:
    with pytest.raises(DataLoss, match="record has the number"):
        records.decode_uvarint(data)


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_signed_numbers_come_back(number: int) -> None:
    assert records.decode_zigzag(records.encode_zigzag(number)) == number


@given(st.binary())
def test_any_bytes_are_text(data: bytes) -> None:
    assert records.encode_text(records.decode_text(data)) == data


@given(st.text(st.characters(exclude_categories=["Cs"])), st.binary(max_size=300))
def test_any_is_protobufs_own(type_url: str, value: bytes) -> None:
    given_ = TypedBytes(type_url, value)

    data = records.encode_any(given_)

    assert data == AnyMessage(type_url=type_url, value=value).SerializeToString(deterministic=True)
    assert records.decode_any(data) == given_


def test_unknown_fields_of_an_any_are_passed_over() -> None:
    data = records.encode_any(TypedBytes("t", b"v")) + b"\x1a\x01x"

    assert records.decode_any(data) == TypedBytes("t", b"v")


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05ab", b"\x08\x01", b"\xff"])
def test_what_is_no_any_is_told(data: bytes) -> None:
    with pytest.raises(DataLoss, match="record has the"):
        records.decode_any(data)


@on_loop
async def test_maps_are_replaced_and_hold_no_empty_value() -> None:
    db = MemoryDatabase()
    await db.update(lambda root: records.write_labels(root.create_bucket(b"r"), {"a": "1", "b": "2"}))
    await db.update(lambda root: records.write_labels(root.create_bucket_if_missing(b"r"), {"b": "3", "c": ""}))

    with db.view() as root:
        record = root.bucket(b"r")
        assert record is not None
        assert records.read_labels(record) == {"b": "3"}
        assert records.read_map(record, b"annotations") == {}
    await db.update(lambda root: records.write_labels(root.create_bucket_if_missing(b"r"), {}))
    with db.view() as root:
        record = root.bucket(b"r")
        assert record is not None
        assert list(record.items()) == []
