"""What a check of the doctor looks at, and what it finds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

Verdict: TypeAlias = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One result. what: one line; remedy: what to do about it, empty if there is nothing to do."""

    verdict: Verdict
    what: str
    remedy: str = ""


def ok(what: str) -> Finding:
    """Give the finding that all is well."""
    return Finding("ok", what)


def warning(what: str, remedy: str) -> Finding:
    """Give the finding that something does not work which not everybody needs."""
    return Finding("warning", what, remedy)


def failed(what: str, remedy: str) -> Finding:
    """Give the finding that containers cannot run."""
    return Finding("failed", what, remedy)


@dataclass(frozen=True, slots=True)
class Server:
    """What a daemon answered: its version, the plugins that failed (URI, reason); error if it did not."""

    version: str = ""
    broken: Sequence[tuple[str, str]] = ()
    snapshotters: Sequence[str] = ()
    error: str = ""


def space(path: Path) -> tuple[int, int, int, int]:
    """Ask the file system that a path is, or would be, on."""
    while not path.exists():
        path = path.parent
    found: Any = os.statvfs(path)
    return (
        found.f_bavail * found.f_frsize,
        found.f_blocks * found.f_frsize,
        found.f_favail,
        found.f_files,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The host as checks see it; every field can be replaced to test them.

    root       what /proc, /sys, /etc and /dev are looked for in
    release    of the kernel
    which      finds a program on PATH
    disk       path -> (bytes free, bytes of all, inodes free, inodes of all), of the nearest folder that exists
    """

    address: str
    uid: int = field(default_factory=os.geteuid)
    root: Path = Path("/")
    release: str = field(default_factory=lambda: os.uname().release)
    which: Callable[[str], str | None] = shutil.which
    disk: Callable[[Path], tuple[int, int, int, int]] = space
    cni_folders: Sequence[str] = ()
    daemon_root: Path = Path("/var/lib/moored")
    own_root: Path = Path("/var/lib/moorctl")

    def text(self, path: str) -> str:
        """Read a small file; empty where it cannot be."""
        try:
            return self.path(path).read_text(errors="replace").strip()
        except OSError:
            return ""

    def path(self, path: str) -> Path:
        """Give a path below the root."""
        return self.root / path.lstrip("/")

    def has(self, path: str) -> bool:
        """Whether there is something at a path."""
        return self.path(path).exists()


Check: TypeAlias = Callable[[Host], Finding]
