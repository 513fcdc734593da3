"""What a layer is unpacked onto while its snapshot has no parent yet: the upper folder of an overlay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moored.kernel.errors import Unknown
from moored.kernel.ports.mounts import Mount


def upper_only(mounts: Sequence[Mount]) -> Sequence[Mount]:
    """Make a bind mount the upper folder of an overlay, so that what a layer removes is marked and not just absent."""
    one = _bind(mounts)
    return mounts if one is None else [_overlay(one, f"upperdir={one.source}")]


def on_top(mounts: Sequence[Mount], below: Sequence[Mount]) -> Sequence[Mount]:
    """Make the bind mount of an overlayfs snapshot without a parent an overlay on what `below`, of another one, shows.

    Raises Unknown for other mounts.
    """
    one, lowers = _bind(mounts), _shown(below)
    if one is None or lowers is None or Path(one.source).name != "fs":
        raise Unknown("the mounts of an overlayfs snapshot have another form than wanted")
    work = Path(one.source).with_name("work")
    return [_overlay(one, f"workdir={work}", f"upperdir={one.source}", f"lowerdir={lowers}")]


def _bind(mounts: Sequence[Mount]) -> Mount | None:
    return mounts[0] if len(mounts) == 1 and mounts[0].type == "bind" else None


def _overlay(one: Mount, *more: str) -> Mount:
    options = (option for option in one.options if option not in {"rw", "rbind", "bind"})
    return Mount(type="overlay", source="overlay", options=(*options, *more))


def _shown(mounts: Sequence[Mount]) -> str | None:
    """Give the folders that a mount shows in the form of `lowerdir`."""
    if (one := _bind(mounts)) is not None:
        return one.source
    if len(mounts) != 1 or mounts[0].type != "overlay":
        return None
    options = dict(option.partition("=")[::2] for option in mounts[0].options)
    upper, lower = options.get("upperdir"), options.get("lowerdir")
    return f"{upper}:{lower}" if upper and lower else None
