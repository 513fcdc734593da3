"""Devices of the host that a container may use: their nodes, and the rules of its device cgroup."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moored.kernel.errors import InvalidArgument, NotFound

_LEFT_OUT: Final = frozenset({"pts", "shm", "fd", "mqueue", "console", "core", "log", ".lxc", ".lxd-mounts", ".udev"})
"""What each container has of its own in /dev."""
_DEPTH: Final = 8


@dataclass(frozen=True, slots=True)
class Device:
    """A device, or a folder of them, and its place inside, empty for the same; permissions are some of `rwm`."""

    path: str
    container_path: str = ""
    permissions: str = "rwm"


def devices(device: Device) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Give node and rule of what is asked for. Raises NotFound, InvalidArgument for what is no device."""
    if not device.permissions or set(device.permissions) - set("rwm"):
        raise InvalidArgument(f"device permissions {device.permissions!r} must be some of 'rwm'")
    place = device.container_path or device.path
    if not place.startswith("/"):
        raise InvalidArgument(f"device {place!r} must be an absolute path")
    found = list(_found(Path(device.path), place))
    if not found:
        raise InvalidArgument(f"{device.path!r} is no device and no folder with any")
    for node in found:
        yield node, permission(node["type"], node["major"], node["minor"], device.permissions, allow=True)


def all_devices() -> list[dict[str, Any]]:
    """Give the nodes of all devices of the host, but for what containers have of their own."""
    return [node for path in sorted(Path("/dev").iterdir()) if path.name not in _LEFT_OUT for node in _below(path)]


def permission(kind: str, major: int | None, minor: int | None, access: str, *, allow: bool) -> dict[str, Any]:
    """Give a rule of the device cgroup; None stands for any number."""
    numbers = {name: value for name, value in (("major", major), ("minor", minor)) if value is not None}
    return {"allow": allow, "type": kind, **numbers, "access": access}


def _found(path: Path, place: str) -> Iterator[dict[str, Any]]:
    try:
        about = path.stat()
    except OSError as error:
        raise NotFound(f"device '{path}' cannot be used: {error.strerror}") from error
    if stat.S_ISDIR(about.st_mode):
        for node in _below(path):
            yield {**node, "path": os.path.join(place, os.path.relpath(node["path"], path))}  # noqa: PTH118
    elif (single := _node(place, about)) is not None:
        yield single


def _below(path: Path, depth: int = 0) -> Iterator[dict[str, Any]]:
    try:
        about = path.lstat()
        inside = sorted(path.iterdir()) if stat.S_ISDIR(about.st_mode) and depth < _DEPTH else []
    except OSError:
        return  # it has just gone, or is not ours to look at
    for one in inside:
        yield from _below(one, depth + 1)
    if node := _node(str(path), about):
        yield node


def _node(place: str, about: os.stat_result) -> dict[str, Any] | None:
    kind = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}.get(stat.S_IFMT(about.st_mode))
    if kind is None:
        return None
    return {
        "path": place,
        "type": kind,
        "major": os.major(about.st_rdev),
        "minor": os.minor(about.st_rdev),
        "fileMode": stat.S_IMODE(about.st_mode),
        "uid": about.st_uid,
        "gid": about.st_gid,
    }
