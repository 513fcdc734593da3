"""Writes images as an archive that is an OCI layout, and one that Docker can load.

Members are sorted by name and all have the same owner and time, so that the same images give the same bytes.
Source: contracts/semantics.md 3.10, Export.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from moored.kernel.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from moored.kernel.imagespec import documents, media, references
from moored.kernel.imagespec.archives import tar
from moored.kernel.imagespec.archives.plain import described, go_json
from moored.kernel.imagespec.archives.reading import INDEX, LAYOUT, MANIFEST, VERSION, name_annotations
from moored.kernel.imagespec.documents import MAX_DOCUMENT, Entry
from moored.kernel.imagespec.platforms import Matcher
from moored.kernel.imagespec.walk import chosen, read_document, walk
from moored.kernel.ports.content import LabelledContentStore, read_blob
from moored.kernel.ports.images import Image

SOURCE_LABEL: Final = "containerd.io/distribution.source"
"""Label, with `.HOST` behind it: the repositories of a host that have a blob, separated by commas."""

Write = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What of the images goes into the archive; see ArchiveSink."""

    wanted: Matcher
    all_platforms: bool = False
    docker_manifest: bool = True
    nondistributable: bool = True


async def write_archive(store: LabelledContentStore, images: Sequence[Image], choice: Choice, write: Write) -> None:
    """Write the archive of these images.

    Raises NotFound for a document that is missing, or no manifest for the platforms, before anything is written; for a
    missing or damaged blob after part of it was. InvalidArgument for an image that is neither manifest nor index.
    """
    plan = _Plan(store, choice)
    for image in images:
        await plan.add(image)
    await plan.finish()
    for name, member in sorted(plan.members.items()):
        await _write_member(store, name, member, write)
    await write(tar.END)


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of the archive: bytes of its own, or a blob; or a folder, with neither."""

    mode: int
    data: bytes = b""
    blob: Entry | None = None


@dataclass(slots=True)
class _Named:
    """A manifest that Docker will see, and its names."""

    manifest: Entry
    names: list[str] = field(default_factory=list)


class _Plan:
    """The members of an archive, collected image by image."""

    def __init__(self, store: LabelledContentStore, choice: Choice) -> None:
        self.members: dict[str, _Member] = {}
        self._store = store
        self._choice = choice
        self._tops: list[Entry] = []
        self._docker: dict[str, _Named] = {}
        self._of_index: dict[str, str] = {}
        self._algorithms: set[str] = set()

    async def add(self, image: Image) -> None:
        """Add an image and all that belongs to it."""
        top = Entry(
            media_type=image.target.media_type,
            digest=image.target.digest,
            size=image.target.size,
            annotations={**image.target.annotations, **name_annotations(image.name), **await self._sources(image)},
        )
        self._tops.append(top)
        if top.media_type in media.MANIFESTS:
            if top.digest not in self._docker:
                await self._add_tree(top)
                self._docker[top.digest] = _Named(top)
            self._docker[top.digest].names.append(image.name)
        elif top.media_type in media.INDEXES:
            if top.digest not in self._of_index:
                self._of_index[top.digest] = await self._add_index(top)
            if seen := self._of_index[top.digest]:
                self._docker[seen].names.append(image.name)
        else:
            raise InvalidArgument("only manifests may be exported")

    async def _sources(self, image: Image) -> Mapping[str, str]:
        labels = (await self._store.info(image.target.digest)).labels
        return {key: value for key, value in labels.items() if key.startswith(SOURCE_LABEL)}

    async def _add_index(self, top: Entry) -> str:
        """Add an index; the digest of the manifest that Docker will see, empty for none."""
        index = documents.index(await read_document(top, self._read), top.digest)
        self._add_blob(top)
        best = chosen(index.manifests, self._choice.wanted)
        for manifest in index.manifests if self._choice.all_platforms else best:
            await self._add_tree(manifest)
        if not best:
            raise NotFound("no manifest found for platform")
        if best[0].media_type not in media.MANIFESTS:
            return ""
        self._docker.setdefault(best[0].digest, _Named(best[0]))
        return best[0].digest

    async def _add_tree(self, top: Entry) -> None:
        async for node in walk(top, self._read):
            self._add_blob(node.entry)

    def _add_blob(self, entry: Entry) -> None:
        if not self._choice.nondistributable and media.is_nondistributable(entry.media_type):
            return
        path = _path(entry.digest)
        known = self.members.get(path)
        if known is not None and known.blob is not None and known.blob.size != entry.size:
            raise FailedPrecondition(
                f"content {entry.digest} is described with {known.blob.size} and {entry.size} bytes"
            )
        self.members[path] = _Member(0o444, blob=entry)
        self._algorithms.add(entry.digest.partition(":")[0])

    async def _read(self, entry: Entry) -> bytes:
        return await read_blob(self._store, entry.digest, MAX_DOCUMENT)

    async def finish(self) -> None:
        """Add what tells readers what is in the archive."""
        index = {
            "schemaVersion": 2,
            "mediaType": media.OCI_INDEX,
            "manifests": [described(top) for top in self._tops],
        }
        self.members[LAYOUT] = _Member(0o444, go_json({"imageLayoutVersion": VERSION}))
        self.members[INDEX] = _Member(0o644, go_json(index))
        if self._choice.docker_manifest and self._docker:
            docker = [await self._docker_image(named) for named in self._docker.values()]
            self.members[MANIFEST] = _Member(0o644, go_json(docker))
        for folder in ("blobs/", *(f"blobs/{algorithm}/" for algorithm in self._algorithms)):
            if self._algorithms:
                self.members[folder] = _Member(0o755)

    async def _docker_image(self, named: _Named) -> dict[str, object]:
        manifest = documents.manifest(await read_document(named.manifest, self._read), named.manifest.digest)
        return {
            "Config": _path(manifest.config.digest),
            "RepoTags": list(_familiar(named.names)) or None,
            "Layers": [_path(layer.digest) for layer in manifest.layers] or None,
        }


def _familiar(names: Sequence[str]) -> Iterator[str]:
    """Names as Docker has them; those that can be none are left to the OCI index."""
    for name in names:
        try:
            yield references.familiar(str(references.parse_familiar(name)))
        except InvalidArgument:
            continue


def _path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


async def _write_member(store: LabelledContentStore, name: str, member: _Member, write: Write) -> None:
    size = member.blob.size if member.blob is not None else len(member.data)
    await write(tar.header(name, size, member.mode))
    if member.blob is not None:
        await _write_blob(store, member.blob, write)
    else:
        await write(member.data)
    await write(tar.padding(size))


async def _write_blob(store: LabelledContentStore, entry: Entry, write: Write) -> None:
    """Copy a blob, and say so if it is not what its name says."""
    async with await store.reader(entry.digest) as blob:
        if blob.size != entry.size:
            raise FailedPrecondition(f"content {entry.digest} has {blob.size} bytes, {entry.size} are described")
        algorithm, _, wanted = entry.digest.partition(":")
        hasher = hashlib.new(algorithm)
        async with aclosing(blob.chunks()) as chunks:
            async for chunk in chunks:
                await asyncio.to_thread(hasher.update, chunk)
                await write(chunk)
    if hasher.hexdigest() != wanted:
        raise DataLoss(f"content {entry.digest} has the bytes of {algorithm}:{hasher.hexdigest()}")
