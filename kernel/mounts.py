"""mount(2) and umount2(2) for `Mount` values; everything here blocks and belongs in a thread, off an event loop."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from moored.kernel.errors import InvalidArgument, Unimplemented
from moored.kernel.ports.mounts import Mount

RDONLY: Final = 1
NOSUID: Final = 2
NODEV: Final = 4
NOEXEC: Final = 8
SYNCHRONOUS: Final = 16
REMOUNT: Final = 32
MANDLOCK: Final = 64
DIRSYNC: Final = 128
NOATIME: Final = 1024
NODIRATIME: Final = 2048
BIND: Final = 4096
REC: Final = 16384
UNBINDABLE: Final = 1 << 17
PRIVATE: Final = 1 << 18
SLAVE: Final = 1 << 19
SHARED: Final = 1 << 20
RELATIME: Final = 1 << 21
STRICTATIME: Final = 1 << 24

DETACH: Final = 2
"""Unmount from the tree now, for good once nobody uses it."""
NOFOLLOW: Final = 8

MAX_DATA: Final = os.sysconf("SC_PAGESIZE") - 1
"""Bytes of all options that are no flags: mount(2) takes one page."""
_PROPAGATION: Final = UNBINDABLE | PRIVATE | SLAVE | SHARED

# Propagation words are those that mount(8) knows; containerd sends none, clients may.
_SET: Final[Mapping[str, int]] = MappingProxyType(
    {
        "bind": BIND,
        "rbind": BIND | REC,
        "remount": REMOUNT,
        "ro": RDONLY,
        "sync": SYNCHRONOUS,
        "dirsync": DIRSYNC,
        "mand": MANDLOCK,
        "noatime": NOATIME,
        "nodiratime": NODIRATIME,
        "relatime": RELATIME,
        "strictatime": STRICTATIME,
        "nodev": NODEV,
        "noexec": NOEXEC,
        "nosuid": NOSUID,
        "private": PRIVATE,
        "rprivate": PRIVATE | REC,
        "shared": SHARED,
        "rshared": SHARED | REC,
        "slave": SLAVE,
        "rslave": SLAVE | REC,
        "unbindable": UNBINDABLE,
        "runbindable": UNBINDABLE | REC,
    }
)
_CLEAR: Final[Mapping[str, int]] = MappingProxyType(
    {
        "rw": RDONLY,
        "async": SYNCHRONOUS,
        "nomand": MANDLOCK,
        "atime": NOATIME,
        "diratime": NODIRATIME,
        "norelatime": RELATIME,
        "nostrictatime": STRICTATIME,
        "dev": NODEV,
        "exec": NOEXEC,
        "suid": NOSUID,
    }
)


@dataclass(frozen=True, slots=True)
class Parsed:
    """Options taken apart: flags of the mount itself, propagation with REC, and what is for the file system.

    loop asks for a loop device on the source; mappings are the values of uidmap and gidmap.
    """

    flags: int = 0
    propagation: int = 0
    data: tuple[str, ...] = ()
    loop: bool = False
    uid_mapping: str = ""
    gid_mapping: str = ""


def parse(options: Sequence[str]) -> Parsed:
    """Take options apart; what is no flag goes to the file system. Raises InvalidArgument for `X-containerd.` ones."""
    flags = propagation = 0
    loop, data, mappings = False, [], {"uidmap": "", "gidmap": ""}
    for option in options:
        name, _, value = option.partition("=")
        if option.startswith("X-containerd."):
            raise InvalidArgument(f"mount option {option!r} is for the mount manager, it cannot be mounted")
        if (flag := _SET.get(option, 0)) & _PROPAGATION:
            propagation |= flag
        elif flag:
            flags |= flag
        elif option in _CLEAR:
            flags &= ~_CLEAR[option]
        elif option == "loop":
            loop = True
        elif name in mappings:
            mappings[name] = value
        elif option != "defaults":
            data.append(option)
    return Parsed(flags, propagation, tuple(data), loop, mappings["uidmap"], mappings["gidmap"])


# --- mounting ---------------------------------------------------------------------------------------------------------


def mount_all(mounts: Sequence[Mount], target: Path) -> None:
    """Mount all in order, each on top of `target` or below it; what was mounted is unmounted again if one fails.

    Raises as `mount`.
    """
    for count, one in enumerate(mounts):
        try:
            mount(one, target)
        except BaseException:
            for done in reversed(mounts[:count]):
                with suppress(OSError), _below(target, done.target) as place:
                    unmount(Path(place).resolve() if done.target else target, lazy=True)
            raise


def mount(what: Mount, target: Path) -> None:
    """Mount on `target`, or on the place below it that the mount names, never outside of it.

    A bind with `ro` is made read-only by a second call; lower folders whose paths take more than a page together are
    named relative to the folder that all of them are in. A loop device goes with its mount.
    Raises OSError; InvalidArgument for options that cannot be; Unimplemented for id mappings.
    """
    parsed = parse(what.options)
    if parsed.uid_mapping or parsed.gid_mapping:
        raise Unimplemented("mounts with id mappings are not supported here")
    with _below(target, what.target) as place:
        if not parsed.flags & REMOUNT or parsed.data:
            _first_call(what, parsed, place)
        if parsed.propagation:
            _mount("", place, "", parsed.propagation, "")
        if parsed.flags & BIND and parsed.flags & RDONLY:
            _mount("", place, "", parsed.flags | REMOUNT | _locked_flags(place), "")


def _first_call(what: Mount, parsed: Parsed, place: str) -> None:
    chdir, parsed = _compacted(what, parsed)
    data = ",".join(parsed.data)
    if len(os.fsencode(data)) > MAX_DATA:
        raise InvalidArgument(f"mount options have {len(os.fsencode(data))} bytes, wanted at most {MAX_DATA}")
    if parsed.loop:
        direct = "direct-io" in parsed.data
        data = ",".join(option for option in parsed.data if option != "direct-io")
        with loop_device(Path(what.source), read_only=bool(parsed.flags & RDONLY), direct=direct) as device:
            _mount(device, place, what.type, parsed.flags, data)
    elif chdir:
        _from_folder(chdir, lambda: _mount(what.source, place, what.type, parsed.flags, data))
    else:
        _mount(what.source, place, what.type, parsed.flags, data)


def _compacted(what: Mount, parsed: Parsed) -> tuple[str, Parsed]:
    """Make an overlay's lower folders relative to the folder given first, if they take too much room otherwise."""
    if what.type != "overlay" or len(os.fsencode(",".join(parsed.data))) <= MAX_DATA:
        return "", parsed
    data = list(parsed.data)
    for index, option in enumerate(data):
        name, _, value = option.partition("=")
        folders = value.split(":")
        if name != "lowerdir" or not all(folder.startswith("/") for folder in folders):
            continue
        common = os.path.commonpath(folders)
        data[index] = "lowerdir=" + ":".join(os.path.relpath(folder, common) for folder in folders)
        return common, replace(parsed, data=tuple(data))
    return "", parsed


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    call = (os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), os.fsencode(data))
    if libc.mount(*call) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{os.strerror(error)} (mount of {kind or 'flags'} {source!r}, options {data[:200]!r})")


def _from_folder(folder: str, call: Callable[[], None]) -> None:
    """Make a call that names paths relative to a folder; only a thread of its own goes there, which then ends."""
    faults: list[OSError] = []
    thread = threading.Thread(target=_call_in, args=(folder, call, faults), name="mount")
    thread.start()
    thread.join()
    if faults:
        raise faults[0]


def _call_in(folder: str, call: Callable[[], None], faults: list[OSError]) -> None:
    clone_fs = 0x200
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(clone_fs) < 0:
        error = ctypes.get_errno()
        faults.append(OSError(error, f"{os.strerror(error)} (unshare)"))
        return
    try:
        os.chdir(folder)
        call()
    except OSError as fault:
        faults.append(fault)


def _locked_flags(place: str) -> int:
    """Give the flags that a user namespace may not take from a mount: a remount has to repeat them."""
    if Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]:
        return 0
    status = os.statvfs(place).f_flag
    pairs = (
        (os.ST_RDONLY, RDONLY),
        (os.ST_NOSUID, NOSUID),
        (os.ST_NODEV, NODEV),
        (os.ST_NOEXEC, NOEXEC),
        (os.ST_NOATIME, NOATIME),
        (os.ST_NODIRATIME, NODIRATIME),
        (os.ST_RELATIME, RELATIME),
    )
    return sum(flag for bit, flag in pairs if status & bit)


@contextmanager
def _below(target: Path, path: str) -> Generator[str]:
    """Give the path of a place below `target`, resolved as if that were the root."""
    if not path:
        yield str(target)
        return
    openat2, in_root = 437, 0x10
    libc = ctypes.CDLL(None, use_errno=True)
    top = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, in_root)
        fd = int(libc.syscall(openat2, top, os.fsencode(path), how, len(how)))
    finally:
        os.close(top)
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{os.strerror(error)} (mount target {path!r})")
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


# --- loop devices -----------------------------------------------------------------------------------------------------

_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LOOP_READ_ONLY: Final = 1
_LOOP_AUTOCLEAR: Final = 4
_LOOP_DIRECT_IO: Final = 16
_LOOP_CONFIG: Final = struct.Struct("=II 5Q4I64s64s32s2Q 8Q")
_LOOP_ATTEMPTS: Final = 100


@contextmanager
def loop_device(file: Path, *, read_only: bool, direct: bool = False) -> Generator[str]:
    """Give the path of a loop device on a file; it goes once the block is left and nothing has it mounted.

    Raises OSError.
    """
    fd = os.open(file, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    try:
        device, path = _attach(fd, os.fsencode(file), read_only=read_only, direct=direct)
    finally:
        os.close(fd)
    try:
        yield path
    finally:
        os.close(device)


def _attach(fd: int, name: bytes, *, read_only: bool, direct: bool) -> tuple[int, str]:
    flags = _LOOP_AUTOCLEAR | (_LOOP_READ_ONLY if read_only else 0) | (_LOOP_DIRECT_IO if direct else 0)
    config = _LOOP_CONFIG.pack(fd, 0, 0, 0, 0, 0, 0, 0, 0, 0, flags, name[:63], b"", b"", 0, 0, *([0] * 8))
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_LOOP_ATTEMPTS):
            path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else took it first
                    raise
                continue
            return device, path
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no free loop device")


# --- unmounting and looking -------------------------------------------------------------------------------------------


def unmount(target: Path, *, lazy: bool = False) -> None:
    """Unmount what is on top of `target`, which may not be a symbolic link. Raises OSError, EINVAL if nothing is."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(target), NOFOLLOW | (DETACH if lazy else 0)) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{os.strerror(error)} (unmount of {str(target)!r})")


def unmount_all(target: Path, *, lazy: bool = False) -> None:
    """Unmount until nothing is mounted on `target` or below it; a missing one is fine. Raises OSError."""
    for point in (*_mount_points_below(target), target):
        while True:
            try:
                unmount(point, lazy=lazy)
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno == errno.EINVAL:
                    break
                raise


def _mount_points_below(target: Path) -> list[Path]:
    """The last mounted first."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    points = [Path(_unescaped(line.split(" ")[4])) for line in lines]
    return [point for point in reversed(points) if target in point.parents]


@contextmanager
def mounted(mounts: Sequence[Mount], folder: Path | None = None) -> Generator[Path]:
    """Mount for the block, on a new folder in `folder`. Raises as `mount_all`."""
    target = Path(tempfile.mkdtemp(prefix="mount-", dir=folder))
    try:
        mount_all(mounts, target)
        try:
            yield target
        finally:
            unmount_all(target)
    finally:
        target.rmdir()


@dataclass(frozen=True, slots=True)
class MountInfo:
    """A mount of this process: its file system, what it was mounted from, and where."""

    type: str
    source: str
    target: Path


def lookup(path: Path) -> MountInfo:
    """Give the mount that `path` is on. Raises OSError."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        about = Path(f"/proc/self/fdinfo/{fd}").read_text()
    finally:
        os.close(fd)
    id_ = next(line.split()[1] for line in about.splitlines() if line.startswith("mnt_id:"))
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        if fields[0] == id_:
            kind, source = fields[fields.index("-") + 1 :][:2]
            return MountInfo(kind, _unescaped(source), Path(_unescaped(fields[4])))
    raise FileNotFoundError(errno.ENOENT, f"no mount is listed for {str(path)!r}")


def _unescaped(text: str) -> str:
    """Undo the octal escapes of blanks and backslashes in mountinfo."""
    for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\043", "#"), ("\\134", "\\")):
        text = text.replace(escape, character)
    return text
