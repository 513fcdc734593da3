"""What is mounted into a container, as `-v`, `--mount` and `--tmpfs` write it, and the volumes that moorctl keeps.

A volume is a folder `_data` below moorctl's own, filled at its first use with what the image has in its place
(`filling`). One without a name, as the image's own VOLUMEs are, goes with its container.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from moored.api.cli.home import Home, write_document
from moored.api.cli.quantities import parse_size
from moored.api.client.spec import Mount
from moored.kernel.errors import InvalidArgument, PermissionDenied

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_SPREADS: Final = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_BIND_OPTIONS: Final = frozenset({"ro", "rw", "bind", "rbind", "nosuid", "nodev", "noexec", "noatime", *_SPREADS})
_IGNORED: Final = frozenset({"z", "Z", "cached", "delegated", "consistent"})
"""Options that mean something to other programs, or only with SELinux."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One mount: `bind` of a path (must_exist: not to be made), `volume` (empty source: a new one), or `tmpfs`.

    copy: whether a volume is filled from the image.
    """

    kind: str
    source: str
    destination: str
    options: tuple[str, ...] = ()
    must_exist: bool = False
    copy: bool = True


@dataclass(slots=True)
class Made:
    """What came of what was asked for.

    mounts      for the spec
    anonymous   names of the volumes that were made for this container alone
    to_fill     name of each volume that is to be filled, with its place in the image
    """

    mounts: list[Mount] = field(default_factory=list)
    anonymous: list[str] = field(default_factory=list)
    to_fill: dict[str, str] = field(default_factory=dict)


def parse_volume(text: str) -> Asked:
    """Read `-v`: `SOURCE:PLACE[:OPTIONS]` or `PLACE`; a source with a slash or dot first is a path. InvalidArgument."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise InvalidArgument(f"volume {text!r} must look like /host/path:/place, name:/place or name:/place:ro")
    if len(parts) == 1:
        return Asked("volume", "", _place(text, parts[0]), ("rw",))
    given = parts[2].split(",") if len(parts) == 3 else []
    options = tuple(option for option in given if option not in _IGNORED and option != "nocopy")
    if wrong := next((option for option in options if option not in _BIND_OPTIONS), None):
        raise InvalidArgument(
            f"volume {text!r} has option {wrong!r}, wanted some of {', '.join(sorted(_BIND_OPTIONS))}"
        )
    source, place = parts[0], _place(text, parts[1])
    if source.startswith(("/", "./", "../")) or source in (".", ".."):
        return Asked("bind", os.path.abspath(source), place, options)  # noqa: PTH100 - links stay as they are
    if not _NAME.fullmatch(source):
        raise InvalidArgument(
            f"volume name {source!r} must be letters, digits, '_', '.', '-'; a path begins with / or ./"
        )
    return Asked("volume", source, place, options, copy="nocopy" not in given)


def parse_mount(text: str) -> Asked:
    """Read `--mount type=bind,source=..,target=..[,readonly]`, also `volume` and `tmpfs`. Raises InvalidArgument."""
    given: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        given[_SPELLINGS.get(key, key)] = value if equals else "true"
    kind = given.pop("type", "volume")
    place = _place(text, given.pop("target", ""))
    source = given.pop("source", "")
    options = ["ro"] if given.pop("readonly", "false") in ("true", "1") else []
    if propagation := given.pop("bind-propagation", ""):
        options.append(propagation)
    if kind == "tmpfs":
        size, mode = given.pop("tmpfs-size", ""), given.pop("tmpfs-mode", "")
        options += [f"size={_size(size)}"] if size else []
        options += [f"mode={mode}"] if mode else []
    given.pop("consistency", None)
    copy = given.pop("volume-nocopy", "false") not in ("true", "1") if kind == "volume" else True
    if kind not in ("bind", "volume", "tmpfs") or given:
        wrong = f"unknown key {next(iter(given))!r}" if given else f"unknown type {kind!r}"
        raise InvalidArgument(f"mount {text!r} has {wrong}, wanted type=bind|volume|tmpfs,source=..,target=..,readonly")
    if kind == "bind" and not source:
        raise InvalidArgument(f"mount {text!r} has no source")
    if kind == "volume" and source and not _NAME.fullmatch(source):
        raise InvalidArgument(f"volume name {source!r} must be letters, digits, '_', '.', '-'")
    source = os.path.abspath(source) if kind == "bind" else source  # noqa: PTH100
    return Asked(kind, source, place, tuple(options), must_exist=True, copy=copy)


_SPELLINGS: Final = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}


def parse_tmpfs(text: str) -> Asked:
    """Read `--tmpfs PLACE[:OPTIONS]`. Raises InvalidArgument."""
    place, _, options = text.partition(":")
    return Asked("tmpfs", "", _place(text, place), tuple(option for option in options.split(",") if option))


def _place(text: str, place: str) -> str:
    if not place.startswith("/") or place == "/":
        raise InvalidArgument(f"volume {text!r} must have an absolute path other than / in the container")
    return os.path.normpath(place)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise InvalidArgument(str(error)) from error


def of_image(places: Iterable[str], asked: Sequence[Asked]) -> list[Asked]:
    """Give the mounts of an image's VOLUMEs, but for places that something else is mounted on, or that cannot be."""
    taken = {one.destination for one in asked}
    wanted = {os.path.normpath(place) for place in places if place.startswith("/")} - taken - {"/"}
    return [Asked("volume", "", place, ("rw",)) for place in sorted(wanted)]


def mounts(home: Home, asked: Sequence[Asked]) -> Made:
    """Give the mounts, and which volumes are new or to be filled.

    Makes volumes and missing folders of the host. Raises InvalidArgument for two on one place and a path that must be
    there and is not, PermissionDenied.
    """
    places = [one.destination for one in asked]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise InvalidArgument(f"{twice!r} is mounted on twice, wanted one -v, --mount or --tmpfs for it")
    made = Made()
    for one in asked:
        if one.kind == "tmpfs":
            options = one.options if any(o.startswith("mode=") for o in one.options) else (*one.options, "mode=1777")
            made.mounts.append(
                Mount(destination=one.destination, source="tmpfs", type="tmpfs", options=("nosuid", "nodev", *options))
            )
            continue
        source = one.source
        if one.kind == "volume":
            if not source:
                source = os.urandom(32).hex()
                made.anonymous.append(source)
            if one.copy:
                made.to_fill.setdefault(source, one.destination)
            source = str(make(home, source, anonymous=source in made.anonymous))
        else:
            _bindable(one)
        made.mounts.append(Mount(destination=one.destination, source=source, options=_bind_options(one.options)))
    return made


def _bind_options(options: Sequence[str]) -> tuple[str, ...]:
    kind = () if {"bind", "rbind"} & set(options) else ("rbind",)
    spread = () if any(o.lstrip("r") in ("private", "shared", "slave") for o in options) else ("rprivate",)
    return (*kind, *options, *spread)


def _bindable(one: Asked) -> None:
    if os.path.lexists(one.source):
        return
    if one.must_exist:
        raise InvalidArgument(f"mount source {one.source!r} does not exist on the host")
    try:
        Path(one.source).mkdir(parents=True)
    except OSError as error:
        raise PermissionDenied(f"folder {one.source!r} cannot be made on the host: {error.strerror}") from error


def make(home: Home, name: str, *, anonymous: bool = False) -> Path:
    """Make a volume unless it is there, and give its folder. Raises PermissionDenied."""
    folder = home.volumes / name
    data = folder / "_data"
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionDenied(f"volume {name!r} cannot be made in '{folder}': {error.strerror}") from error
    if not (folder / "volume.json").exists():
        write_document(folder / "volume.json", {"name": name, "anonymous": anonymous})
    return data


def remove(home: Home, name: str) -> None:
    """Remove a volume with all in it; again is harmless."""
    folder = home.volumes / name
    if _NAME.fullmatch(name):
        shutil.rmtree(folder, ignore_errors=True)


def known(home: Home) -> list[str]:
    """Names of the volumes that there are."""
    return sorted(path.name for path in home.volumes.iterdir()) if home.volumes.is_dir() else []
