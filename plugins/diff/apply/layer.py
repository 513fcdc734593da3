"""Applies a layer's entries to a folder, one after the other, with nothing but descriptors and single names.

Rules (OCI image-spec, layer.md, and containerd's where it says more, `contracts/semantics.md` 3.6):
- an entry replaces what has its name, except that a folder on a folder only changes its attributes;
- `.wh.NAME` removes NAME, or in an overlay's upper folder becomes the device 0:0 that hides it; `.wh..wh..opq` removes
  what lower layers have in its folder, or marks it opaque; other names in `.wh..wh.` are left out;
- missing parents are made, in an upper folder like those of the lower ones;
- times of folders are set last, when nothing is made in them any more.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from moored.kernel.errors import InvalidArgument
from moored.plugins.diff.faults import text_of
from moored.plugins.diff.syscalls import Syscalls
from moored.plugins.diff.tar.header import (
    BLOCK_DEVICE,
    CHAR,
    DIRECTORY,
    FIFO,
    GNU_SPARSE,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Entry,
    shown,
)
from moored.plugins.diff.tar.reader import Reader
from moored.plugins.diff.tree import OPEN_FOLDER, Make, Tree, empty, parts_of, remove

WHITEOUT, WHITEOUT_META, OPAQUE = b".wh.", b".wh..wh.", b".wh..wh..opq"
MAX_PATH = 4096
MAX_ID = (1 << 32) - 2
MAX_DEVICE = (1 << 32) - 1
MAX_TIME = (1 << 63) - 1
SMALL = 1 << 20
"""Bytes of a file that is written with one call."""
LARGE = 1 << 20
"""Bytes of a file from which on the disk begins with it at once."""
FEW = 64
"""Smaller files with which it begins when the layer is done; with those of a layer of more it does in its own time."""
MAX_WARNINGS = 16

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DEVICES = {CHAR: stat.S_IFCHR, BLOCK_DEVICE: stat.S_IFBLK}

Place = tuple[int, bytes, bytes]
"""A folder's descriptor and path, and a name in it."""


class Layer:
    """One layer on its way into a tree.

    lowers     the folders below an overlay's upper one, nearest first; None for a plain folder, where whiteouts delete
    userxattr  the overlay keeps its marks in `user.overlay.`
    devices    whether device nodes are made; inside a user namespace they cannot be
    """

    def __init__(
        self,
        tree: Tree,
        syscalls: Syscalls,
        *,
        lowers: list[Tree] | None = None,
        userxattr: bool = False,
        devices: bool = True,
    ) -> None:
        self._tree = tree
        self._syscalls = syscalls
        self._lowers = lowers
        self._overlay_xattr = b"user.overlay." if userxattr else b"trusted.overlay."
        self._devices = devices
        self._times: dict[bytes, tuple[int, int]] = {}
        # (folder's inode, name) of all that this layer made; only a plain folder's opaque marks ask for it
        self._made: set[tuple[int, bytes]] | None = set() if lowers is None else None
        self._inodes: dict[bytes, int] = {}
        self._make: Make = self._make_parent
        self._kinds: dict[bytes, Callable[[Entry, Place, Reader], None]] = {
            REGULAR: self._file,
            GNU_SPARSE: self._file,
            DIRECTORY: self._folder,
            SYMLINK: self._link,
            HARD_LINK: self._hard_link,
            CHAR: self._node,
            BLOCK_DEVICE: self._node,
            FIFO: self._node,
        }
        self._unwritten: list[int] | None = []
        """The files of a small layer, open, until they are to be written to the disk; None of a larger one."""
        self.warnings: list[str] = []

    def apply(self, reader: Reader) -> None:
        """Apply all entries, then set the folders' times.

        Raises the reader's errors, InvalidArgument for what cannot be made, OSError for what the host refuses.
        """
        while (entry := reader.next()) is not None:
            self._apply(entry, reader)
        self._tree.forget()
        for path, times in self._times.items():
            self._set_times(path, times)
        self._tree.forget()

    def write_out(self) -> None:
        """Have the disk begin with the files, so that whoever makes them durable has to wait for less; closes them."""
        for fd in self._unwritten or ():
            self._syscalls.begin_writing(fd)
        self._close_all()

    def _close(self, fd: int, size: int) -> None:
        if size >= LARGE:
            self._syscalls.begin_writing(fd)
        elif self._unwritten is not None:
            self._unwritten.append(fd)
            if len(self._unwritten) > FEW:
                self._close_all()
                self._unwritten = None
            return
        os.close(fd)

    def _close_all(self) -> None:
        while self._unwritten:
            os.close(self._unwritten.pop())

    def _apply(self, entry: Entry, reader: Reader) -> None:
        name = entry.name
        if len(name) > MAX_PATH:
            raise InvalidArgument(f"path {shown(name)} has {len(name)} bytes, at most {MAX_PATH} wanted")
        if b"\0" in name or b"\0" in entry.link:
            raise InvalidArgument(f"path {shown(name)} or its link has a NUL")
        parts = parts_of(name)
        if not parts:
            return
        base = parts.pop()
        above = b"/".join(parts)
        if not 0 <= entry.uid <= MAX_ID or not 0 <= entry.gid <= MAX_ID:
            raise InvalidArgument(f"owner {entry.uid}:{entry.gid} of {shown(name)} is out of range")
        make = self._kinds.get(entry.type)
        if make is None:
            if entry.type == b"g":
                return
            raise InvalidArgument(f"unhandled tar header type {entry.type[0]} of {shown(name)}")
        try:
            place = (self._tree.folder(above, self._make), above, base)
            if base.startswith(WHITEOUT):
                self._whiteout(entry, place)
            elif self._devices or entry.type not in _DEVICES:
                make(entry, place, reader)
                self._remember(place)
        except OSError as fault:
            raise text_of(fault, f"cannot unpack {shown(name)}") from fault

    # --- kinds of entries ---------------------------------------------------------------------------------------------

    def _file(self, entry: Entry, place: Place, reader: Reader) -> None:
        folder, _, base = place
        try:
            fd = os.open(base, _NEW_FILE, entry.mode & 0o777, dir_fd=folder)
        except FileExistsError:
            folder = self._clear(place)
            fd = os.open(base, _NEW_FILE, entry.mode & 0o777, dir_fd=folder)
        try:
            if entry.sparse is not None:
                _write_sparse(fd, entry, reader)
            elif 0 < entry.size <= SMALL:
                _write(fd, reader.read())
            elif entry.size:
                for piece in reader.chunks():
                    _write(fd, piece)
            # Mostly both are right, and to look costs a third of changing one.
            found = os.fstat(fd)
            moved = found.st_uid != entry.uid or found.st_gid != entry.gid
            if moved:
                os.fchown(fd, entry.uid, entry.gid)
            if entry.xattrs:
                self._set_xattrs(fd, entry, user_allowed=True)
            if moved or entry.xattrs or stat.S_IMODE(found.st_mode) != entry.mode & 0o7777:
                os.fchmod(fd, entry.mode & 0o7777)
            os.utime(fd, ns=_times(entry))
        except BaseException:
            os.close(fd)
            raise
        self._close(fd, entry.size)

    def _folder(self, entry: Entry, place: Place, reader: Reader) -> None:
        folder, above, base = place
        opaque = False
        try:
            os.mkdir(base, 0o700, dir_fd=folder)
        except FileExistsError:
            found = os.lstat(base, dir_fd=folder)
            if not stat.S_ISDIR(found.st_mode):
                # what the whiteout before it hid must stay hidden
                opaque = self._lowers is not None and stat.S_ISCHR(found.st_mode) and not found.st_rdev
                folder = self._clear(place)
                os.mkdir(base, 0o700, dir_fd=folder)
        path = above + b"/" + base if above else base
        fd = os.open(base, OPEN_FOLDER, dir_fd=folder)
        self._tree.keep(path, fd)
        os.fchown(fd, entry.uid, entry.gid)
        if entry.xattrs:
            self._set_xattrs(fd, entry, user_allowed=True)
        if opaque:
            os.setxattr(fd, self._overlay_xattr + b"opaque", b"y")
        os.fchmod(fd, entry.mode & 0o7777)
        self._times[path] = _times(entry)

    def _link(self, entry: Entry, place: Place, reader: Reader) -> None:
        folder, _, base = place
        try:
            os.symlink(entry.link, base, dir_fd=folder)
        except FileExistsError:
            folder = self._clear(place)
            os.symlink(entry.link, base, dir_fd=folder)
        self._attributes(entry, folder, base, is_link=True)

    def _hard_link(self, entry: Entry, place: Place, reader: Reader) -> None:
        parts = parts_of(entry.link)
        if not parts:
            raise InvalidArgument(f"hard link {shown(entry.name)} names the root")
        target = parts.pop()
        try:
            source = self._tree.open(b"/".join(parts))
        except OSError as fault:
            raise self._no_target(entry, fault) from fault
        try:
            folder, _, base = place
            try:
                os.link(target, base, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
            except FileExistsError:
                folder = self._clear(place)
                os.link(target, base, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
        except OSError as fault:
            raise self._no_target(entry, fault) from fault
        finally:
            os.close(source)
        found = os.lstat(base, dir_fd=folder)
        self._attributes(
            entry,
            folder,
            base,
            is_link=stat.S_ISLNK(found.st_mode),
            user_allowed=stat.S_ISREG(found.st_mode),
            # where it is right already, changing it would take file capabilities away
            owned=(found.st_uid, found.st_gid) == (entry.uid, entry.gid),
        )

    def _no_target(self, entry: Entry, fault: OSError) -> Exception:
        if fault.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EPERM, errno.ENAMETOOLONG}:
            reason = os.strerror(fault.errno).lower()
            return InvalidArgument(f"cannot link {shown(entry.name)} to {shown(entry.link)}: {reason}")
        return text_of(fault, f"cannot link {shown(entry.name)}")

    def _node(self, entry: Entry, place: Place, reader: Reader) -> None:
        if not 0 <= entry.major <= MAX_DEVICE or not 0 <= entry.minor <= MAX_DEVICE:
            raise InvalidArgument(f"device number {entry.major}:{entry.minor} of {shown(entry.name)} is out of range")
        mode = _DEVICES.get(entry.type, stat.S_IFIFO) | (entry.mode & 0o7777)
        device = 0 if entry.type == FIFO else _device(entry)
        folder, _, base = place
        try:
            os.mknod(base, mode, device, dir_fd=folder)
        except FileExistsError:
            folder = self._clear(place)
            os.mknod(base, mode, device, dir_fd=folder)
        self._attributes(entry, folder, base)

    def _whiteout(self, entry: Entry, place: Place) -> None:
        folder, above, base = place
        if base == OPAQUE:
            self._opaque(folder, above)
            return
        hidden = base[len(WHITEOUT) :]
        if hidden in {b"", b".", b".."}:
            raise InvalidArgument(f"invalid whiteout name: {shown(base)}")
        if base.startswith(WHITEOUT_META):
            return
        if self._lowers is None:
            remove(folder, hidden)
            self._forget()
            return
        try:
            os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=folder)
        except FileExistsError:
            found = os.lstat(hidden, dir_fd=folder)
            if not stat.S_ISCHR(found.st_mode) or found.st_rdev:
                raise
        os.chown(hidden, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)

    def _opaque(self, folder: int, above: bytes) -> None:
        if self._made is None:
            os.setxattr(folder, self._overlay_xattr + b"opaque", b"y")
            return
        made = self._made
        empty(folder, lambda inode, name: (inode, name) in made)
        self._forget()

    # --- around entries -----------------------------------------------------------------------------------------------

    def _remember(self, place: Place) -> None:
        if self._made is not None:
            _, above, base = place
            inode = self._inodes.get(above)
            if inode is None:
                inode = self._inodes[above] = os.fstat(self._tree.folder(above)).st_ino
            self._made.add((inode, base))

    def _clear(self, place: Place) -> int:
        """Remove what is in an entry's place; the folder's descriptor from then on."""
        folder, above, base = place
        remove(folder, base)
        self._forget()
        return self._tree.folder(above, self._make)

    def _forget(self) -> None:
        """Something was removed: the paths of open folders may lead elsewhere now."""
        self._tree.forget()
        self._inodes.clear()

    def _make_parent(self, folder: int, name: bytes, path: bytes) -> None:
        """Make a folder that no entry has named so far, like the nearest lower one of its path."""
        os.mkdir(name, 0o755, dir_fd=folder)
        fd = os.open(name, OPEN_FOLDER, dir_fd=folder)
        try:
            if self._made is not None:
                self._made.add((os.fstat(folder).st_ino, name))
            self._copy_lower(fd, path)
        finally:
            os.close(fd)

    def _copy_lower(self, fd: int, path: bytes) -> None:
        first = path.partition(b"/")[0]
        for lower in self._lowers or ():
            try:
                # Most have nothing of that name: this tells it quicker.
                os.lstat(first, dir_fd=lower.root)
                like = lower.open(path)
            except FileNotFoundError:
                continue
            except OSError as fault:
                # a file or a whiteout on the way: what is further below is hidden
                if fault.errno in {errno.ENOTDIR, errno.ELOOP}:
                    return
                raise
            try:
                found = os.fstat(like)
                os.fchown(fd, found.st_uid, found.st_gid)
                for key in os.listxattr(like):
                    if not key.startswith(("trusted.", "user.overlay.")):
                        os.setxattr(fd, key, os.getxattr(like, key))
                os.fchmod(fd, stat.S_IMODE(found.st_mode))
                self._times.setdefault(path, (found.st_atime_ns, found.st_mtime_ns))
            finally:
                os.close(like)
            return

    def _attributes(
        self,
        entry: Entry,
        folder: int,
        base: bytes,
        *,
        is_link: bool = False,
        user_allowed: bool = False,
        owned: bool = False,
    ) -> None:
        if not owned:
            os.chown(base, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
        if entry.xattrs:
            # there is no call for attributes by folder and name
            os.fchdir(folder)
            try:
                self._set_xattrs(b"./" + base, entry, user_allowed=user_allowed)
            finally:
                os.fchdir(self._tree.root)
        if not is_link:
            self._syscalls.chmod(folder, base, entry.mode & 0o7777)
        os.utime(base, ns=_times(entry), dir_fd=folder, follow_symlinks=False)

    def _set_xattrs(self, target: int | bytes, entry: Entry, *, user_allowed: bool) -> None:
        for key, value in (entry.xattrs or {}).items():
            # marks of an overlay are not a layer's to set
            if key.startswith((b"trusted.", self._overlay_xattr)):
                self._warn(f"ignored extended attribute {shown(key)} of {shown(entry.name)}")
                continue
            try:
                if isinstance(target, int):
                    os.setxattr(target, key, value)
                else:
                    os.setxattr(target, key, value, follow_symlinks=False)
            except OSError as fault:
                unfit = fault.errno == errno.EPERM and key.startswith(b"user.") and not user_allowed
                if fault.errno != errno.EOPNOTSUPP and not unfit:
                    raise text_of(
                        fault, f"cannot set extended attribute {shown(key)} of {shown(entry.name)}"
                    ) from fault
                self._warn(f"ignored extended attribute {shown(key)} of {shown(entry.name)}")
            except ValueError as fault:
                raise InvalidArgument(f"extended attribute {shown(key)} of {shown(entry.name)}: {fault}") from fault

    def _set_times(self, path: bytes, times: tuple[int, int]) -> None:
        above, _, base = path.rpartition(b"/")
        try:
            folder = self._tree.folder(above)
            if stat.S_ISDIR(os.lstat(base, dir_fd=folder).st_mode):
                os.utime(base, ns=times, dir_fd=folder, follow_symlinks=False)
        except OSError as fault:
            # a later entry removed or replaced it
            if fault.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                raise text_of(fault, f"cannot set the times of {shown(path)}") from fault

    def _warn(self, text: str) -> None:
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(text)


def _times(entry: Entry) -> tuple[int, int]:
    """Access and change, neither before 1970 nor beyond what a file system is asked for."""
    mtime = entry.mtime
    atime = mtime if entry.atime is None or entry.atime < mtime else entry.atime
    return (
        atime if 0 <= atime <= MAX_TIME else 0,
        mtime if 0 <= mtime <= MAX_TIME else 0,
    )


def _device(entry: Entry) -> int:
    try:
        return os.makedev(entry.major, entry.minor)
    except (OverflowError, ValueError) as fault:
        raise InvalidArgument(f"device number of {shown(entry.name)}: {fault}") from fault


def _write(fd: int, data: bytes | memoryview) -> None:
    done = os.write(fd, data)
    while done < len(data):
        done += os.write(fd, memoryview(data)[done:])


def _write_sparse(fd: int, entry: Entry, reader: Reader) -> None:
    """Write the pieces where they belong; what is between them stays a hole."""
    os.ftruncate(fd, entry.size)
    pieces = iter(entry.sparse or ())
    place = left = 0
    for data in reader.chunks():
        start = 0
        while start < len(data):
            while not left:
                place, left = next(pieces)
            done = os.pwrite(fd, data[start : start + left], place)
            start += done
            place += done
            left -= done
