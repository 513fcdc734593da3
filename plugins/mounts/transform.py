"""What a mount's type may have in front: things to do before it is mounted.

format/  texts are filled in from the mounts before
mkdir/   folders are made
mkfs/    the source is made a file system, unless it is there

Source: semantics 3.8.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, Protocol

from moored.kernel.errors import InvalidArgument, Unknown
from moored.kernel.ports.mounts import INTERNAL_OPTION, ActiveMount, Mount
from moored.kernel.workers import to_the_end
from moored.plugins.mounts.roots import Roots

MKDIR: Final = f"{INTERNAL_OPTION}mkdir."
MKFS: Final = f"{INTERNAL_OPTION}mkfs."
MAX_SAID: Final = 4096
"""Bytes of what a program said that become an error's text."""


class Transformer(Protocol):
    """Does what one prefix stands for."""

    async def transform(self, mount: Mount, earlier: Sequence[ActiveMount]) -> Mount:
        """Give the mount that is left to make. Errors of the closed set."""


# --- format -----------------------------------------------------------------------------------------------------------

_TEMPLATE: Final = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_CALL: Final = re.compile(
    r"-?\s*(source|target|mount)\s+([0-9]{1,5})\s*-?|-?\s*overlay\s+([0-9]{1,5})\s+([0-9]{1,5})\s*-?"
)


class Format:
    """Fills `{{ source I }}`, `{{ target I }}`, `{{ mount I }}`, `{{ overlay I J }}` in source, target and options."""

    async def transform(self, mount: Mount, earlier: Sequence[ActiveMount]) -> Mount:
        """See Transformer. Raises InvalidArgument for other words in braces, and for mounts that are not there."""
        return replace(
            mount,
            source=_filled(mount.source, earlier),
            target=_filled(mount.target, earlier),
            options=tuple(_filled(option, earlier) for option in mount.options),
        )


def _filled(text: str, earlier: Sequence[ActiveMount]) -> str:
    def value(match: re.Match[str]) -> str:
        call = _CALL.fullmatch(match[1])
        if call is None:
            raise InvalidArgument(
                f"mount text {text[:256]!r} has {match[0][:64]!r}, wanted source, target or mount with an index, or "
                "overlay with two"
            )
        if call[1] is None:
            return ":".join(one.mount_point for one in _between(earlier, int(call[3]), int(call[4])))
        one = _at(earlier, int(call[2]))
        return {"source": one.mount.source, "target": one.mount.target, "mount": one.mount_point}[call[1]]

    return _TEMPLATE.sub(value, text)


def _at(earlier: Sequence[ActiveMount], index: int) -> ActiveMount:
    if index >= len(earlier):
        raise InvalidArgument(f"index out of bounds: {index}, has {len(earlier)} active mounts")
    return earlier[index]


def _between(earlier: Sequence[ActiveMount], start: int, end: int) -> list[ActiveMount]:
    if max(start, end) >= len(earlier):
        raise InvalidArgument(f"invalid range: {start}-{end}, has {len(earlier)} active mounts")
    step = 1 if start <= end else -1
    return [earlier[index] for index in range(start, end + step, step)]


# --- mkdir ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Folder:
    path: str
    mode: int
    uid: int
    gid: int


class Mkdir:
    """Makes the folders of `X-containerd.mkdir.path=PATH[:MODE[:UID:GID]]`, their parents must be there."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots

    async def transform(self, mount: Mount, earlier: Sequence[ActiveMount]) -> Mount:
        """See Transformer. A folder that is there gets the mode and the owner."""
        for option in mount.options:
            if option.startswith(MKDIR):
                folder = _folder(option)
                await to_the_end(asyncio.to_thread(self._make, folder))
        return replace(mount, options=tuple(one for one in mount.options if not one.startswith(MKDIR)))

    def _make(self, folder: _Folder) -> None:
        try:
            with self._roots.parent_of(folder.path, "mkdir") as (parent, name):
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=parent)
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
                try:
                    os.fchown(fd, folder.uid, folder.gid)
                    os.fchmod(fd, folder.mode)
                finally:
                    os.close(fd)
        except OSError as error:
            raise Unknown(f'failed to create directory "{folder.path}": {(error.strerror or "").lower()}') from error


_MODE: Final = re.compile(r"0?[0-7]{1,3}")
_ID: Final = re.compile(r"[0-9]{1,10}")


def _folder(option: str) -> _Folder:
    name, _, value = option.removeprefix(MKDIR).partition("=")
    path, *rest = value.split(":")
    if name != "path" or len(rest) not in (0, 1, 3):
        raise InvalidArgument(f"invalid mkdir option {option[:256]!r}, wanted {MKDIR}path=PATH[:MODE[:UID:GID]]")
    mode, uid, gid = [*rest, *("700", "", "")[len(rest) :]]
    if not _MODE.fullmatch(mode):
        raise InvalidArgument(f"invalid mode {mode!r} in {option[:256]!r}, wanted up to 777 in octal")
    for kind, text in (("uid", uid), ("gid", gid)):
        if rest[1:] and not _ID.fullmatch(text):
            raise InvalidArgument(f"invalid {kind} {text!r}")
    return _Folder(path, int(mode, 8), int(uid or os.getuid()), int(gid or os.getgid()))


# --- mkfs -------------------------------------------------------------------------------------------------------------

_PROGRAMS: Final = {"ext2": "mkfs.ext2", "ext3": "mkfs.ext3", "ext4": "mkfs.ext4", "xfs": "mkfs.xfs"}
_UUID: Final = re.compile(r"[0-9a-fA-F-]{1,64}")
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kmgtp]?)(?:i?b)?")


@dataclass(frozen=True, slots=True)
class _Image:
    path: str
    size: int
    kind: str
    uuid: str

    @property
    def command(self) -> list[str]:
        """What makes it, but for the file."""
        chosen = []
        if self.uuid:
            chosen = ["-m", f"uuid={self.uuid}"] if self.kind == "xfs" else ["-U", self.uuid]
        return [_PROGRAMS[self.kind], "-q", *chosen]


class Mkfs:
    """Makes the source an ext2, ext3, ext4 or xfs by `X-containerd.mkfs.size=`, `.fs=` and `.uuid=`.

    It appears whole or not at all, and once made it stays.
    """

    def __init__(self, roots: Roots) -> None:
        self._roots = roots

    async def transform(self, mount: Mount, earlier: Sequence[ActiveMount]) -> Mount:
        """See Transformer."""
        image = _image(mount)
        try:
            with self._roots.parent_of(image.path, "mkfs") as (parent, name):
                if not _is_there(parent, name):
                    await to_the_end(_make_image(image, parent, name))
        except OSError as error:
            raise Unknown(f'failed to create file "{image.path}": {(error.strerror or "").lower()}') from error
        return replace(mount, options=tuple(one for one in mount.options if not one.startswith(MKFS)))


def _image(mount: Mount) -> _Image:
    values = {"size": "0", "fs": "ext4", "uuid": ""}
    for option in mount.options:
        if option.startswith(MKFS):
            key, _, value = option.removeprefix(MKFS).partition("=")
            if key not in values:
                raise InvalidArgument(f"unknown mount option {key[:64]}")
            values[key] = value
    size = _bytes(values["size"])
    if not size:
        raise InvalidArgument("mkfs requires mkfs.size option")
    if values["fs"] not in _PROGRAMS:
        raise InvalidArgument(f'unsupported filesystem "{values["fs"][:64]}"')
    if values["uuid"] and not _UUID.fullmatch(values["uuid"]):
        raise InvalidArgument(f"mkfs.uuid {values['uuid'][:64]!r} is none")
    return _Image(mount.source, size, values["fs"], values["uuid"])


def _bytes(text: str) -> int:
    """Read a size; units are powers of 1024 whether they have an `i` or not."""
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise InvalidArgument(f"mkfs.size {text[:64]!r} is none, wanted bytes, or a number with k, m, g, t or p")
    return int(float(match[1]) * 1024 ** " kmgtp".index(match[2] or " "))


def _is_there(parent: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


async def _make_image(image: _Image, parent: int, name: str) -> None:
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o640, dir_fd=parent)
    try:
        os.truncate(fd, image.size)
        await _run([*image.command, f"/proc/self/fd/{fd}"], fd)
        await asyncio.to_thread(os.fsync, fd)
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=parent, follow_symlinks=True)
        await asyncio.to_thread(_sync_folder, parent)
    finally:
        os.close(fd)


async def _run(command: Sequence[str], fd: int) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=(fd,),
        )
    except FileNotFoundError as error:
        raise Unknown(f"{command[0]} failed: it is not installed") from error
    said, _ = await process.communicate()
    if process.returncode:
        raise Unknown(f"{command[0]} failed: {said[:MAX_SAID].decode(errors='replace').strip()}")


def _sync_folder(parent: int) -> None:
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
