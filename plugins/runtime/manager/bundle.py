"""The bundle: the folder that a shim and its manager share, one for each task; everything here blocks.

    <state>/<namespace>/<id>/     0700 (with user namespaces 0710 and their gid), the folders above it 0711
        rootfs/                   what the shim mounts on
        work                   -> <root>/<namespace>/<id>/
        config.json               the OCI spec
        log                       FIFO for the shim's log
        shim-binary-path          how to call the shim again
        bootstrap.json            where the shim listens
        runtime.json              for our shim: how it calls the OCI runtime
        creating                  there until the create has been answered
        mounted                   for our shim: the daemon mounts on `rootfs` and unmounts it
        exited                    how the task ended, once that was told

`creating` and `shim-binary-path` are written before any process is started, so that a start after a crash knows what
has to be undone and how. Source: `contracts/shim-v2.md` 3.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moored.kernel.errors import AlreadyExists, InvalidArgument, MooredError, Unknown
from moored.kernel.mounts import mount_all, unmount, unmount_all
from moored.kernel.namespaces import validate_identifier
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.tasks import Exit

CONFIG: Final = "config.json"
LOG: Final = "log"
BINARY: Final = "shim-binary-path"
BOOTSTRAP: Final = "bootstrap.json"
INVOCATION: Final = "runtime.json"
SANDBOX: Final = "sandbox"
CREATING: Final = "creating"
MOUNTED: Final = "mounted"
EXITED: Final = "exited"
INIT_PID: Final = "init.pid"
_ADDRESS: Final = "address"
_MAX_SMALL: Final = 1 << 16
"""Bytes of a bundle's small files that are read at most."""


@dataclass(frozen=True, slots=True)
class Folders:
    """Where the bundles of one plugin are: state for the bundles, root for what they may keep over a reboot."""

    state: Path
    root: Path

    def bundles(self) -> Iterator[Bundle]:
        """Every bundle there is; hidden names and files are none."""
        for namespace in _folders(self.state):
            for bundle in _folders(namespace):
                yield Bundle(self, namespace.name, bundle.name)

    def sweep(self) -> None:
        """Remove what a removal left half-done, and working folders whose bundle is gone."""
        for top in (self.state, self.root):
            for namespace in _folders(top):
                for hidden in namespace.glob(".*"):
                    shutil.rmtree(hidden, ignore_errors=True)
        for namespace in _folders(self.root):
            for work in _folders(namespace):
                if not (self.state / namespace.name / work.name).is_dir():
                    _remove_tree(work)


def _folders(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            found = [one.name for one in entries if one.is_dir(follow_symlinks=False) and not one.name.startswith(".")]
    except FileNotFoundError:
        return []
    return [path / name for name in sorted(found)]


@dataclass(frozen=True, slots=True)
class Bundle:
    """One bundle by its place. Errors of all methods: OSError."""

    folders: Folders
    namespace: str
    id: str

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self._place)

    @property
    def _place(self) -> str:
        """The same as a text; paths are joined many times for each task, and slowly."""
        return f"{self.folders.state}/{self.namespace}/{self.id}"

    @property
    def rootfs(self) -> Path:
        """Where the shim mounts the root file system."""
        return Path(f"{self._place}/rootfs")

    @property
    def work(self) -> Path:
        """The folder that the link `work` points to."""
        return Path(f"{self.folders.root}/{self.namespace}/{self.id}")

    def make(self, spec: bytes | None, gid: int = 0) -> None:
        """Make the folder with all that is known before the shim runs; `gid` is the host's of the container's root.

        Raises InvalidArgument for a bad id, AlreadyExists for one that is taken. After an error nothing is left.
        """
        try:
            validate_identifier(self.id)
        except InvalidArgument as error:
            raise InvalidArgument(f"invalid task id {self.id}: {error.text}") from None
        for parent in (self.path.parent, self.work.parent):
            parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        try:
            self.path.mkdir(mode=0o700)
        except FileExistsError:
            raise AlreadyExists(f"task {self.id}") from None
        try:
            self._fill(spec, gid)
        except BaseException:
            self.remove()
            raise

    def _fill(self, spec: bytes | None, gid: int) -> None:
        # first of all: from here on this is known to be unfinished
        self.write(CREATING, b"")
        if gid:
            os.chown(self.path, -1, gid)
            self.path.chmod(0o710)
        self.rootfs.mkdir(mode=0o711)
        with suppress(FileNotFoundError):
            _remove_tree(self.work)
        self.work.mkdir(mode=0o711)
        (self.path / "work").symlink_to(self.work)
        if spec is not None:
            self.write(CONFIG, spec, 0o666)
        os.mkfifo(self.path / LOG, 0o700)

    def read(self, name: str) -> bytes | None:
        """Give the beginning of a small file, None if there is none; never waits and follows no link."""
        try:
            fd = os.open(self.path / name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return os.read(fd, _MAX_SMALL)
        finally:
            os.close(fd)

    def text(self, name: str) -> str:
        """Give a small file's text, "" if there is none."""
        return (self.read(name) or b"").decode("utf-8", "surrogateescape").strip()

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return os.path.lexists(self.path / name)

    def write(self, name: str, data: bytes, mode: int = 0o600) -> None:
        """Write a file in one step: there is never half of one under that name."""
        hidden = f"{self._place}/.{name}"
        fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            at = 0
            while at < len(data):
                at += os.write(fd, data[at:])
        finally:
            os.close(fd)
        os.rename(hidden, f"{self._place}/{name}")  # noqa: PTH104 - see above

    def mount(self, mounts: Sequence[Mount]) -> None:
        """Mount the root file system in the shim's place. Raises Unknown; `remove` undoes it."""
        self.write(MOUNTED, b"")
        try:
            mount_all(mounts, self.rootfs)
        except (OSError, MooredError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise Unknown(f"failed to mount rootfs component: {reason}") from error

    def finished(self) -> None:
        """Take the mark of an unfinished create away."""
        with suppress(FileNotFoundError):
            os.unlink(f"{self._place}/{CREATING}")  # noqa: PTH108 - see above

    def note_exit(self, ended: Exit) -> None:
        """Remember that the exit of init was told, if the bundle is still there."""
        with suppress(FileNotFoundError):
            self.write(EXITED, json.dumps([ended.pid, ended.status, ended.exited_at]).encode())

    def noted_exit(self) -> Exit | None:
        """Give the exit that was told, None if none was."""
        try:
            pid, status, exited_at = json.loads(self.read(EXITED) or b"")
        except (ValueError, TypeError):
            return None
        return Exit(pid=pid, status=status, exited_at=exited_at)

    def init_pid(self) -> int:
        """Give the pid that the OCI runtime wrote for init, 0 if it wrote none."""
        text = self.text(INIT_PID)
        return int(text) if text.isdecimal() and len(text) < 11 else 0

    def empty(self) -> bool:
        """Whether there is nothing in the folder, as after a crash in its making."""
        with os.scandir(self.path) as entries:
            return next(entries, None) is None

    def open_log(self) -> int:
        """Open the log FIFO, made if it is missing, so that shims find a reader; reading gives BlockingIOError."""
        path = self.path / LOG
        with suppress(FileExistsError):
            os.mkfifo(path, 0o700)
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileExistsError(f"{LOG!r} of task {self.id!r} is no FIFO")
        return fd

    def remove(self, settle: Callable[[Path], object] = lambda _hidden: None, *, lazy: bool = False) -> None:
        """Unmount the root file system and remove the bundle and its working folder; a missing one is fine.

        `settle` is called once the bundle has another name, given to it, under which no process can enter it any more.
        lazy: what is mounted and in use vanishes now, and ends once nobody uses it.
        Raises OSError when something stays mounted; then nothing has been removed.
        """
        _unmount(self.rootfs, lazy=lazy)
        _remove_tree(self.path, settle)
        try:
            self.work.rmdir()  # nearly always empty
        except OSError:
            _remove_tree(self.work)


def _unmount(rootfs: Path, *, lazy: bool) -> None:
    """Unmount a folder and remove it, but only an empty one: what else is there is not ours to remove."""
    with suppress(OSError):
        # nothing can be mounted below a folder that can be removed, so that the table of mounts need not be read
        unmount(rootfs, lazy=lazy)
    try:
        rootfs.rmdir()
    except FileNotFoundError:
        return
    except OSError:
        unmount_all(rootfs, lazy=lazy)
        rootfs.rmdir()


def _remove_tree(path: Path, settle: Callable[[Path], object] = lambda _hidden: None) -> None:
    """Remove a folder; it vanishes under its name at once."""
    hidden = path.with_name(f".{path.name}")
    if hidden.exists():
        shutil.rmtree(hidden)
    try:
        path.rename(hidden)
    except FileNotFoundError:
        return
    settle(hidden)
    with os.scandir(hidden) as entries:
        found = [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if is_folder:
            shutil.rmtree(name)
        else:
            os.unlink(name)  # noqa: PTH108 - a hundred thousand times a day
    hidden.rmdir()


def host_root_gid(spec: dict[str, Any]) -> int:
    """Give the host's gid of the container's group 0, 0 where groups are not mapped."""
    linux = spec.get("linux")
    for mapping in (linux.get("gidMappings") or ()) if isinstance(linux, dict) else ():
        if isinstance(mapping, dict) and mapping.get("containerID", 0) == 0:
            return int(mapping.get("hostID", 0))
    return 0


def spec_of(data: bytes) -> dict[str, Any]:
    """Read a spec. Raises InvalidArgument if it is no JSON object."""
    try:
        found = json.loads(data)
    except ValueError as error:
        raise InvalidArgument(f"spec is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidArgument(f"spec is a JSON {type(found).__name__}, wanted an object")
    return found
