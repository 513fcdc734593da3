"""Puts a unix socket at its path: never open wider than asked, never over a live one, removed only while it is ours.

The socket is bound in a 0700 folder beside its path, gets its mode and owner there, and is renamed into place once
it is served; so nobody connects before that and a dead predecessor is replaced in one step.
"""

from __future__ import annotations

import os
import secrets
import socket
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from moored.kernel.errors import FailedPrecondition, InvalidArgument

MODE = 0o660
FOLDER_MODE = 0o770
MAX_PATH_BYTES = 104
"""containerd's limit (semantics 6); Linux itself takes 107."""
_MAX_BIND_BYTES = 107


@dataclass(slots=True)
class Claim:
    """A path that is about to be ours: bind a socket at `bind_path`, serve it, then `publish`."""

    path: Path
    bind_path: Path
    uid: int
    gid: int
    _folder: int
    _identity: tuple[int, int] | None = None

    def bound(self) -> socket.socket:
        """A stream socket bound at `bind_path`, for servers that take one."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(self.bind_path))
        except BaseException:
            sock.close()
            raise
        return sock

    def publish(self) -> None:
        """Move the bound socket to its path. Raises FailedPrecondition if somebody took the path meanwhile."""
        name = self.bind_path.name
        os.chmod(name, MODE, dir_fd=self._folder)
        os.chown(name, self.uid, self.gid, dir_fd=self._folder, follow_symlinks=False)
        found = os.lstat(name, dir_fd=self._folder)
        check_free(self.path)
        os.rename(name, self.path, src_dir_fd=self._folder)
        self._identity = (found.st_dev, found.st_ino)
        with suppress(OSError):
            self.bind_path.parent.rmdir()

    def withdraw(self) -> None:
        """Remove the socket, unless another one stands in its place."""
        if self._identity is None:
            return
        with suppress(FileNotFoundError):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self.path.unlink()
        self._identity = None


@contextmanager
def claim(address: str, uid: int, gid: int) -> Generator[Claim]:
    """Prepare a path for a socket, and remove that in the end.

    The folder is made 0770 and uid:gid where it is missing. Raises InvalidArgument for a path that cannot be one,
    FailedPrecondition if somebody answers there or something else than a socket stands there, OSError.
    """
    path = _checked(address)
    _make_folder(path.parent, uid, gid)
    check_free(path)
    private, folder = _private_folder(path.parent)
    found = Claim(path, private / "s", uid, gid, folder)
    try:
        if len(os.fsencode(found.bind_path)) > _MAX_BIND_BYTES:
            raise InvalidArgument(f"socket name {path.name!r} is too short for the long folder {str(path.parent)!r}")
        yield found
    finally:
        with suppress(FileNotFoundError):
            os.unlink("s", dir_fd=folder)
        os.close(folder)
        with suppress(OSError):
            private.rmdir()
        found.withdraw()


def check_free(path: Path) -> None:
    """Raise FailedPrecondition unless the path is free or holds a socket that nobody listens on."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FailedPrecondition(f"{str(path)!r} exists and is no socket, remove it or use another address")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError as error:
            # A full backlog (EAGAIN), no permission or a socket of another kind: all of them have an owner.
            reason = f"{str(path)!r} is in use ({os.strerror(error.errno or 0).lower()})"
            raise FailedPrecondition(reason) from error
    raise FailedPrecondition(f"{str(path)!r} is in use, a server answers there")


def _checked(address: str) -> Path:
    path = Path(address)
    if not path.is_absolute() or not path.name:
        raise InvalidArgument(f"socket address {address!r} must be an absolute path")
    if "\0" in address:
        raise InvalidArgument(f"socket address {address!r} must not hold a zero byte")
    if (size := len(os.fsencode(address))) > MAX_PATH_BYTES:
        raise InvalidArgument(f"socket address {address!r} has {size} bytes, at most {MAX_PATH_BYTES} are possible")
    return path


def _make_folder(folder: Path, uid: int, gid: int) -> None:
    if folder.exists():
        return
    _make_folder(folder.parent, uid, gid)
    folder.mkdir(mode=0o700)
    _own(folder, uid, gid)
    folder.chmod(FOLDER_MODE)


def _own(path: Path, uid: int, gid: int) -> None:
    found = path.lstat()
    if (found.st_uid, found.st_gid) != (uid, gid):
        os.chown(path, uid, gid, follow_symlinks=False)


def _private_folder(parent: Path) -> tuple[Path, int]:
    """Make a folder that only we can enter; its path, and a descriptor for all further work in it.

    The parent may belong to the socket's owner, who could put another folder in its place: hence no work by path.
    """
    while True:
        # A short name: what is bound has to fit into a socket address too.
        folder = parent / f".{secrets.token_hex(2)}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            break
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        os.close(descriptor)
        raise FailedPrecondition(f"folder {str(folder)!r} was replaced by somebody else's")
    return folder, descriptor
