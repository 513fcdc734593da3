"""What the daemon does to its own process: folders, OOM score, cgroup, temporary files, limits."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from moored.kernel.errors import FailedPrecondition, InvalidArgument

ROOT_MODE = 0o700
STATE_MODE = 0o711


def prepare_folders(root: Path, state: Path, temp: str) -> None:
    """Make root (0700, set at each start), state (0711, only when made here) and the temporary folder (0700).

    Modes: contracts/semantics.md 6. Raises InvalidArgument naming a path that is no folder or can't be made.
    """
    _folder(root, ROOT_MODE, what="root", enforce=True)
    _folder(state, STATE_MODE, what="state", enforce=False)
    if temp:
        _folder(Path(temp), 0o700, what="temp", enforce=True)
        os.environ["TMPDIR"] = temp
        tempfile.tempdir = None


def _folder(path: Path, mode: int, *, what: str, enforce: bool) -> None:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            path.mkdir(mode=mode)
        except FileExistsError:
            if not path.is_dir():
                raise InvalidArgument(f"{what} {str(path)!r} is not a folder") from None
            if not enforce:
                return
        path.chmod(mode)
    except OSError as error:
        raise InvalidArgument(f"{what} {str(path)!r} cannot be used: {error.strerror}") from error


def set_oom_score(score: int) -> None:
    """Write the process's own oom_score_adj; 0 leaves it alone. Raises FailedPrecondition if the kernel refuses."""
    if score == 0:
        return
    try:
        Path("/proc/self/oom_score_adj").write_text(str(score), encoding="ascii")
    except OSError as error:
        raise FailedPrecondition(f"oom_score {score} was refused by the kernel: {error.strerror}") from error


def join_cgroup(path: str) -> None:
    """Move this process into cgroup `path`, made where missing, in every v1 hierarchy or in the v2 tree.

    Raises FailedPrecondition naming the folder that could not be made or joined.
    """
    if not path:
        return
    for mount, is_v1 in _cgroup_mounts():
        folder = mount / path.lstrip("/")
        try:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            if is_v1 and (folder / "cpuset.cpus").exists():
                _inherit_cpuset(mount, folder)
            (folder / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        except OSError as error:
            raise FailedPrecondition(f"cannot join cgroup {str(folder)!r}: {error.strerror}") from error


def _cgroup_mounts() -> Iterator[tuple[Path, bool]]:
    """Every v1 controller hierarchy, else the v2 tree."""
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    kinds = [(Path(fields[4]), fields[fields.index("-") + 1]) for fields in lines]
    v1 = [mount for mount, kind in kinds if kind == "cgroup"]
    if v1:
        yield from ((mount, True) for mount in v1)
    else:
        yield from ((mount, False) for mount, kind in kinds if kind == "cgroup2")


def _inherit_cpuset(mount: Path, folder: Path) -> None:
    """A new v1 cpuset is empty and takes no process until it is filled from its parent."""
    for part in reversed([folder, *folder.parents]):
        if part == mount or mount not in part.parents:
            continue
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not (part / name).read_text(encoding="ascii").strip():
                (part / name).write_text((part.parent / name).read_text(encoding="ascii"), encoding="ascii")
