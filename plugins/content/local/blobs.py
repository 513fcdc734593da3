"""The blobs on disk; all calls but one block. One file a blob, `blobs/ALGORITHM/HEX`, complete before it gets its name.

Errors are those of the port.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress

from moored.kernel.errors import AlreadyExists, DataLoss, FailedPrecondition, NotFound
from moored.kernel.mountfds import RESOLVE_CACHED, open_within
from moored.kernel.ports.content import ALGORITHMS, MAX_CHUNK, Digest, Info, digest_fault
from moored.kernel.workers import Stop
from moored.plugins.content.local.faults import Unsafe, about, port_error
from moored.plugins.content.local.layout import SAFELY, folder, open_file, open_folder


class Blobs:
    """The folder `blobs`, given by its descriptor, which stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._folders: dict[str, int] = {}
        self._opening = threading.Lock()

    def info(self, digest: Digest) -> Info:
        """See the port."""
        found = self._stat(digest)
        if found is None:
            raise NotFound(f"content {digest}")
        if not stat.S_ISREG(found.st_mode):
            raise DataLoss(f"content {digest} is no regular file")
        return _info(digest, found)

    def has(self, digest: Digest, size: int | None = None) -> bool:
        """Return whether the blob is there and, where size is known, has not lost bytes."""
        found = self._stat(digest)
        return found is not None and stat.S_ISREG(found.st_mode) and size in (None, found.st_size)

    def open(self, digest: Digest) -> tuple[int, int]:
        """Open a blob and give its descriptor, which the caller closes, and its size."""
        with about(f"content {digest}"):
            try:
                parent = self._folder(digest.algorithm)
                if parent is None:
                    raise NotFound(f"content {digest}")
                fd = open_file(parent, digest.encoded, os.O_RDONLY)
            except FailedPrecondition as error:
                raise DataLoss(f"content {digest} is no regular file") from error
            except OSError as error:
                if (found := self._stat(digest)) is not None and not stat.S_ISREG(found.st_mode):
                    raise DataLoss(f"content {digest} is no regular file") from error
                raise
            return fd, os.fstat(fd).st_size

    def open_cached(self, digest: Digest) -> tuple[int, int] | None:
        """Do as `open` if that needs no look at a disk, and so without blocking; None where it does, or fails."""
        parent = self._folders.get(digest.algorithm)
        if parent is None:
            return None
        try:
            fd = open_within(parent, digest.encoded, os.O_RDONLY | SAFELY, RESOLVE_CACHED)
        except OSError:
            return None
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode):
            return fd, found.st_size
        os.close(fd)
        return None

    def delete(self, digest: Digest) -> None:
        """See the port; what is no file goes too, unless it is a folder."""
        parent = self._folder(digest.algorithm)
        if parent is None:
            raise NotFound(f"content {digest}")
        with about(f"content {digest}"):
            os.unlink(digest.encoded, dir_fd=parent)

    def publish(self, source: int, digest: Digest) -> Info:
        """Move the durable file `data` of the folder `source` to its name; durable when this returns.

        The caller lets no two calls for one digest overlap. Raises AlreadyExists for a blob of that size: `data` stays.
        Raises Unsafe, having taken the blob away again, when the folders cannot be made durable.
        """
        with about(f"content {digest}"):
            parent = self._folder(digest.algorithm, make=True)
            assert parent is not None
            data = os.stat("data", dir_fd=source, follow_symlinks=False)
            if self.has(digest, data.st_size):
                raise AlreadyExists(f"content {digest}")
            os.rename("data", digest.encoded, src_dir_fd=source, dst_dir_fd=parent)
            try:
                os.fsync(parent)
                os.fsync(source)
            except OSError as error:
                # Left there, a later commit would take it for safe.
                with suppress(OSError):
                    os.unlink(digest.encoded, dir_fd=parent)
                raise Unsafe(f"content {digest}: {os.strerror(error.errno or 0).lower()}") from error
        return _info(digest, data)

    def digests(self) -> list[Digest]:
        """Give the digests of all entries with a good name, in order."""
        found = []
        for algorithm in sorted(ALGORITHMS):
            with about("content folder"):
                parent = self._folder(algorithm)
                names = os.listdir(parent) if parent is not None else []  # noqa: PTH208 - by descriptor
            found += [Digest(text) for name in sorted(names) if not digest_fault(text := f"{algorithm}:{name}")]
        return found

    def infos(self, digests: Iterable[Digest]) -> Iterator[Info]:
        """Give the infos of those that are (still) there and are files."""
        for digest in digests:
            with suppress(NotFound, DataLoss):
                yield self.info(digest)

    def verify(self, digest: Digest, stop: Stop) -> Info:
        """See the port; raises Stopped."""
        fd, _ = self.open(digest)
        try:
            hasher = hashlib.new(digest.algorithm)
            with about(f"content {digest}"):
                hash_file(fd, hasher, None, stop)
            found = f"{digest.algorithm}:{hasher.hexdigest()}"
            if found != digest:
                raise DataLoss(f"content {digest} has the bytes of {found}")
            return self.info(digest)
        finally:
            os.close(fd)

    def settle(self) -> None:
        """Make the names durable that a process gave before it was killed: they are taken for safe from now on."""
        with about("content folder"):
            for algorithm in ALGORITHMS:
                parent = self._folder(algorithm)
                if parent is not None:
                    os.fsync(parent)

    def close(self) -> None:
        """Close the folders below."""
        with self._opening:
            for fd in self._folders.values():
                os.close(fd)
            self._folders.clear()

    def _stat(self, digest: Digest) -> os.stat_result | None:
        parent = self._folder(digest.algorithm)
        if parent is None:
            return None
        try:
            return os.stat(digest.encoded, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise port_error(f"content {digest}", error) from error

    def _folder(self, algorithm: str, *, make: bool = False) -> int | None:
        with self._opening:
            if algorithm not in self._folders:
                try:
                    self._folders[algorithm] = (folder if make else open_folder)(self._fd, algorithm)
                except FileNotFoundError:
                    return None
                except OSError as error:
                    raise port_error("content folder", error) from error
            return self._folders[algorithm]


def _info(digest: Digest, found: os.stat_result) -> Info:
    return Info(digest=digest, size=found.st_size, created_at=found.st_mtime_ns, updated_at=found.st_mtime_ns)


def hash_file(fd: int, hasher: hashlib._Hash, size: int | None, stop: Stop) -> int:
    """Feed the first `size` bytes of a file (None: all) to the hasher; give their number. Raises OSError, Stopped."""
    buffer = memoryview(bytearray(MAX_CHUNK))
    at = 0
    while size is None or at < size:
        stop.check()
        wanted = MAX_CHUNK if size is None else min(MAX_CHUNK, size - at)
        count = os.preadv(fd, [buffer[:wanted]], at)
        if count == 0:
            break
        hasher.update(buffer[:count])
        at += count
    return at
