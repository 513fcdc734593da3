"""Finds what containers of one daemon leave on the host: processes, mounts, cgroups, sockets, FIFOs, bundles, state.

Only what belongs to the daemon's folder, or to its clients' namespace, is looked at, since others use the host too.
"""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
SETTLE_SECONDS = 10.0
BUNDLES = "io.containerd.runtime.v2.task"


@dataclass(frozen=True)
class Place:
    """Where a daemon and its clients work.

    folder      holds the daemon's root and state, its socket, and all that tests make for it
    namespace   unique on the host: the cgroups of containers are below a folder of that name
    address     the daemon's gRPC socket, which names the sockets of shims
    """

    folder: Path
    namespace: str
    address: Path

    def found(self, ids: Sequence[str] = ()) -> set[str]:
        """Everything there is now, a line of text each; ids are containers whose sockets may be elsewhere."""
        parts = (self._processes(), self._mounts(), self._cgroups(), self._files(), self._sockets(ids))
        return {line for part in parts for line in part}

    def _processes(self) -> Iterator[str]:
        """Those with the folder in their command line or as their working folder, or in a cgroup of the namespace."""
        folder, own = str(self.folder), {os.getpid(), os.getppid()}
        for process in Path("/proc").glob("[0-9]*"):
            words = _read(process / "cmdline").replace("\0", " ").strip()
            inside = folder in words or folder in _link(process / "cwd") or self._owns(_read(process / "cgroup"))
            if inside and int(process.name) not in own:
                yield f"process {process.name} {words or _read(process / 'comm').strip()}"

    def _owns(self, cgroups: str) -> bool:
        return any(f":/{self.namespace}/" in line for line in cgroups.splitlines())

    def _mounts(self) -> Iterator[str]:
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if str(self.folder) in line:
                yield f"mount {line.split()[4]}"

    def _cgroups(self) -> Iterator[str]:
        for parent in (CGROUPS / self.namespace, *CGROUPS.glob(f"*/{self.namespace}")):
            yield from (f"cgroup {path}" for path in parent.glob("*") if path.is_dir())

    def _files(self) -> Iterator[str]:
        """Bundles, work folders, runtimes' state, and every socket and FIFO below the folder."""
        for kind in ("root", "state"):
            for pattern in (f"{BUNDLES}/*/*", "io.moored.oci-runtime.v1.*/*/*"):
                yield from (f"folder {path}" for path in (self.folder / kind).glob(pattern) if path.is_dir())
        # a walk, unlike a glob, does not mind that folders go while it looks
        for path in (Path(folder, name) for folder, _, names in os.walk(self.folder) for name in names):
            try:
                mode = path.lstat().st_mode
            except OSError:
                continue
            if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
                yield f"{'socket' if stat.S_ISSOCK(mode) else 'FIFO'} {path}"

    def _sockets(self, ids: Sequence[str]) -> Iterator[str]:
        """Sockets that shims listen on outside the folder."""
        for id_ in ids:
            name = hashlib.sha256(f"{self.address}/{self.namespace}/{id_}".encode()).hexdigest()
            for folder in ("/run/containerd/s", "/run/moored/s"):
                if Path(folder, name).exists():
                    yield f"socket {folder}/{name} of {id_}"

    def cleared(self, before: set[str]) -> None:
        """End and remove what was not there before, after a test that failed, and the empty folder of the cgroups."""
        kinds = [line.split()[:2] for line in sorted(self.found() - before)]
        for pid in (int(name) for kind, name in kinds if kind == "process"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for mount in (name for kind, name in kinds if kind == "mount"):
            subprocess.run(["umount", "--lazy", mount], check=False)
        for parent in (CGROUPS / self.namespace, *CGROUPS.glob(f"*/{self.namespace}")):
            if parent.is_dir():
                _removed(parent)


def _removed(cgroup: Path) -> None:
    """Remove a cgroup with those in it, as soon as their processes have ended."""
    for inner in [path for path in cgroup.iterdir() if path.is_dir()]:
        _removed(inner)
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        try:
            return cgroup.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def nothing_left(place: Place, before: set[str], ids: Sequence[str]) -> None:
    """Fail unless all that is found now was there before; what is just ending may take some seconds."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while left := place.found(ids) - before:
        if time.monotonic() > deadline:
            raise AssertionError("left behind:\n" + "\n".join(sorted(left)))
        time.sleep(0.05)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""
