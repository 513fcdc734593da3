"""What a check of the doctor looks at, and what it finds."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

VERSION_SECONDS: Final = 10.0

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
    """What a daemon answered, or did not.

    broken     the plugins that failed (URI, reason)
    error      why it cannot be asked; advice is what to do about that
    root       the folder of its lasting state, empty where it does not tell
    problems   what is wrong in its configuration files as they are now, a line each; config is the file to name
    """

    version: str = ""
    broken: Sequence[tuple[str, str]] = ()
    snapshotters: Sequence[str] = ()
    error: str = ""
    advice: str = ""
    root: str = ""
    problems: Sequence[str] = ()
    config: str = ""


def space(path: Path) -> tuple[int, int, int, int]:
    """Ask the file system that a path is, or would be, on."""
    found: Any = os.statvfs(_there(path))
    return (
        found.f_bavail * found.f_frsize,
        found.f_blocks * found.f_frsize,
        found.f_favail,
        found.f_files,
    )


def read_only(path: Path) -> str:
    """Give the command that makes a path, or where it would be, writable if it is mounted so that it is not."""
    path = _there(path)
    if not os.statvfs(path).f_flag & os.ST_RDONLY:
        return ""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    above = [words for words in mounts if path.resolve().is_relative_to(_unescaped(words[4]))]
    if not above:
        return f"mount -o remount,rw {path}"
    found = max(above, key=lambda words: len(words[4]))
    # Not the file system but this mount of it may be what is read-only; they are made writable in different ways.
    whole = "ro" in found[-1].split(",")
    return f"mount -o remount,{'' if whole else 'bind,'}rw {_unescaped(found[4])}"


def _unescaped(text: str) -> str:
    """Undo how mountinfo writes blanks: their number in octal behind a backslash."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _there(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def runs(program: str) -> bool:
    """Whether a program says its version."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, check=False, timeout=VERSION_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The host as checks see it; every field can be replaced to test them.

    root       what /proc, /sys, /etc and /dev are looked for in
    release    of the kernel
    which      finds a program on PATH
    runs       whether a program can be run
    disk       path -> (bytes free, bytes of all, inodes free, inodes of all), of the nearest folder that exists
    read_only  path -> the command that makes it writable, if it is mounted so that it is not; else nothing
    """

    address: str
    uid: int = field(default_factory=os.geteuid)
    root: Path = Path("/")
    release: str = field(default_factory=lambda: os.uname().release)
    which: Callable[[str], str | None] = shutil.which
    runs: Callable[[str], bool] = runs
    read_only: Callable[[Path], str] = read_only
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

    def mode(self, path: str) -> int | None:
        """Give the permissions of what is at a path of this host, None for nothing."""
        try:
            return stat.S_IMODE(self.path(path).stat().st_mode)
        except OSError:
            return None

    def has(self, path: str) -> bool:
        """Whether there is something at a path."""
        return self.path(path).exists()


Check: TypeAlias = Callable[[Host], Finding]
