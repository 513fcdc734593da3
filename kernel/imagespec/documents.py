"""Indexes, manifests and image configs, read from bytes that nobody has vouched for.

Decoding checks types, digests and sizes and bounds everything that is counted, so that whoever walks a document need
not doubt it again. Fields that are not known are ignored. Source: OCI image spec; faults catalogue rows 34 to 52.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, TypeVar

import msgspec

from moored.kernel.errors import InvalidArgument
from moored.kernel.imagespec import media
from moored.kernel.imagespec.platforms import Platform
from moored.kernel.ports.images import Descriptor

MAX_DOCUMENT: Final = 4 * 1048 * 1048
"""Bytes of an index, manifest or config that are read at most; a descriptor that says more is refused unread."""
MAX_CHILDREN: Final = 4096
MAX_LAYERS: Final = 512

_DIGEST: Final = r"^(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})$"
Text = Annotated[str, msgspec.Meta(max_length=64 * 1024)]
Digest = Annotated[str, msgspec.Meta(pattern=_DIGEST)]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class OciPlatform(msgspec.Struct, frozen=True, rename={"os_version": "os.version", "os_features": "os.features"}):
    """A platform as documents write it."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = ""
    os_features: list[str] | None = None

    def platform(self) -> Platform:
        """Give it as the rest of the program has it."""
        return Platform(self.os, self.architecture, self.variant, self.os_version, tuple(self.os_features or ()))


class Entry(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A descriptor as documents write it."""

    media_type: Text = ""
    digest: Digest = ""
    size: Size = 0
    urls: list[Text] | None = None
    annotations: dict[str, str] | None = None
    data: bytes | None = None
    platform: OciPlatform | None = None
    artifact_type: Text = ""

    def descriptor(self) -> Descriptor:
        """Give its part that names content."""
        return Descriptor(
            media_type=self.media_type, digest=self.digest, size=self.size, annotations=dict(self.annotations or {})
        )


class Index(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A list of manifests, or of further lists."""

    schema_version: int = 2
    media_type: Text = ""
    artifact_type: Text = ""
    manifests: list[Entry] = []
    subject: Entry | None = None
    annotations: dict[str, str] | None = None


class Manifest(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One image of one platform, or any other artifact of this form."""

    config: Entry
    layers: list[Entry] = []
    schema_version: int = 2
    media_type: Text = ""
    artifact_type: Text = ""
    subject: Entry | None = None
    annotations: dict[str, str] | None = None


class RootFs(msgspec.Struct, frozen=True):
    """The uncompressed layers, lowest first."""

    type: str = ""
    diff_ids: list[Digest] = []


class Process(msgspec.Struct, frozen=True, rename="pascal"):
    """How a container of the image runs unless asked otherwise."""

    user: str = ""
    exposed_ports: dict[str, object] | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    volumes: dict[str, object] | None = None
    working_dir: str = ""
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    args_escaped: bool = False


class ImageConfig(msgspec.Struct, frozen=True, rename={"os_version": "os.version", "os_features": "os.features"}):
    """The config of an image: platform, process, diff ids."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = ""
    os_features: list[str] | None = None
    created: str | None = None
    author: str = ""
    config: Process | None = None
    rootfs: RootFs = RootFs()

    def platform(self) -> Platform:
        """Give the platform that it says to be for."""
        return Platform(self.os, self.architecture, self.variant, self.os_version, tuple(self.os_features or ()))


D = TypeVar("D")


def index(data: bytes, name: str) -> Index:
    """Decode an index; name (its digest) is for errors. Raises InvalidArgument."""
    found = _decoded(data, Index, f"image index {name}")
    _refuse_mixed(data, name, wanted=media.INDEXES, unwanted=("config", "layers", "fsLayers"), said=found.media_type)
    _bounded(found.manifests, MAX_CHILDREN, f"image index {name} has", "manifests")
    _named(found.manifests, f"image index {name}")
    return found


def manifest(data: bytes, name: str) -> Manifest:
    """Decode a manifest; name (its digest) is for errors. Raises InvalidArgument."""
    found = _decoded(data, Manifest, f"image manifest {name}")
    _refuse_mixed(data, name, wanted=media.MANIFESTS, unwanted=("manifests", "fsLayers"), said=found.media_type)
    _bounded(found.layers, MAX_LAYERS, f"image manifest {name} has", "layers")
    _named([found.config, *found.layers], f"image manifest {name}")
    if media.is_layer(found.config.media_type):
        raise InvalidArgument(f"image manifest {name} has a layer as its config")
    return found


def config(data: bytes, name: str) -> ImageConfig:
    """Decode an image's config; name (its digest) is for errors. Raises InvalidArgument."""
    found = _decoded(data, ImageConfig, f"image config {name}")
    _bounded(found.rootfs.diff_ids, MAX_LAYERS, f"image config {name} has", "diff ids")
    return found


def children(data: bytes, media_type: str, name: str) -> Sequence[Entry]:
    """Give what a document refers to: an index' manifests; a manifest's config, then its layers; nothing for others.

    Raises InvalidArgument.
    """
    if media_type in media.INDEXES:
        return index(data, name).manifests
    if media_type in media.MANIFESTS:
        found = manifest(data, name)
        return [found.config, *found.layers]
    return ()


def encode(document: msgspec.Struct | Mapping[str, object]) -> bytes:
    """Give the JSON of a document that this program makes."""
    return msgspec.json.encode(document)


def digest_of(data: bytes) -> str:
    """Give the digest by which a document that this program makes is known."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class _Shape(msgspec.Struct, rename={"fs_layers": "fsLayers"}):
    """Which of the telling fields a document has."""

    schemaVersion: int = 2  # noqa: N815 - the field's name
    config: object = None
    layers: object = None
    manifests: object = None
    fs_layers: object = None


def _refuse_mixed(data: bytes, name: str, *, wanted: frozenset[str], unwanted: Sequence[str], said: str) -> None:
    """A document that can be read as two kinds is none: what one reader checks another would not see."""
    shape = _decoded(data, _Shape, name)
    present = {
        "fsLayers": shape.fs_layers,
        "config": shape.config,
        "layers": shape.layers,
        "manifests": shape.manifests,
    }
    for field in unwanted:
        if present[field] is not None:
            raise InvalidArgument(f"document {name} must not have {field!r} beside what its type asks for")
    if shape.schemaVersion != 2:
        raise InvalidArgument(f"document {name} has schemaVersion {shape.schemaVersion}, it must be 2")
    if said and said not in wanted:
        raise InvalidArgument(f"document {name} says to be {said!r}, it was named as another kind")


def _decoded(data: bytes, kind: type[D], what: str) -> D:
    if len(data) > MAX_DOCUMENT:
        raise InvalidArgument(f"{what} has {len(data)} bytes, at most {MAX_DOCUMENT} are read")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{what}: {error}") from error
    except RecursionError as error:
        raise InvalidArgument(f"{what} is nested too deeply") from error


def _bounded(things: Sequence[object], limit: int, what: str, plural: str) -> None:
    if len(things) > limit:
        raise InvalidArgument(f"{what} {len(things)} {plural}, at most {limit} are taken")


def _named(entries: Sequence[Entry], what: str) -> None:
    for entry in entries:
        if not entry.digest or not entry.media_type:
            raise InvalidArgument(f"{what} has a descriptor without a digest or media type")
