"""mount(2) and umount2(2) for `Mount` values; everything here blocks and belongs in a thread, off an event loop."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from moored.kernel.errors import InvalidArgument
from moored.kernel.idmaps import user_namespace
from moored.kernel.libc import libc
from moored.kernel.loops import loop_device
from moored.kernel.mountfds import (
    ATTR_ATIME,
    ATTR_IDMAP,
    ATTR_NOATIME,
    ATTR_NODEV,
    ATTR_NODIRATIME,
    ATTR_NOEXEC,
    ATTR_NOSUID,
    ATTR_RDONLY,
    ATTR_STRICTATIME,
    RESOLVE_IN_ROOT,
    attach,
    cloned,
    closing,
    created,
    open_within,
    set_attributes,
)
from moored.kernel.ports.mounts import INTERNAL_OPTION, Mount

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
_CLONE_FS: Final = 0x200
_CLONE_NEWNS: Final = 0x20000
_LOWER_BY_LOWER_SINCE: Final = (6, 5)
_ESCAPED_COLON: Final = "\\:"

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
        if option.startswith(INTERNAL_OPTION):
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
    named relative to the folder that all of them are in, and one by one where that is too much as well (Linux 6.5). A
    loop device goes with its mount.
    uidmap= and gidmap= (`CONTAINER:HOST:LENGTH[,...]`, both or none; Linux 5.12, for lower folders 5.19) show the files
    of the source with other owners; of an overlay those of the lower folders, since what is written above has its
    owners already.
    Raises OSError; InvalidArgument for options that cannot be.
    """
    parsed = parse(what.options)
    if bool(parsed.uid_mapping) != bool(parsed.gid_mapping):
        raise InvalidArgument("mount options have one of uidmap and gidmap, wanted both or none")
    with _below(target, what.target) as place:
        if parsed.uid_mapping:
            _mapped(what, parsed, target, place)
        elif not parsed.flags & REMOUNT or parsed.data:
            _first_call(what, parsed, place)
        if parsed.propagation:
            _mount("", place, "", parsed.propagation, "")
        if parsed.flags & BIND and parsed.flags & RDONLY and not parsed.uid_mapping:
            _mount("", place, "", parsed.flags | REMOUNT | _locked_flags(place), "")


def _first_call(what: Mount, parsed: Parsed, place: str) -> None:
    chdir, parsed = _compacted(what, parsed)
    data = ",".join(parsed.data)
    if _too_long(parsed.data):
        _one_by_one(what, parsed, chdir, place)
    elif parsed.loop:
        direct = "direct-io" in parsed.data
        data = ",".join(option for option in parsed.data if option != "direct-io")
        with loop_device(Path(what.source), read_only=bool(parsed.flags & RDONLY), direct=direct) as device:
            _mount(device, place, what.type, parsed.flags, data)
    elif chdir:
        _from_folder(chdir, lambda: _mount(what.source, place, what.type, parsed.flags, data))
    else:
        _mount(what.source, place, what.type, parsed.flags, data)


def _too_long(data: Sequence[str]) -> bool:
    return len(os.fsencode(",".join(data))) > MAX_DATA


# --- lower folders of overlays ----------------------------------------------------------------------------------------


def _lower_folders(what: Mount, data: Sequence[str]) -> list[str]:
    """Give an overlay's lower folders; none where they are not plain absolute paths."""
    if what.type != "overlay":
        return []
    values = [option.removeprefix("lowerdir=") for option in data if option.startswith("lowerdir=")]
    folders = re.split(r"(?<!\\):", values[-1]) if values else []
    return folders if all(folder.startswith("/") for folder in folders) else []


def _with_lower(data: Sequence[str], folders: Sequence[str]) -> tuple[str, ...]:
    """Give the options with other lower folders, in the place of the old ones."""
    lower = f"lowerdir={':'.join(folders)}"
    return tuple(lower if option.startswith("lowerdir=") else option for option in data)


def _compacted(what: Mount, parsed: Parsed) -> tuple[str, Parsed]:
    """Make an overlay's lower folders relative to the folder given first, if they take too much room otherwise."""
    folders = _lower_folders(what, parsed.data) if _too_long(parsed.data) else []
    if not folders:
        return "", parsed
    common = os.path.commonpath(folders)
    relative = [os.path.relpath(folder, common) for folder in folders]
    return common, replace(parsed, data=_with_lower(parsed.data, relative))


def _one_by_one(what: Mount, parsed: Parsed, folder: str, place: str) -> None:
    """Mount with more options than fit into one call; paths of an overlay's lower folders are relative to a folder."""
    if parsed.loop or (what.type == "overlay" and (not folder or _release() < _LOWER_BY_LOWER_SINCE)):
        size = len(os.fsencode(",".join(parsed.data)))
        raise InvalidArgument(f"mount options have {size} bytes, wanted at most {MAX_DATA}")
    made: list[int] = []
    options = _separate(parsed)

    def make() -> None:
        made.append(created(what.type, what.source, options, _attributes(parsed.flags)))

    _from_folder(folder or "/", make)
    with closing(made[0]) as fd:
        attach(fd, place)


def _release() -> tuple[int, int]:
    """Give the kernel's version; options are no way to tell it, since older overlays take any until they are made."""
    found = re.match(r"([0-9]+)\.([0-9]+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _separate(parsed: Parsed) -> list[str]:
    """Give options for `created`, with each lower folder in one of its own."""
    found = _flag_options(parsed)
    for option in parsed.data:
        if option.startswith("lowerdir="):
            folders = re.split(r"(?<!\\):", option.removeprefix("lowerdir="))
            found += [f"lowerdir+={folder.replace(_ESCAPED_COLON, ':')}" for folder in folders]
        else:
            found.append(option)
    return found


# --- id mappings ------------------------------------------------------------------------------------------------------


def _mapped(what: Mount, parsed: Parsed, target: Path, place: str) -> None:
    """Mount with mapped owners, whole or not at all: nobody sees it before it is mapped."""
    if parsed.flags & REMOUNT:
        raise InvalidArgument("mount options have an id mapping and remount, a mapping is for a new mount")
    with user_namespace(parsed.uid_mapping, parsed.gid_mapping) as namespace:
        if what.type == "overlay":
            made = _overlay_of_mapped(what, parsed, target, namespace)
        else:
            made = _mapped_source(what, parsed, namespace)
        with closing(made) as fd:
            attach(fd, place)


def _mapped_source(what: Mount, parsed: Parsed, namespace: int) -> int:
    recursive = bool(parsed.flags & REC)
    if parsed.flags & BIND:
        made = cloned(what.source, recursive=recursive)
    elif parsed.loop:
        with loop_device(Path(what.source), read_only=bool(parsed.flags & RDONLY)) as device:
            made = created(what.type, device, _separate(parsed))
    else:
        made = created(what.type, what.source, _separate(parsed))
    try:
        attributes, clear = _attributes(parsed.flags), ATTR_ATIME if parsed.flags & (NOATIME | STRICTATIME) else 0
        set_attributes(made, attributes | ATTR_IDMAP, clear=clear, user_namespace=namespace, recursive=recursive)
    except BaseException:
        os.close(made)
        raise
    return made


def _overlay_of_mapped(what: Mount, parsed: Parsed, target: Path, namespace: int) -> int:
    """Give an overlay over lower folders with mapped owners.

    These have to be mounted somewhere while the overlay is made. That is in a mount namespace of one thread, so that
    neither others nor a crash get to see it.
    """
    folders = _lower_folders(what, parsed.data)
    if not folders:
        raise InvalidArgument("an overlay with an id mapping has no lower folders, wanted absolute paths")
    common = os.path.commonpath(folders)
    relative = [os.path.relpath(folder, common) for folder in folders]
    plain = replace(parsed, data=_with_lower(parsed.data, relative))
    options = _separate(plain) if _too_long(plain.data) else [*_flag_options(parsed), *plain.data]
    made: list[int] = []

    def make() -> None:
        _mount("", "/", "", PRIVATE | REC, "")
        with closing(cloned(common, recursive=True)) as tree:
            set_attributes(tree, ATTR_IDMAP | ATTR_RDONLY, user_namespace=namespace, recursive=True)
            attach(tree, str(target))
        os.chdir(target)
        made.append(created(what.type, what.source, options, _attributes(parsed.flags)))

    _from_folder("/", make, _CLONE_NEWNS)
    return made[0]


def _flag_options(parsed: Parsed) -> list[str]:
    return ["ro"] if parsed.flags & RDONLY else []


def _attributes(flags: int) -> int:
    """Give the attributes of a mount that stand for flags of mount(2)."""
    pairs = (
        (RDONLY, ATTR_RDONLY),
        (NOSUID, ATTR_NOSUID),
        (NODEV, ATTR_NODEV),
        (NOEXEC, ATTR_NOEXEC),
        (NOATIME, ATTR_NOATIME),
        (STRICTATIME, ATTR_STRICTATIME),
        (NODIRATIME, ATTR_NODIRATIME),
    )
    return sum(attribute for flag, attribute in pairs if flags & flag)


# --- single calls -----------------------------------------------------------------------------------------------------


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    call = (os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), os.fsencode(data))
    if libc().mount(*call) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{os.strerror(error)} (mount of {kind or 'flags'} {source!r}, options {data[:200]!r})")


def _from_folder(folder: str, call: Callable[[], None], apart: int = 0) -> None:
    """Make a call in a folder, with further things of its own (CLONE_ bits); only a thread goes there, which then ends.

    Raises what the call raises.
    """
    faults: list[Exception] = []
    import threading  # shims, which load this module, never need it

    thread = threading.Thread(target=_call_in, args=(folder, call, apart, faults), name="mount")
    thread.start()
    thread.join()
    if faults:
        raise faults[0]


def _call_in(folder: str, call: Callable[[], None], apart: int, faults: list[Exception]) -> None:
    if libc().unshare(_CLONE_FS | apart) < 0:
        error = ctypes.get_errno()
        faults.append(OSError(error, f"{os.strerror(error)} (unshare)"))
        return
    try:
        os.chdir(folder)
        call()
    except Exception as fault:  # noqa: BLE001 - raised again where it was asked for
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
    with closing(os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as top:
        fd = open_within(top, path, os.O_PATH, RESOLVE_IN_ROOT)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


# --- unmounting and looking -------------------------------------------------------------------------------------------


def unmount(target: Path, *, lazy: bool = False) -> None:
    """Unmount what is on top of `target`, which may not be a symbolic link. Raises OSError, EINVAL if nothing is."""
    if libc().umount2(os.fsencode(target), NOFOLLOW | (DETACH if lazy else 0)) < 0:
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
    import tempfile  # as above

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
