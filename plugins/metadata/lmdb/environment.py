"""One open LMDB environment: transactions, room kept for deletes, and a stop at the first input or output error."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from pathlib import Path
from typing import Final

import lmdb

from moored.kernel.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    MooredError,
    ResourceExhausted,
    Unavailable,
)
from moored.plugins.metadata.lmdb import mark
from moored.plugins.metadata.lmdb.folder import (
    DATA,
    ENVIRONMENT,
    Owner,
    check_data_file,
    close_on_exec,
    exists,
    make_folder,
    reserve_readers,
    sync_folder,
)
from moored.plugins.metadata.lmdb.layout import FORMAT, FORMAT_KEY, NUMBERED_FORMAT, OLD_FORMAT
from moored.plugins.metadata.lmdb.records import FULL_TEXT, NO_ROOM, translated

DEFAULT_LIMIT: Final = 16 << 30
"""Bytes of live data; the map is virtual and the file sparse, so that a large limit costs nothing."""

MIN_LIMIT: Final = 1 << 20
DISK_RESERVE: Final = 2 << 20
"""Bytes that are allocated in the file beyond its last page before each commit, so that deletes work on a full disk."""

DISK_STEP: Final = 2 << 20
MAX_READERS: Final = 1022
METAS: Final = 2
CLOSED: Final = "it is closed"
"""The reason to stop that is no failure."""


class Environment:
    """LMDB in the modes that survive a crash: default sync, no write map, one process, one writer thread.

    `begin_write` and `commit` belong to one thread. After an input or output error everything raises Unavailable with
    the first error in the text: the page cache may no longer be what is on the disk, so that going on would build on
    sand.
    """

    def __init__(self, folder: Path, *, limit: int = DEFAULT_LIMIT, create: bool = True) -> None:
        """Open the store in `folder`, made now if it is missing and `create` is set.

        `limit` is in bytes of live data and not stored. Raises FailedPrecondition if it is in use or of another format,
        NotFound if it is missing, DataLoss if it is damaged, ResourceExhausted or Unavailable if the file system fails.
        """
        if limit < MIN_LIMIT:
            raise FailedPrecondition(f"limit of {limit} bytes is too small, wanted {MIN_LIMIT} or more")
        self.limit = limit
        self.failed: str | None = None
        self._folder = folder
        self._damaged = False
        self._pid = os.getpid()
        try:
            self._open_all(folder, create=create)
        except OSError as error:
            kind = ResourceExhausted if error.errno in NO_ROOM else Unavailable
            raise kind(f"metadata store {str(folder)!r} cannot be opened: {error.strerror}") from error

    def _open_all(self, folder: Path, *, create: bool) -> None:
        with contextlib.ExitStack() as undo:
            make_folder(folder)
            self._owner = Owner(folder)
            undo.callback(self._owner.release)
            home = folder / ENVIRONMENT
            if not exists(folder, create=create):
                _create(folder, self.limit)
            check_data_file(home / DATA, mark.take(folder))
            self._env = _open(home, self.limit)
            undo.callback(self._env.close)
            close_on_exec(home)
            self._fd = os.open(home / DATA, os.O_RDWR | os.O_CLOEXEC)
            undo.callback(os.close, self._fd)
            self._page_size: int = self._env.stat()["psize"]
            self._file_size = os.fstat(self._fd).st_size
            self.disk_full = False
            self._check_format(home)
            self.check_readers()
            undo.pop_all()

    def begin_read(self) -> lmdb.Transaction[bytes]:
        """Begin a read transaction; any thread."""
        self._usable()
        try:
            return self._env.begin()
        except lmdb.Error as error:
            raise self._explained(error) from error

    def begin_write(self) -> lmdb.Transaction[bytes]:
        """Begin the write transaction of a batch."""
        self._usable()
        try:
            return self._env.begin(write=True)
        except lmdb.Error as error:
            raise self._explained(error) from error

    def begin_nested(self, parent: lmdb.Transaction[bytes]) -> lmdb.Transaction[bytes]:
        """Begin a write transaction inside of `parent`."""
        try:
            return self._env.begin(parent=parent, write=True)
        except lmdb.Error as error:
            raise self._explained(error) from error

    def commit_nested(self, txn: lmdb.Transaction[bytes]) -> None:
        """Let a nested transaction join its parent, which is lost if that fails."""
        try:
            txn.commit()
        except lmdb.Error as error:
            raise self._explained(error) from error

    def commit(self, txn: lmdb.Transaction[bytes]) -> None:
        """Make a batch durable. Raises ResourceExhausted on a full disk, otherwise stops the store: Unavailable."""
        try:
            txn.commit()
        except lmdb.Error as error:
            # LMDB reports a short write, which is what a disk does that fills up amid the write, as EIO.
            if getattr(error, "code", 0) == errno.EIO and self._disk_is_full():
                raise ResourceExhausted(f"{FULL_TEXT}: {error}") from error
            raise self._explained(error) from error

    def full(self) -> bool:
        """Tell whether puts have to be refused, and allocate the reserve in the file first if it is short.

        On a full disk the free pages inside of the file are all the room there is.
        """
        used = self.used_bytes()
        self.disk_full = not self._reserve() and self._file_size - used < DISK_RESERVE
        return self.disk_full or used >= self.limit

    def used_bytes(self) -> int:
        """Give the size of all pages that hold live data."""
        stat = self._env.stat()
        pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] + METAS
        return int(pages * self._page_size)

    def file_bytes(self) -> int:
        """Give the size of the data file."""
        return self._file_size

    def check_readers(self) -> int:
        """Free the reader slots of dead processes; give their number."""
        self._usable()
        try:
            return self._env.reader_check()
        except lmdb.Error as error:
            raise self._explained(error) from error

    def copy(self, path: Path) -> None:
        """Write a compact copy to the new folder `path`, durable when it returns. Blocks; any thread."""
        self._usable()
        if path.exists():
            raise AlreadyExists(f"backup {str(path)!r} already exists")
        fresh = path.with_name(f"{path.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        home = fresh / ENVIRONMENT
        try:
            fresh.mkdir(mode=0o700)
            home.mkdir(mode=0o700)
            fd = os.open(home / DATA, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                self._env.copyfd(fd, compact=True)
                os.fsync(fd)
            finally:
                os.close(fd)
            sync_folder(home)
            sync_folder(fresh)
            fresh.rename(path)
            sync_folder(path.parent)
        except (lmdb.Error, OSError) as error:
            shutil.rmtree(fresh, ignore_errors=True)
            if isinstance(error, lmdb.Error):
                self.met(translated(error))
            code = getattr(error, "code", None) or getattr(error, "errno", None)
            kind = ResourceExhausted if code in NO_ROOM else Unavailable
            raise kind(f"backup to {str(path)!r} failed: {error}") from error

    def copy_to(self, fd: int, txn: lmdb.Transaction[bytes]) -> None:
        """Write what a read transaction sees to a descriptor, compact, from its position on. Blocks; any thread.

        Raises ResourceExhausted where there is no room for it, Unavailable.
        """
        self._usable()
        try:
            self._env.copyfd(fd, compact=True, txn=txn)
        except lmdb.Error as error:
            self.met(translated(error))
            kind = ResourceExhausted if getattr(error, "code", 0) in NO_ROOM else Unavailable
            raise kind(f"copy of the metadata store failed: {error}") from error

    def stop(self, reason: str) -> None:
        """Refuse all further calls with `reason`; the first one counts."""
        self.failed = self.failed or reason

    def met(self, error: MooredError | None) -> None:
        """Take note of what a transaction has failed with: where pages are damaged, the next start is to walk them."""
        self._damaged = self._damaged or isinstance(error, DataLoss)

    def close(self) -> None:
        """Close LMDB and let the folder go. Transactions that are open are over."""
        transaction = self._env.info()["last_txnid"]
        self._env.close()
        if self.failed in (None, CLOSED) and not self._damaged:
            mark.put(self._folder, self._fd, transaction)
        os.close(self._fd)
        self._owner.release()

    def _usable(self) -> None:
        if self.failed is not None:
            raise Unavailable(f"metadata store has stopped: {self.failed}")
        if os.getpid() != self._pid:
            raise Unavailable(f"metadata store belongs to process {self._pid}, not to its fork")

    def _explained(self, error: lmdb.Error) -> MooredError:
        """Translate, and stop for all that is not a matter of room or of damaged pages."""
        ours = translated(error)
        self.met(ours)
        if isinstance(ours, Unavailable):
            self.stop(str(error))
            return Unavailable(f"metadata store has stopped: {error}")
        return ours

    def _reserve(self) -> bool:
        """Keep DISK_RESERVE bytes allocated beyond the last page, where LMDB never looks; False if the disk is full."""
        end = (self._env.info()["last_pgno"] + 1) * self._page_size
        if self._file_size >= end + DISK_RESERVE:
            return True
        # What a commit wrote beyond the reserve is in the file already.
        self._file_size = max(self._file_size, os.fstat(self._fd).st_size)
        if self._file_size >= end + DISK_RESERVE:
            return True
        wanted = end + DISK_RESERVE + DISK_STEP
        try:
            os.posix_fallocate(self._fd, self._file_size, wanted - self._file_size)
            # A page that was written once takes a commit fewer writes than one that is only allocated.
            os.pwrite(self._fd, bytes(wanted - self._file_size), self._file_size)
        except OSError:
            # A file system may not know this call at all; only a full one leaves no room.
            return not self._disk_is_full()
        self._file_size = wanted
        return True

    def _disk_is_full(self) -> bool:
        status = os.fstatvfs(self._fd)
        return status.f_bavail * status.f_frsize < DISK_RESERVE + DISK_STEP

    def _check_format(self, home: Path) -> None:
        try:
            with self._env.begin() as txn:
                found = txn.get(FORMAT_KEY)
            if found == OLD_FORMAT:
                with self._env.begin(write=True) as txn:
                    txn.put(FORMAT_KEY, FORMAT)
        except lmdb.Error as error:
            ours = translated(error)
            raise type(ours)(f"{ours.text}, in file {str(home / DATA)!r}") from error
        if found is None:
            raise DataLoss(f"metadata store {str(home)!r} has no format record, wanted {FORMAT.decode()!r}")
        if found not in (FORMAT, OLD_FORMAT):
            # A newer one, or one that never was.
            kind = FailedPrecondition if re.fullmatch(NUMBERED_FORMAT, found) else DataLoss
            raise kind(f"metadata store {str(home)!r} has format {found!r}, wanted {FORMAT!r}")


def _create(folder: Path, limit: int) -> None:
    """Make an environment with its format record beside its place, then move it there in one step."""
    fresh = folder / f"{ENVIRONMENT}.new"
    fresh.mkdir(mode=0o700)
    env = _open(fresh, limit)
    try:
        with env.begin(write=True) as txn:
            txn.put(FORMAT_KEY, FORMAT)
    finally:
        env.close()
    sync_folder(fresh)
    fresh.rename(folder / ENVIRONMENT)
    sync_folder(folder)


def _open(home: Path, limit: int) -> lmdb.Environment:
    # The map is larger than the limit: deleting copies pages before it frees them, and needs room when puts have none.
    map_size = limit + max(limit // 8, MIN_LIMIT)
    reserve_readers(home)
    try:
        # From 3.0 on two data formats are built in; 0 is the 0.9 line.
        if int(lmdb.__version__.split(".")[0]) >= 3:
            return lmdb.open(str(home), map_size=map_size, mode=0o600, max_readers=MAX_READERS, lib_version=0)
        return lmdb.open(str(home), map_size=map_size, mode=0o600, max_readers=MAX_READERS)
    except lmdb.Error as error:
        ours = translated(error)
        raise type(ours)(f"{ours.text}, in file {str(home / DATA)!r}") from error
