"""Small images made of random bytes, with what their unpacked files must be."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import zstandard

from moored.api.types.descriptor_pb2 import Descriptor
from moored.kernel.ports.diff import LAYER, LAYER_GZIP, LAYER_ZSTD

CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"

Files = Mapping[str, bytes]


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Blob:
    """Stored bytes, and what they are."""

    media_type: str
    data: bytes

    @property
    def digest(self) -> str:
        return digest_of(self.data)

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(media_type=self.media_type, digest=self.digest, size=len(self.data))


@dataclass(frozen=True)
class Layer:
    """A layer: its blob, the digest of its tar, the chain id with those below, and the files that all of them show."""

    blob: Blob
    diff_id: str
    chain_id: str
    files: Files


@dataclass(frozen=True)
class Image:
    """An image: the manifest's blob last, what it refers to before it."""

    layers: tuple[Layer, ...]
    config: Blob
    manifest: Blob

    @property
    def chain_id(self) -> str:
        return self.layers[-1].chain_id

    @property
    def blobs(self) -> tuple[Blob, ...]:
        return (*(layer.blob for layer in self.layers), self.config, self.manifest)


def tar_of(files: Files, gone: tuple[str, ...] = ()) -> bytes:
    """A layer's tar: files, and whiteouts of others."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (*files.items(), *((f".wh.{name}", b"") for name in gone)):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_600_000_000
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def layer_on(below: Layer | None, tar: bytes, files: Files, media_type: str) -> Layer:
    """A layer on others, stored as its type says; `files` are those of all of them."""
    data = tar
    if media_type == LAYER_GZIP:
        data = gzip.compress(tar, 1, mtime=0)
    elif media_type == LAYER_ZSTD:
        data = zstandard.ZstdCompressor().compress(tar)
    diff_id = digest_of(tar)
    chain = diff_id if below is None else digest_of(f"{below.chain_id} {diff_id}".encode())
    return Layer(Blob(media_type, data), diff_id, chain, files)


@cache
def base_layer() -> Layer:
    """The layer that all images stand on, so that unpackings of the same thing meet."""
    files = {"base/kept": b"kept" * 300, "gone": b"gone"}
    return layer_on(None, tar_of(files), files, LAYER_GZIP)


def image_of(*layers: Layer) -> Image:
    """The image of these layers."""
    rootfs = {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}
    config = Blob(CONFIG, json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode())
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described(config)}
    manifest["layers"] = [described(layer.blob) for layer in layers]
    return Image(layers, config, Blob(MANIFEST, json.dumps(manifest).encode()))


def described(blob: Blob) -> dict[str, object]:
    """A descriptor as JSON has it."""
    return {"mediaType": blob.media_type, "digest": blob.digest, "size": len(blob.data)}


def random_image(choose: random.Random, files: int = 3, size: int = 30_000) -> Image:
    """The base and one or two layers of a few files of up to `size` bytes; one may take a file of the base away."""
    layers = [base_layer()]
    for _ in range(choose.randint(1, 2)):
        own = {f"d{n % 2}/{choose.randrange(1 << 30):x}": _bytes(choose, size) for n in range(choose.randint(1, files))}
        below = layers[-1]
        gone = ("gone",) if "gone" in below.files and choose.random() < 0.3 else ()
        shown = {name: data for name, data in below.files.items() if name not in gone} | own
        layers.append(layer_on(below, tar_of(own, gone), shown, choose.choice([LAYER, LAYER_GZIP, LAYER_ZSTD])))
    return image_of(*layers)


def _bytes(choose: random.Random, size: int) -> bytes:
    return choose.randbytes(choose.choice([0, 1, choose.randrange(size)]))
