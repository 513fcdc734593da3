"""Event payloads have the form that protobuf gives them, both ways, and broken bytes are refused."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from moored.api.events import container_pb2, content_pb2, image_pb2, namespace_pb2, sandbox_pb2, snapshot_pb2, task_pb2
from moored.kernel.payloads import PAYLOADS, Packed, Payload, TaskCreate, TaskExit, TaskIO, field, unpack
from moored.kernel.protowire import Kind, decode, encode, specs

FILES = (container_pb2, content_pb2, image_pb2, namespace_pb2, sandbox_pb2, snapshot_pb2, task_pb2)
TOP = [one for file in FILES for one in file.DESCRIPTOR.message_types_by_name.values()]
DESCRIPTORS = {one.full_name: one for top in TOP for one in (top, *top.nested_types) if not one.GetOptions().map_entry}
TYPES = {
    FieldDescriptor.TYPE_STRING: "TEXT",
    FieldDescriptor.TYPE_BYTES: "BYTES",
    FieldDescriptor.TYPE_BOOL: "FLAG",
    FieldDescriptor.TYPE_INT64: "INT64",
    FieldDescriptor.TYPE_UINT32: "UINT32",
    FieldDescriptor.TYPE_MESSAGE: "MESSAGE",
}

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.TEXT: text,
    Kind.TEXTS: st.lists(text, max_size=3).map(tuple),
    Kind.BYTES: st.binary(max_size=8),
    Kind.FLAG: st.booleans(),
    Kind.INT64: st.integers(-1 << 63, (1 << 63) - 1),
    Kind.UINT32: st.integers(0, (1 << 32) - 1),
    Kind.LABELS: st.dictionaries(text, text, max_size=3),
    Kind.TIME: st.none() | st.integers(-62135596800 * 10**9, 253402300799 * 10**9),
}


def instances(kind: type[Any]) -> st.SearchStrategy[Any]:
    def value(spec: Any) -> st.SearchStrategy[Any]:
        if spec.kind is Kind.MESSAGE:
            return st.none() | instances(spec.of)
        return st.lists(instances(spec.of), max_size=2).map(tuple) if spec.kind is Kind.MESSAGES else VALUES[spec.kind]

    return st.builds(kind, **{name: value(spec) for name, spec in specs(kind).items()})


def kind_of(one: FieldDescriptor) -> str:
    if one.message_type is not None and one.message_type.GetOptions().map_entry:
        return "LABELS"
    if one.message_type is not None and one.message_type.full_name == "google.protobuf.Timestamp":
        return "TIME"
    return TYPES[one.type] + ("S" if one.is_repeated else "")


def test_every_payload_of_the_wire_is_known_and_no_other() -> None:
    assert set(PAYLOADS) == set(DESCRIPTORS)


@pytest.mark.parametrize("name", sorted(DESCRIPTORS))
def test_payload_has_the_fields_of_its_message(name: str) -> None:
    wanted = {one.name: (one.number, kind_of(one)) for one in DESCRIPTORS[name].fields}
    assert {key: (spec.number, spec.kind.name) for key, spec in specs(PAYLOADS[name]).items()} == wanted


@given(st.sampled_from(sorted(PAYLOADS)).flatmap(lambda name: instances(PAYLOADS[name])))
def test_bytes_are_those_of_protobuf(payload: Payload) -> None:
    packed = payload.pack()
    message = GetMessageClass(DESCRIPTORS[payload.TYPE]).FromString(packed.value)
    theirs = message.SerializeToString()

    assert len(theirs) == len(packed.value)
    assert unpack(packed) == payload
    assert unpack(Packed(payload.TYPE, theirs)) == payload


@given(st.sampled_from(sorted(PAYLOADS)), st.binary(max_size=40))
def test_bytes_that_protobuf_refuses_are_refused(name: str, data: bytes) -> None:
    try:
        GetMessageClass(DESCRIPTORS[name]).FromString(data)
    except DecodeError:
        assert unpack(Packed(name, data)) is None


@pytest.mark.parametrize(
    "data",
    [b"\x08", b"\x08" + b"\xff" * 10, b"\n\x05ab", b"\n\x02\xff\xfe", b"\x00\x01", b"\x0b\x0c", b"\x0f\x00"],
)
def test_broken_bytes_are_no_message(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode(TaskExit, data)


def test_unknown_fields_and_other_wire_types_are_skipped() -> None:
    known = encode(TaskExit(container_id="c", pid=7))
    unknown = b"\x7a\x01x" + b"\x79" + b"8" * 8 + b"\x7d" + b"4" * 4 + b"\x78\x01"
    other_type = b"\x08\x05"  # container_id as a number

    assert decode(TaskExit, unknown + known + other_type) == TaskExit(container_id="c", pid=7)


def test_message_in_pieces_is_the_sum_of_them_and_the_last_value_counts() -> None:
    first, second = TaskCreate(bundle="a", io=TaskIO(stdin="i")), TaskCreate(bundle="b", io=TaskIO(stdout="o"))

    assert decode(TaskCreate, encode(first) + encode(second)) == TaskCreate(
        bundle="b", io=TaskIO(stdin="i", stdout="o")
    )


@pytest.mark.parametrize("pid", [-1, 1 << 32])
def test_number_that_does_not_fit_is_refused(pid: int) -> None:
    with pytest.raises(ValueError, match=f"number {pid} is out of range, wanted 0 to 4294967295"):
        TaskExit(pid=pid).pack()


def test_type_is_what_follows_the_last_slash() -> None:
    packed = TaskExit(container_id="c").pack()

    assert unpack(Packed(f"any/where/{packed.type_url}", packed.value)) == TaskExit(container_id="c")
    assert unpack(Packed("containerd.events.Nothing", packed.value)) is None


def test_flag_is_present_and_false_once_its_message_is() -> None:
    assert field(TaskCreate(), ("io", "terminal")) == ("", False)
    assert field(TaskCreate(io=TaskIO()), ("io", "terminal")) == ("false", True)
    assert field(TaskCreate(io=TaskIO(terminal=True)), ("io", "terminal")) == ("true", True)
