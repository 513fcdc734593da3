"""Where a process's cgroups are, on hosts with cgroup v1 (a hierarchy for each controller) and v2 (one for all)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from moored.kernel.errors import NotFound

ROOT: Final = "/sys/fs/cgroup"
_LIMIT: Final = 1 << 20
"""Bytes read of one file; those of the kernel are far shorter."""


class Cgroups(NamedTuple):
    """The folders of one process's cgroups: `unified` on a v2 host, else one for each v1 controller (`memory`)."""

    unified: str = ""
    controllers: Mapping[str, str] = {}


def cgroups_of(pid: int) -> Cgroups:
    """Find the cgroups of a process that runs; they stay where they are when it ends.

    Raises NotFound if the process is gone or has none.
    """
    text = read_text(f"/proc/{pid}/cgroup")
    if text is None:
        raise NotFound("cgroup does not exist")
    paths = _paths(text)
    if os.access(f"{ROOT}/cgroup.controllers", os.F_OK):
        return Cgroups(unified=f"{ROOT}{paths.get('', '/')}".rstrip("/"))
    found = {name: folder for name, folder in _folders(paths).items() if os.access(folder, os.F_OK)}
    if not found:
        raise NotFound("cgroup does not exist")
    return Cgroups(controllers=found)


def _paths(text: str) -> dict[str, str]:
    """Read /proc/PID/cgroup: the path for each v1 controller, and for v2 under the empty name."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        found.update(dict.fromkeys(names.split(","), path))
    return found


def _folders(paths: Mapping[str, str]) -> dict[str, str]:
    """Put the paths below the points where their hierarchies are mounted."""
    found: dict[str, str] = {}
    for line in (read_text("/proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup":
            root, point = before.split(" ")[3:5]
            for name in options.split(","):
                if name in paths:
                    found.setdefault(name, point + _below(root, paths[name]))
    return found


def _below(root: str, path: str) -> str:
    """Give the path as it is seen through a mount of `root`, which is another than / in a container."""
    if root != "/" and (path + "/").startswith(root + "/"):
        path = path[len(root) :]
    return "" if path == "/" else path


def read_text(path: str) -> str | None:
    """Give what a small file of the kernel says; None if there is no such file, or its cgroup is going."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            pieces: list[bytes] = []
            while (piece := os.read(fd, _LIMIT)) and len(pieces) < 16:
                pieces.append(piece)
            return b"".join(pieces).decode(errors="replace")
        finally:
            os.close(fd)
    return None


def read_table(path: str) -> dict[str, int] | None:
    """Give what is in a file of `name number` lines; None where there is none."""
    text = read_text(path)
    if text is None:
        return None
    return parse_table(text)


def parse_table(text: str) -> dict[str, int]:
    """Read lines of `name number`, negative numbers as 0."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        with suppress(ValueError):
            found[name] = max(0, int(value))
    return found


def read_number(path: str, most: int = 0) -> int | None:
    """Give a file with one number; `most` for the word `max`; None where there is no file. Negative numbers are 0."""
    text = read_text(path)
    if text is None:
        return None
    if text.strip() == "max":
        return most
    try:
        return max(0, int(text))
    except ValueError:
        return None


def huge_pages() -> list[str]:
    """Give the sizes of huge pages, as the names of the hugetlb controller's files have them (`2MB`)."""
    found: list[str] = []
    with suppress(OSError):
        for name in sorted(os.listdir("/sys/kernel/mm/hugepages")):  # noqa: PTH208  # pathlib is memory in every shim
            size = int(name.removeprefix("hugepages-").removesuffix("kB"))
            found.append(
                next(f"{size >> shift}{unit}B" for shift, unit in ((20, "G"), (10, "M"), (0, "K")) if size >> shift)
            )
    return found
