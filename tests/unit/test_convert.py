"""Times and Any messages of moored.api.convert."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet

from moored.api import convert
from moored.kernel.errors import InvalidArgument

SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"


def test_no_time_is_gos_zero_time() -> None:
    zero = convert.timestamp(None)
    assert (zero.seconds, zero.nanos) == (-62135596800, 0)
    assert zero.ToJsonString() == "0001-01-01T00:00:00Z"
    assert convert.is_go_zero(zero)
    assert convert.to_ns(zero) is None
    assert convert.to_datetime(zero) is None


def test_an_unset_time_is_1970() -> None:
    assert convert.to_ns(Timestamp()) == 0
    assert convert.to_datetime(Timestamp()) == datetime(1970, 1, 1, tzinfo=UTC)
    assert not convert.is_go_zero(Timestamp())


@pytest.mark.parametrize(
    "ns", [0, 1, -1, 1_700_000_000_123_456_789, -1_500_000_000, convert.GO_ZERO_SECONDS * 10**9 + 1]
)
def test_nanoseconds_survive(ns: int) -> None:
    stamp = convert.timestamp(ns)
    assert convert.to_ns(stamp) == ns
    assert stamp.ToNanoseconds() == ns


@pytest.mark.parametrize(
    "when",
    [
        datetime(2024, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 5, tzinfo=timezone(timedelta(hours=-7))),
    ],
)
def test_a_datetime_survives_exactly_and_comes_back_as_utc(when: datetime) -> None:
    back = convert.to_datetime(convert.timestamp(when))
    assert back == when
    assert back is not None
    assert back.tzinfo is UTC


def test_a_datetime_is_cut_to_microseconds_not_rounded() -> None:
    assert convert.ns_to_datetime(1_999) == datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
    assert convert.ns_to_datetime(-1) == datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)


def test_a_naive_datetime_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        convert.timestamp(datetime(2024, 1, 1))  # noqa: DTZ001 - that is the point


@pytest.mark.parametrize(
    "stamp",
    [
        Timestamp(seconds=convert.GO_ZERO_SECONDS - 1),
        Timestamp(seconds=253402300800),
        Timestamp(seconds=2**63 - 1),
        Timestamp(nanos=-1),
        Timestamp(nanos=10**9),
        Timestamp(seconds=convert.GO_ZERO_SECONDS, nanos=-1),
    ],
)
def test_times_outside_of_the_calendar_are_refused(stamp: Timestamp) -> None:
    for read in (convert.to_ns, convert.to_datetime):
        with pytest.raises(InvalidArgument, match="outside of the years 1 to 9999"):
            read(stamp)


def test_nanoseconds_outside_of_the_calendar_are_refused() -> None:
    for call in (convert.timestamp, convert.ns_to_datetime):
        with pytest.raises(InvalidArgument, match="outside"):
            call(253402300800 * 10**9)


@pytest.mark.parametrize("ns", [0, 1, -1, 1_700_000_000_123_456_789, convert.GO_ZERO_SECONDS * 10**9])
def test_a_time_is_set_in_place_as_it_is_made(ns: int) -> None:
    stamp = Timestamp()

    convert.set_timestamp(stamp, ns)

    assert stamp == convert.timestamp(ns)


def test_a_time_outside_of_the_calendar_is_not_set() -> None:
    stamp = Timestamp()
    with pytest.raises(InvalidArgument):
        convert.set_timestamp(stamp, 1 << 70)
    assert stamp == Timestamp()


def test_an_any_is_written_without_prefix() -> None:
    packed = convert.pack(Duration(seconds=5))
    assert packed == Any(type_url="google.protobuf.Duration", value=Duration(seconds=5).SerializeToString())


def test_bytes_are_packed_under_their_url() -> None:
    assert convert.pack(b"{}", SPEC) == Any(type_url=SPEC, value=b"{}")
    assert convert.pack(Duration(seconds=5), "x.y").type_url == "x.y"
    with pytest.raises(ValueError, match="url is wanted"):
        convert.pack(b"{}")


def test_an_any_is_not_packed_again() -> None:
    inner = convert.pack(b"{}", SPEC)
    assert convert.pack(inner) is inner


def test_both_forms_of_a_type_name_are_read() -> None:
    prefixed = Any()
    prefixed.Pack(Duration(seconds=5))
    assert prefixed.type_url == "type.googleapis.com/google.protobuf.Duration"
    for packed in (prefixed, convert.pack(Duration(seconds=5))):
        assert convert.type_name(packed) == "google.protobuf.Duration"
        assert convert.unpack(packed, Duration) == Duration(seconds=5)


def test_names_of_json_types_stay_whole() -> None:
    assert convert.type_name(Any(type_url=SPEC)) == SPEC
    assert convert.type_name(Any()) == ""


def test_an_any_of_another_type_is_refused() -> None:
    with pytest.raises(
        InvalidArgument, match=r"type 'google.protobuf.Duration' given, 'google.protobuf.Timestamp' wanted"
    ):
        convert.unpack(convert.pack(Duration()), Timestamp)


def test_an_any_that_does_not_parse_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"'google.protobuf.Duration' does not parse"):
        convert.unpack(Any(type_url="google.protobuf.Duration", value=b"\xff"), Duration)


@pytest.mark.parametrize("number", [1, 15, 16, 2000])
def test_fields_of_messages_are_as_protobuf_reads_them(number: int) -> None:
    messages = [b"", b"x" * 127, b"y" * 128, b"z" * 20000]

    whole = convert.repeated(number, messages)

    assert whole == b"".join(convert.field(number, message) for message in messages)
    found = UnknownFieldSet(Empty.FromString(whole))
    fields = [(found[at].field_number, found[at].data) for at in range(len(found))]
    assert fields == [(number, message) for message in messages]


def test_importing_the_module_does_not_import_protobuf() -> None:
    program = "import sys, moored.api.convert; assert 'google.protobuf' not in sys.modules"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", program], env=env, check=True)
