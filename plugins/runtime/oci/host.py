"""What of this host decides how runtimes can be called; read anew each time, since hosts change."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CAP_SYS_RESOURCE: Final = 24
_ALL_IDS: Final = 4294967295
_V1_NEEDED: Final = frozenset({"blkio", "cpu", "cpuset", "memory"})
_V2_NEEDED: Final = frozenset({"cpu", "cpuset", "io", "memory", "pids"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One look at the host.

    kernel            major and minor version
    lowest_oom_score  the lowest `oom_score_adj` that a child of this process may take, None for any: below its parent's
                      the kernel wants CAP_SYS_RESOURCE in the first user namespace
    systemd           whether systemd runs it
    gvisor_cgroups    whether runsc can make cgroups. On version 1 it needs these hierarchies below /sys/fs/cgroup and
                      otherwise fails to create (seen): blkio, cpu, cpuset, memory; cpuacct, devices, freezer, hugetlb,
                      pids and systemd may be missing. On version 2: cpu, cpuset, io, memory, pids
    """

    kernel: tuple[int, int] = (0, 0)
    lowest_oom_score: int | None = None
    systemd: bool = False
    gvisor_cgroups: bool = True


def look(root: Path = Path("/")) -> Host:
    """Read it from the `proc`, `sys` and `run` of a root folder; what cannot be read counts as missing."""
    own = root / "proc/self"
    privileged = _privileged(_text(own / "status"), _text(own / "uid_map"))
    score = _text(own / "oom_score_adj").strip()
    return Host(
        kernel=_kernel(_text(root / "proc/sys/kernel/osrelease")),
        lowest_oom_score=None if privileged or not score else int(score),
        systemd=(root / "run/systemd/system").is_dir(),
        gvisor_cgroups=_gvisor_cgroups(root / "sys/fs/cgroup"),
    )


def _kernel(release: str) -> tuple[int, int]:
    found = re.match(r"(\d{1,5})\.(\d{1,5})", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _privileged(status: str, uid_map: str) -> bool:
    """Whether CAP_SYS_RESOURCE is held, and counts: only in the first user namespace does it."""
    found = re.search(r"^CapEff:\s*([0-9a-fA-F]{1,16})$", status, re.MULTILINE)
    held = found is not None and int(found[1], 16) >> _CAP_SYS_RESOURCE & 1 == 1
    return held and uid_map.split() in ([], ["0", "0", str(_ALL_IDS)])


def _gvisor_cgroups(folder: Path) -> bool:
    unified = _text(folder / "cgroup.controllers").split()
    if unified:
        return set(unified) >= _V2_NEEDED and _writable(folder, ())
    return all((folder / name / "tasks").exists() for name in _V1_NEEDED) and _writable(folder, _V1_NEEDED)


def _writable(folder: Path, names: Collection[str]) -> bool:
    return all(os.access(place, os.W_OK) for place in ([folder / name for name in names] or [folder]))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
