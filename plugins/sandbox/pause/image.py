"""What the controller takes from its image: the snapshot to stand on, and what to run."""

from __future__ import annotations

from dataclasses import dataclass

from moored.kernel.errors import FailedPrecondition, InvalidArgument, NotFound
from moored.kernel.imagespec.chain import chain_ids
from moored.kernel.imagespec.documents import MAX_DOCUMENT, Entry, Process
from moored.kernel.imagespec.platforms import default, runnable_on
from moored.kernel.imagespec.walk import best_manifest, image_config
from moored.kernel.ports.content import ContentStore, read_blob
from moored.kernel.ports.images import ImageStore


@dataclass(frozen=True, slots=True)
class PauseImage:
    """An image of the current namespace; chain is the name of the snapshot of all its layers."""

    name: str
    chain: str
    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    uid: int
    gid: int


async def read_image(name: str, images: ImageStore, content: ContentStore) -> PauseImage:
    """Read what runs on this host. Raises NotFound, FailedPrecondition or InvalidArgument for an image of no use."""
    try:
        image = await images.get(name)
    except NotFound:
        raise NotFound(f"sandbox image {name!r}") from None
    target = Entry(media_type=image.target.media_type, digest=image.target.digest, size=image.target.size)

    async def read(entry: Entry) -> bytes:
        return await read_blob(content, entry.digest, MAX_DOCUMENT)

    _, manifest = await best_manifest(target, read, runnable_on(default()))
    config = await image_config(manifest, read)
    chain = chain_ids(config.rootfs.diff_ids)
    process = config.config or Process()
    args = (*(process.entrypoint or ()), *(process.cmd or ()))
    if not chain:
        raise FailedPrecondition(f"sandbox image {name!r} has no layers")
    uid, gid = _user(process.user)
    return PauseImage(name, chain[-1], args, tuple(process.env or ()), process.working_dir or "/", uid, gid)


def _user(text: str) -> tuple[int, int]:
    """Read `UID[:GID]`; names would need the image's files."""
    uid, _, gid = text.partition(":")
    if not (uid or "0").isdecimal() or not (gid or "0").isdecimal():
        raise InvalidArgument(f"user of the sandbox image is {text!r}, wanted UID or UID:GID")
    return int(uid or 0), int(gid or 0)
