"""Files of a container as its own paths name them, reached by descriptors so that no link leads out of it.

A path is opened with openat2(2) and RESOLVE_IN_ROOT: the container may swap folders and links as fast as it likes, what
is opened stays inside. Everything below is then reached name by name, never through a link. Nothing of the container is
executed or loaded. Source: faults catalogue, copies into and out of live root file systems.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

from moored.api.cli import identity, lifetime
from moored.api.cli.states import is_up
from moored.api.client import Client
from moored.api.client.containers import Container
from moored.kernel.errors import FailedPrecondition, InvalidArgument, MooredError, NotFound, PermissionDenied, Unknown
from moored.kernel.mountfds import RESOLVE_IN_ROOT, open_within
from moored.kernel.mounts import mounted
from moored.kernel.ports.mounts import Mount

FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
LOOK: Final = os.O_PATH | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Root:
    """A root of paths by its descriptor; what: how errors name it, `web:` for one; closed: links stay inside."""

    fd: int
    what: str
    closed: bool = True

    def open(self, path: str, flags: int) -> int:
        """Open a path. Raises NotFound, InvalidArgument, PermissionDenied, Unknown."""
        inner = path.strip("/") or "."
        try:
            if self.closed:
                return open_within(self.fd, inner, flags, RESOLVE_IN_ROOT)
            return os.open(path, flags)
        except OSError as error:
            raise fault(error, f"{self.what}{path}") from error

    def folder(self, path: str) -> int:
        """Open a folder."""
        return self.open(path, FOLDER)

    def kind(self, path: str, *, follow: bool = True) -> int:
        """Give the mode of what a path names, 0 for nothing."""
        try:
            fd = self.open(path, LOOK if follow else LOOK | os.O_NOFOLLOW)
        except NotFound:
            return 0
        try:
            return os.fstat(fd).st_mode
        finally:
            os.close(fd)


def fault(error: OSError, where: str) -> MooredError:
    """Give the error for a path that could not be worked with."""
    reason = os.strerror(error.errno or 0).lower()
    kinds: dict[int, type[MooredError]] = {
        errno.ENOENT: NotFound,
        errno.ENOTDIR: InvalidArgument,
        errno.EISDIR: InvalidArgument,
        errno.ELOOP: InvalidArgument,
        errno.EACCES: PermissionDenied,
        errno.EPERM: PermissionDenied,
        errno.EROFS: FailedPrecondition,
    }
    return kinds.get(error.errno or 0, Unknown)(f"{where}: {reason}")


@contextmanager
def host_root() -> Generator[Root]:
    """The host's own paths, relative ones from the working folder."""
    yield Root(-1, "", closed=False)


@asynccontextmanager
async def container_root(client: Client, container: Container, *, write: bool) -> AsyncGenerator[Root]:
    """A container's files: with all that is mounted in it while it runs, else its snapshot, mounted for the block.

    Raises FailedPrecondition where there is neither, PermissionDenied if moorctl is not root on the daemon's host.
    """
    what = f"{identity.called(container)}:"
    state = await lifetime.state(container)
    if is_up(state) and state is not None:
        try:
            fd = os.open(f"/proc/{state.pid}/root", FOLDER)
        except OSError as error:
            raise fault(error, f"files of container {what}") from error
        try:
            yield Root(fd, what)
        finally:
            os.close(fd)
        return
    record = container.record
    if not record.snapshot_key:
        raise FailedPrecondition(f"container {what} does not run and has no snapshot whose files could be looked at")
    mounts = await client.snapshots(record.snapshotter).mounts(record.snapshot_key)
    if not write:
        from moored.api.client.rootfs import read_only

        mounts = [read_only(mount) for mount in mounts] if state is None and not _is_overlay(mounts) else mounts
    try:
        with mounted(mounts) as place:
            fd = os.open(place, FOLDER)
            try:
                yield Root(fd, what)
            finally:
                os.close(fd)
    except OSError as error:
        raise fault(error, f"files of container {what}") from error


def _is_overlay(mounts: Sequence[Mount]) -> bool:
    # An overlay shown without its upper folder would lack what the container has changed.
    return any(mount.type == "overlay" for mount in mounts)


def names(folder: int) -> list[str]:
    """Names in a folder, sorted."""
    return sorted(os.listdir(folder))


def is_folder(mode: int) -> bool:
    """Whether a mode is a folder's; 0 is nothing's."""
    return bool(mode) and stat.S_ISDIR(mode)


def split(path: str) -> tuple[str, str]:
    """Give the folder that a path is in and its last name, empty for a root or a path that ends in a dot name."""
    trimmed = path.rstrip("/")
    parent, _, name = trimmed.rpartition("/")
    if name in ("", ".", ".."):
        return path, ""
    return parent or ("/" if path.startswith("/") else "."), name
