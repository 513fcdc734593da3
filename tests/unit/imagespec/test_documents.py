"""Documents of images: what is read, what is refused, and how they are walked."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moored.kernel.errors import FailedPrecondition, InvalidArgument, MooredError, NotFound
from moored.kernel.imagespec import documents, media, walk
from moored.kernel.imagespec.chain import chain_ids
from moored.kernel.imagespec.documents import Entry
from moored.kernel.imagespec.platforms import EVERYTHING, exactly, parse


class Store:
    """Documents by digest."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.reads: list[str] = []

    def add(self, data: bytes, media_type: str, **fields: Any) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data), **fields}

    def add_document(self, document: Mapping[str, Any], media_type: str, **fields: Any) -> dict[str, Any]:
        return self.add(json.dumps(document).encode(), media_type, **fields)

    def image(self, text: str, layers: int = 1, **fields: Any) -> dict[str, Any]:
        blobs = [self.add(f"{text} {number}".encode(), media.OCI_LAYER) for number in range(layers)]
        config = {
            "os": "linux",
            "architecture": text,
            "rootfs": {"type": "layers", "diff_ids": [blob["digest"] for blob in blobs]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": media.OCI_MANIFEST,
            "config": self.add_document(config, media.OCI_CONFIG),
            "layers": blobs,
        }
        return self.add_document(manifest, media.OCI_MANIFEST, **fields)

    async def read(self, entry: Entry) -> bytes:
        self.reads.append(entry.digest)
        try:
            return self.blobs[entry.digest]
        except KeyError:
            raise NotFound(f"content {entry.digest}") from None


def entry(document: Mapping[str, Any]) -> Entry:
    return documents.msgspec.convert(document, Entry)


def walked(store: Store, target: Mapping[str, Any], wanted: Any = EVERYTHING, **options: Any) -> list[str]:
    async def gather() -> list[str]:
        return [node.entry.digest async for node in walk.walk(entry(target), store.read, wanted, **options)]

    return asyncio.run(gather())


def test_a_walk_gives_parents_before_children_and_each_digest_once() -> None:
    store = Store()
    image = store.image("amd64", layers=2)
    index = store.add_document({"schemaVersion": 2, "manifests": [image, image]}, media.OCI_INDEX)

    found = walked(store, index)

    manifest = json.loads(store.blobs[image["digest"]])
    below = [manifest["config"]["digest"], *[layer["digest"] for layer in manifest["layers"]]]
    assert found == [index["digest"], image["digest"], *below]


def test_a_walk_takes_the_best_manifests_of_the_wanted_platforms() -> None:
    store = Store()
    images = {name: store.image(name, platform={"os": "linux", "architecture": name}) for name in ("arm64", "amd64")}
    index = store.add_document({"schemaVersion": 2, "manifests": list(images.values())}, media.OCI_INDEX)

    found = walked(store, index, exactly([parse("linux/amd64")]))

    assert images["amd64"]["digest"] in found
    assert images["arm64"]["digest"] not in found


def test_an_absent_manifest_is_an_error_unless_it_may_be_absent() -> None:
    store = Store()
    image = store.image("amd64")
    del store.blobs[image["digest"]]

    with pytest.raises(NotFound, match=image["digest"]):
        walked(store, image)
    assert walked(store, image, absent=True) == [image["digest"]]


def test_the_best_manifest_is_that_whose_config_suits_when_the_index_says_nothing() -> None:
    store = Store()
    images = [store.image(name) for name in ("s390x", "amd64")]
    index = store.add_document({"schemaVersion": 2, "manifests": images}, media.OCI_INDEX)

    found, manifest = asyncio.run(walk.best_manifest(entry(index), store.read, exactly([parse("linux/amd64")])))

    assert found.digest == images[1]["digest"]
    assert len(manifest.layers) == 1


def test_no_manifest_for_a_platform_names_the_platform() -> None:
    store = Store()
    image = store.image("amd64")

    with pytest.raises(NotFound, match=r"no manifest for linux/s390x"):
        asyncio.run(walk.best_manifest(entry(image), store.read, exactly([parse("linux/s390x")])))


def test_a_chain_of_indexes_deeper_than_the_limit_is_refused() -> None:
    store = Store()
    target = store.image("amd64")
    for _ in range(walk.MAX_DEPTH + 1):
        target = store.add_document({"schemaVersion": 2, "manifests": [target]}, media.OCI_INDEX)

    with pytest.raises(InvalidArgument, match="nested deeper than 16"):
        walked(store, target)


def test_an_index_that_doubles_at_each_level_is_read_once_a_level() -> None:
    store = Store()
    target = store.image("amd64")
    for _ in range(12):
        target = store.add_document({"schemaVersion": 2, "manifests": [target, target]}, media.OCI_INDEX)

    assert len(walked(store, target)) == 12 + 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": None}, "Expected `array`"),
        ({"config": {"mediaType": media.OCI_LAYER, "digest": f"sha256:{'a' * 64}"}}, "a layer as its config"),
        ({"schemaVersion": 99}, "schemaVersion 99"),
        ({"manifests": []}, "'manifests'"),
        ({"fsLayers": []}, "'fsLayers'"),
        ({"mediaType": media.OCI_INDEX}, "another kind"),
        ({"config": {"mediaType": media.OCI_CONFIG, "digest": "sha256:../../etc", "size": 1}}, "digest"),
        ({"config": {"mediaType": media.OCI_CONFIG, "digest": f"md5:{'0' * 32}", "size": 1}}, "digest"),
        ({"config": {"mediaType": media.OCI_CONFIG, "digest": f"sha256:{'A' * 64}", "size": 1}}, "digest"),
        ({"config": {"mediaType": media.OCI_CONFIG, "digest": f"sha256:{'a' * 64}", "size": -1}}, "size"),
        ({"config": {"size": 1}}, "without a digest"),
        ({"layers": [{"mediaType": media.OCI_LAYER, "digest": f"sha256:{'a' * 64}"}] * 513}, "513 layers"),
    ],
)
def test_a_malformed_manifest_is_refused_with_the_fault(change: Mapping[str, Any], said: str) -> None:
    store = Store()
    manifest = json.loads(store.blobs[store.image("amd64")["digest"]])

    with pytest.raises(InvalidArgument, match=said):
        documents.manifest(json.dumps({**manifest, **change}).encode(), "sha256:x")


def test_documents_nested_a_million_deep_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        documents.manifest(b'{"config":' + b"[" * 1_000_000, "sha256:x")


def test_a_document_of_too_many_bytes_is_refused_unread() -> None:
    store = Store()
    huge = entry({"mediaType": media.OCI_INDEX, "digest": f"sha256:{'a' * 64}", "size": 300_000_000})

    with pytest.raises(InvalidArgument, match="300000000 bytes"):
        asyncio.run(walk.read_document(huge, store.read))
    assert store.reads == []


def test_other_bytes_than_the_digest_says_are_refused_inline_too() -> None:
    data = b"{}"
    digest = f"sha256:{hashlib.sha256(b'[]').hexdigest()}"
    inline = entry({"mediaType": media.OCI_INDEX, "digest": digest, "size": 2, "data": base64.b64encode(data).decode()})

    with pytest.raises(FailedPrecondition, match="other bytes"):
        asyncio.run(walk.read_document(inline, Store().read))


def test_a_config_with_other_diff_ids_than_layers_is_refused() -> None:
    store = Store()
    manifest = json.loads(store.blobs[store.image("amd64", layers=2)["digest"]])
    manifest["layers"].pop()
    decoded = documents.manifest(json.dumps(manifest).encode(), "sha256:x")

    with pytest.raises(FailedPrecondition, match="2 diff ids, its manifest 1 layers"):
        asyncio.run(walk.image_config(decoded, store.read))


def test_chain_ids_hash_the_chain_below_with_the_next_layer() -> None:
    first, second = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"

    assert chain_ids([first, second]) == [
        first,
        f"sha256:{hashlib.sha256(f'{first} {second}'.encode()).hexdigest()}",
    ]
    assert chain_ids([]) == []


@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_an_invalid_argument(data: bytes) -> None:
    for decode in (documents.index, documents.manifest, documents.config):
        try:
            decode(data, "sha256:x")
        except MooredError as error:
            assert isinstance(error, InvalidArgument)  # noqa: PT017 - both outcomes are right
