"""One ingest on disk; every call blocks, and no two overlap, except `hashed`.

An ingest is begun by making its folder and, last, `data`; it ends by `data` going away, to the blobs or for good,
before the rest. Killed in between, it is not whole, and whoever meets it next removes it. Of `data`, the bytes that
`synced` counts outlast the machine: behind them a power cut may leave anything, zeros as well. Errors are OSError
unless named.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Final

from moored.kernel.errors import DataLoss, FailedPrecondition, OutOfRange
from moored.kernel.ports.content import MAX_REF_BYTES, Chunk, Digest, Status
from moored.kernel.workers import Stop
from moored.plugins.content.local.blobs import hash_file
from moored.plugins.content.local.faults import Unsafe
from moored.plugins.content.local.layout import (
    BLOB_MODE,
    folder,
    new_small,
    open_file,
    open_folder,
    read_count,
    read_small,
    read_stamp,
    stamp,
    write_small,
)

SYNCED: Final = "synced"
_WRITABLE: Final = 0o644
_HURRY: Final = 8 << 20
"""Bytes after which the disk is told to begin."""
_HEX: Final = frozenset("0123456789abcdef")


def ingest_name(ref: str) -> str:
    """Give the folder of a ref."""
    return hashlib.sha256(ref.encode()).hexdigest()


def digest_of(hasher: hashlib._Hash) -> Digest:
    """Give the digest that a hash stands for."""
    return Digest(f"{hasher.name}:{hasher.hexdigest()}")


class Ingest:
    """An open ingest. The values change only with a call that succeeds.

    offset, total: bytes. started_at, updated_at: nanoseconds since 1970. begun: made anew, not resumed. gone: no longer
    on disk. closed: its files are.
    """

    def __init__(self, ref: str, folder_fd: int, data_fd: int, hasher: hashlib._Hash) -> None:
        self.ref: Final = ref
        self.folder: Final = folder_fd
        self._data: Final = data_fd
        self._hasher = hasher
        self._unsynced = False
        self._synced = self._hurried = 0
        self.begun = self.gone = self.closed = False
        self.offset = 0
        self.total = 0
        self.started_at = self.updated_at = time.time_ns()

    @property
    def hasher(self) -> hashlib._Hash:
        """The hash of all bytes so far; never changed, only replaced."""
        return self._hasher

    @property
    def digest(self) -> Digest:
        """The digest of all bytes so far."""
        return digest_of(self._hasher)

    @property
    def status(self) -> Status:
        """See the port."""
        return Status(
            ref=self.ref,
            offset=self.offset,
            total=self.total,
            started_at=self.started_at,
            updated_at=self.updated_at,
        )

    def hashed(self, data: Chunk) -> hashlib._Hash:
        """Give the hash with data added; the ingest keeps its own until `accept`."""
        hasher = self._hasher.copy()
        hasher.update(data)
        return hasher

    def put(self, data: Chunk) -> None:
        """Write data behind the last byte; if not all of it fits, none stays."""
        view = memoryview(data).cast("B")
        done = 0
        self._unsynced = True
        try:
            while done < len(view):
                done += os.pwrite(self._data, view[done:], self.offset + done)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._data, self.offset)
            raise
        self._hurry(self.offset + done)

    def _hurry(self, end: int) -> None:
        """Let the disk begin with what was written, so that the sync of the commit has little left to wait for."""
        if end - self._hurried < _HURRY:
            return
        # Of dirty pages the kernel drops none: it starts to write them (sync_file_range is not in Python).
        with suppress(OSError):
            os.posix_fadvise(self._data, self._hurried, end - self._hurried, os.POSIX_FADV_DONTNEED)
        self._hurried = end

    def accept(self, hasher: hashlib._Hash, size: int) -> None:
        """Count `size` bytes as written, with the hash of all."""
        self._hasher = hasher
        self.offset += size
        self.updated_at = time.time_ns()

    def truncate(self, size: int, stop: Stop) -> None:
        """Cut to `size` bytes. Raises OutOfRange, Stopped."""
        if size > self.offset:
            raise OutOfRange(f"cannot cut to {size} bytes, ingest {self.ref!r} has {self.offset}")
        hasher = hashlib.new(self._hasher.name)
        if hash_file(self._data, hasher, size, stop) != size:
            raise DataLoss(f"ingest {self.ref!r} has fewer than {size} bytes on disk")
        if size < self._synced:
            # Other bytes will stand where these were: they must never count as durable because those did.
            os.unlink(SYNCED, dir_fd=self.folder)
            os.fsync(self.folder)
            self._synced = 0
        os.ftruncate(self._data, size)
        self._unsynced = True
        self._hasher = hasher
        self._hurried = min(self._hurried, size)
        self.offset = size
        self.updated_at = time.time_ns()

    def seal(self, size: int, expected: Digest | None, stop: Stop) -> Digest:
        """Check what is to become a blob, make it durable, and give its digest.

        Raises FailedPrecondition for another size or digest than wanted, Unsafe, Stopped.
        """
        if size not in (0, self.offset):
            raise FailedPrecondition(f"unexpected commit size {self.offset}, expected {size}")
        digest = self._digest_as(expected.algorithm, stop) if expected else self.digest
        if expected and digest != expected:
            raise FailedPrecondition(f"unexpected commit digest {digest}, expected {expected}")
        if os.fstat(self._data).st_size != self.offset:
            raise Unsafe(f"ingest {self.ref!r} was changed on disk by somebody else")
        # Before the sync, so that the blob never has another mode or time, however this process ends.
        os.fchmod(self._data, BLOB_MODE)
        os.utime(self._data)
        self._sync()
        return digest

    def _digest_as(self, algorithm: str, stop: Stop) -> Digest:
        if algorithm != self._hasher.name:
            hasher = hashlib.new(algorithm)
            hash_file(self._data, hasher, self.offset, stop)
            self._hasher = hasher
        return self.digest

    def suspend(self) -> None:
        """Make the bytes durable and note when they were written, so that the ingest can be resumed. Raises Unsafe."""
        if self._unsynced:
            self._sync()
        if self.offset > self._synced:
            with suppress(OSError, FailedPrecondition):  # fewer count
                write_small(self.folder, SYNCED, str(self.offset).encode())
        with suppress(OSError, FailedPrecondition):  # the time of `data` itself stands in
            write_small(self.folder, "updatedat", stamp(self.updated_at))

    def _sync(self) -> None:
        try:
            os.fsync(self._data)
        except OSError as error:
            raise Unsafe(f"ingest {self.ref!r}: {os.strerror(error.errno or 0).lower()}") from error
        self._unsynced = False

    def close(self) -> None:
        """Close the files; again is harmless."""
        if self.closed:
            return
        self.closed = True
        os.close(self._data)
        os.close(self.folder)


def open_ingest(parent: int, ref: str, total: int, algorithm: str, stop: Stop) -> Ingest:
    """Resume the ingest of a ref in the folder `ingest`; begin it if there is none that is whole and fits.

    Raises Stopped.
    """
    name = ingest_name(ref)
    with ExitStack() as undo:
        try:
            folder_fd = folder(parent, name, durable=False)
        except FailedPrecondition:
            remove_entry(parent, name)
            folder_fd = folder(parent, name, durable=False)
        undo.callback(os.close, folder_fd)
        found = _resume(folder_fd, ref, total, algorithm, stop)
        if found is None:
            try:
                found = _begin(folder_fd, ref, total, algorithm)
            except OSError:
                with suppress(OSError):
                    remove_entry(parent, name)
                raise
        undo.pop_all()
        return found


def _resume(folder_fd: int, ref: str, total: int, algorithm: str, stop: Stop) -> Ingest | None:
    with ExitStack() as undo:
        if _read_ref(folder_fd) != ref:
            return None
        try:
            data = _open_data(folder_fd)
        except (FileNotFoundError, FailedPrecondition):
            return None
        except OSError as error:
            if stat.S_ISREG(os.stat("data", dir_fd=folder_fd, follow_symlinks=False).st_mode):
                raise
            del error
            return None
        undo.callback(os.close, data)
        found = os.fstat(data)
        status = _status(folder_fd, ref, found)
        known = total or status.total
        differs = bool(total and status.total and total != status.total)
        # Two names: a file system without order kept the old name of a blob, which must never be written to.
        if differs or found.st_nlink != 1 or (known and found.st_size > known):
            return None
        ingest = Ingest(ref, folder_fd, data, hashlib.new(algorithm))
        ingest.offset = hash_file(data, ingest._hasher, None, stop)
        ingest._hurried = ingest.offset
        ingest._synced = read_count(folder_fd, SYNCED)
        ingest.total, ingest.started_at, ingest.updated_at = known, status.started_at, status.updated_at
        if known != status.total:
            write_small(folder_fd, "total", str(known).encode())
        undo.pop_all()
        return ingest


def _open_data(folder_fd: int) -> int:
    try:
        return open_file(folder_fd, "data", os.O_RDWR)
    except PermissionError:
        # A commit was cut off after it had made the file read-only.
        fd = open_file(folder_fd, "data", os.O_RDONLY)
        try:
            os.fchmod(fd, _WRITABLE)
        finally:
            os.close(fd)
        return open_file(folder_fd, "data", os.O_RDWR)


def _begin(folder_fd: int, ref: str, total: int, algorithm: str) -> Ingest:
    _clear(folder_fd)
    now = time.time_ns()
    new_small(folder_fd, "ref", ref.encode())
    new_small(folder_fd, "startedat", stamp(now))
    new_small(folder_fd, "updatedat", stamp(now))
    if total:
        new_small(folder_fd, "total", str(total).encode())
    data = open_file(folder_fd, "data", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    ingest = Ingest(ref, folder_fd, data, hashlib.new(algorithm))
    ingest.total, ingest.started_at, ingest.updated_at = total, now, now
    ingest.begun = True
    return ingest


def read_status(parent: int, name: str) -> Status | None:
    """Give the state of a whole ingest by its folder's name; None for a missing, damaged or half-made one."""
    try:
        folder_fd = open_folder(parent, name)
    except (FileNotFoundError, FailedPrecondition):
        return None
    try:
        ref = _read_ref(folder_fd)
        found = os.stat("data", dir_fd=folder_fd, follow_symlinks=False)
        if ref is None or ingest_name(ref) != name or not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            return None
        return _status(folder_fd, ref, found)
    except FileNotFoundError:
        return None
    finally:
        os.close(folder_fd)


def forget_unsynced(parent: int, name: str) -> int:
    """Cut an ingest, by its folder's name, to the bytes that a power cut leaves; give how many go."""
    folder_fd = open_folder(parent, name)
    try:
        data = _open_data(folder_fd)
        try:
            # With two names it is a blob, which is whole.
            found, sure = os.fstat(data), read_count(folder_fd, SYNCED)
            if found.st_nlink != 1 or found.st_size <= sure:
                return 0
            os.ftruncate(data, sure)
            return found.st_size - sure
        finally:
            os.close(data)
    finally:
        os.close(folder_fd)


def _status(folder_fd: int, ref: str, data: os.stat_result) -> Status:
    started = read_stamp(folder_fd, "startedat") or data.st_ctime_ns
    updated = read_stamp(folder_fd, "updatedat") or started
    return Status(
        ref=ref,
        offset=data.st_size,
        total=read_count(folder_fd, "total"),
        started_at=started,
        updated_at=max(updated, data.st_mtime_ns),
    )


def _read_ref(folder_fd: int) -> str | None:
    data = read_small(folder_fd, "ref", MAX_REF_BYTES)
    try:
        return data.decode() if data else None
    except UnicodeDecodeError:
        return None


def names(parent: int) -> Iterator[str]:
    """Give the entries that are ingests by their names."""
    for name in os.listdir(parent):
        if len(name) == 64 and _HEX.issuperset(name):
            yield name


def remove_entry(parent: int, name: str) -> None:
    """Remove what stands under a name in `ingest`, `data` first; links are removed, never followed."""
    try:
        folder_fd = open_folder(parent, name)
    except FailedPrecondition:
        os.unlink(name, dir_fd=parent)
        return
    try:
        _clear(folder_fd)
    finally:
        os.close(folder_fd)
    os.rmdir(name, dir_fd=parent)


def _clear(folder_fd: int) -> None:
    entries = os.listdir(folder_fd)
    for name in sorted(entries, key=lambda entry: entry != "data"):
        try:
            os.unlink(name, dir_fd=folder_fd)
        except IsADirectoryError:
            shutil.rmtree(name, dir_fd=folder_fd)
        except FileNotFoundError:
            pass
