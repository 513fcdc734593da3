"""Records turned into messages at once: the same bytes as by way of the objects and of protobuf."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness import on_loop
from moored.api.services.containers.v1 import containers_pb2 as cpb
from moored.api.services.images.v1 import images_pb2 as ipb
from moored.kernel.errors import DataLoss, InvalidArgument
from moored.kernel.namespaces import bind
from moored.kernel.ports.containers import Container, TypedBytes
from moored.kernel.ports.images import Descriptor, Image
from moored.kernel.records import decode_any, encode_any, encode_time, encode_uvarint, encode_zigzag
from moored.plugins.metadata.bolt import wire
from moored.plugins.metadata.bolt.containers import read_container
from moored.plugins.metadata.bolt.images import read_image
from moored.plugins.services.containers import service as containers
from moored.plugins.services.images import service as images
from unit.metadata.objects import opened

TIME = encode_time(1_763_928_000_123_456_789)
TIMES = {b"createdat": TIME, b"updatedat": TIME}
TARGET = {b"mediatype": b"application/json", b"digest": b"sha256:" + b"a" * 64, b"size": encode_zigzag(1000)}
ANY = encode_any(TypedBytes("containerd.runc.v1.Options", b"\x0a\x01x"))
LATE = encode_time(253402300800 * 10**9)

IMAGES = {
    "usual": {**TIMES, b"target": TARGET, b"labels": {b"tier": b"one"}},
    "empty target, no times": {b"target": {}},
    "negative size": {**TIMES, b"target": {b"size": encode_zigzag(-7)}},
    "times before 1970, at it, and of few nanoseconds": {
        b"target": TARGET,
        b"createdat": encode_time(-5),
        b"updatedat": encode_time(0),
    },
    "short nanoseconds": {b"target": TARGET, b"createdat": encode_time(7), b"updatedat": encode_time(10**9)},
    "long label": {**TIMES, b"target": TARGET, b"labels": {b"k" * 60: b"v" * 3000}},
    "label of 127 bytes in all": {**TIMES, b"target": TARGET, b"labels": {b"k" * 60: b"v" * 63}},
    "label of 128 bytes in all": {**TIMES, b"target": TARGET, b"labels": {b"k" * 60: b"v" * 64}},
    "empty key and value": {**TIMES, b"target": TARGET, b"labels": {b"": b""}},
    "beyond ASCII": {**TIMES, b"target": {b"mediatype": "ä".encode()}, b"labels": {"ö".encode(): "ü".encode()}},
    "annotations": {**TIMES, b"target": TARGET, b"annotations": {b"a": b"b"}},
    "a value where labels should be": {**TIMES, b"target": TARGET, b"labels": b"x"},
}
CONTAINERS = {
    "empty": {},
    "usual": {
        **TIMES,
        b"image": b"busybox",
        b"runtime": {b"name": b"io.containerd.runc.v2", b"options": ANY},
        b"spec": encode_any(TypedBytes("types.containerd.io/Spec", b"{}" * 500)),
        b"snapshotter": b"overlayfs",
        b"snapshotKey": b"key",
        b"sandboxid": b"pod",
        b"labels": {b"tier": b"one"},
    },
    "extension": {**TIMES, b"extensions": {b"one": ANY}},
    "extension without name and value": {**TIMES, b"extensions": {b"": b""}},
    "long image": {**TIMES, b"image": b"i" * 200},
    "value before its type": {**TIMES, b"spec": b"\x12\x01v\x0a\x01t"},
    "spec without type": {**TIMES, b"spec": b"\x12\x01v"},
    "empty spec": {**TIMES, b"spec": b""},
}


@pytest.mark.parametrize("record", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("name", ["docker.io/library/one:latest", "n" * 200, "ä"])
def test_image_is_what_protobuf_makes_of_it(name: str, record: Any) -> None:
    assert wire.image(name.encode(), record) == images.to_message(read_image(name, record)).SerializeToString()


@pytest.mark.parametrize("record", CONTAINERS.values(), ids=CONTAINERS)
def test_container_is_what_protobuf_makes_of_it(record: Any) -> None:
    assert wire.container(b"one", record) == containers.to_message(read_container("one", record)).SerializeToString()


@pytest.mark.parametrize(
    "number",
    [0, 1, 127, 128, (1 << 28) - 1, 1 << 28, 999_999_999, (1 << 35) - 1, 1 << 35, (1 << 63) - 1, -1, -(1 << 63)],
)
def test_numbers_of_five_bytes_are_as_all_others(number: int) -> None:
    assert wire.varint(number) == encode_uvarint(number & (1 << 64) - 1)


@pytest.mark.parametrize("url", ["u", "u" * 127, "u" * 128, "ä"])
@pytest.mark.parametrize(
    "size", [0, 1, 126, 127, 128, 129, 16382, 16383, 16384, 16385, (1 << 21) - 1, 1 << 21, (1 << 21) + 1]
)
@pytest.mark.parametrize("behind", [b"", b"\x12\x00", b"\x1a\x01x"], ids=["whole", "empty value", "other field"])
def test_stored_messages_are_told_from_those_written_otherwise(url: str, size: int, behind: bytes) -> None:
    stored = encode_any(TypedBytes(url, b"v" * size)) + behind

    assert wire.canonical(stored) == encode_any(decode_any(stored))


def test_stored_message_with_a_byte_too_many_is_data_loss() -> None:
    for size in (1, 127, 128, 16383, 16384):
        with pytest.raises(DataLoss):
            wire.canonical(encode_any(TypedBytes("u", b"v" * size)) + b"x")


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({}, DataLoss),
        ({b"target": {b"size": b"\xff"}}, DataLoss),
        ({b"target": {}, b"createdat": b"short"}, DataLoss),
        ({b"target": {}, b"createdat": LATE}, InvalidArgument),
        ({b"target": {b"digest": b"\xff"}}, DataLoss),
        ({b"target": {}, b"labels": {b"k": b"\xff"}}, DataLoss),
        ({b"target": {}, b"labels": {b"\xff": b"v"}}, DataLoss),
    ],
    ids=["no target", "bad size", "bad time", "after year 9999", "digest", "label's value", "label's key"],
)
def test_damaged_image_is_refused(record: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        wire.image(b"one", record)


@pytest.mark.parametrize(
    "record",
    [{b"spec": b"\x0a\x01\xff"}, {b"spec": b"\x0a\x05x"}, {b"image": b"\xff"}, {b"extensions": {b"\xff": ANY}}],
    ids=["type", "short message", "image", "extension's key"],
)
def test_damaged_container_is_data_loss(record: Any) -> None:
    with pytest.raises(DataLoss):
        wire.container(b"one", record)


class Plain:
    """A store that gives objects only."""

    def __init__(self, store: Any) -> None:
        self._store = store

    async def list(self, filters: Sequence[str] = ()) -> Any:
        return await self._store.list(filters)

    async def stream(self, filters: Sequence[str] = ()) -> AsyncGenerator[Any]:
        async for one in self._store.stream(filters):
            yield one


FILTERS = [[], ["labels.tier==one"], ["labels.none==x"], ["labels.tier", "name==b", "id==b"]]


@pytest.mark.parametrize("filters", FILTERS)
@on_loop
async def test_images_are_listed_alike_with_and_without_a_store_that_encodes(
    filters: list[str], tmp_path: Path
) -> None:
    target = Descriptor(media_type="application/json", digest="sha256:" + "a" * 64, size=1)
    async with opened(tmp_path) as parts:
        store, request = parts.objects.images, ipb.ListImagesRequest(filters=filters)
        with bind(namespace="one"):
            nothing = await images.ImagesService(store, None).List(request, None)
            for name in ("b", "a", "c" * 600):
                await store.create(Image(name=name, target=target, labels={"tier": "one"} if name != "a" else {}))

            encoded = await images.ImagesService(store, None).List(request, None)
            plain: Any = await images.ImagesService(Plain(store), None).List(request, None)  # type: ignore[arg-type]

    assert nothing == b""
    assert encoded == plain.SerializeToString()


@pytest.mark.parametrize("filters", FILTERS)
@on_loop
async def test_containers_are_listed_alike_with_and_without_a_store_that_encodes(
    filters: list[str], tmp_path: Path
) -> None:
    async with opened(tmp_path) as parts:
        store, request = parts.objects.containers, cpb.ListContainersRequest(filters=filters)
        with bind(namespace="one"):
            nothing = await containers.ContainersService(store).List(request, None)
            for id_ in ("b", "a", "c"):
                await store.create(Container(id=id_, runtime="r", labels={"tier": "one"} if id_ != "a" else {}))
            own, other = containers.ContainersService(store), containers.ContainersService(Plain(store))  # type: ignore[arg-type]

            encoded, plain = await own.List(request, None), await other.List(request, None)
            streamed = [one async for one in own.ListStream(request, None)]
            alike: Any = [one async for one in other.ListStream(request, None)]

    assert nothing == b""
    assert not isinstance(plain, bytes)
    assert encoded == plain.SerializeToString()
    assert streamed == [one.SerializeToString() for one in alike]
