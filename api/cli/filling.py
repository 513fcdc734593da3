"""Fills volumes, at their first use, with what the image has in their place, owners and modes included.

    image's folder --copy--> VOLUME/_fill --rename--> VOLUME/_data          then volume.json says filled

A volume is filled whole or not at all, and before anything can be mounted from it; what the image has there is
reached by descriptors that never lead out of it, whatever its symbolic links say.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from moored.api.cli.home import Home, read_document, write_document
from moored.api.client.rootfs import read_only
from moored.kernel.errors import FailedPrecondition, MooredError, Unknown
from moored.kernel.mountfds import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, closing, open_within
from moored.kernel.mounts import mounted
from moored.kernel.ports.mounts import Mount

SECONDS: Final = 3600.0
"""How long one copy may take."""
_DOCUMENT: Final = "volume.json"


def fill(home: Home, places: Mapping[str, str], mounts: Sequence[Mount]) -> None:
    """Fill those of the volumes (name: place in the image) that have not been used yet; blocks.

    mounts show the container's files. Raises FailedPrecondition where these cannot be looked at, Unknown for a copy
    that fails.
    """
    wanted = {name: place for name, place in places.items() if not _used(home.volumes / name)}
    if not wanted:
        return
    try:
        with mounted([read_only(mount) for mount in mounts]) as root, closing(os.open(root, os.O_PATH)) as top:
            for name, place in wanted.items():
                _fill(home.volumes / name, top, place)
    except (OSError, MooredError) as error:
        if isinstance(error, Unknown):
            raise
        raise FailedPrecondition(f"volumes cannot be filled from the image: {error}") from error


def _used(volume: Path) -> bool:
    return bool(read_document(volume / _DOCUMENT).get("filled"))


def _fill(volume: Path, top: int, place: str) -> None:
    with _alone(volume):
        if _used(volume):
            return
        data, aside = volume / "_data", volume / "_fill"
        shutil.rmtree(aside, ignore_errors=True)
        if not any(data.iterdir()) and (source := _folder(top, place)) is not None:
            with closing(source):
                _copy(source, aside, place)
            aside.replace(data)
        write_document(volume / _DOCUMENT, {**read_document(volume / _DOCUMENT), "filled": True})


@contextmanager
def _alone(volume: Path) -> Generator[None]:
    """Keep other moorctl processes from filling it meanwhile."""
    with closing(os.open(volume, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _folder(top: int, place: str) -> int | None:
    """Open a folder of the image; None where there is none."""
    try:
        return open_within(
            top, place.lstrip("/") or ".", os.O_RDONLY | os.O_DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        )
    except (FileNotFoundError, NotADirectoryError):
        return None


def _copy(source: int, target: Path, place: str) -> None:
    """Copy a folder with all that is in it: files as they are, links as links, owners, modes, times, attributes."""
    target.mkdir(mode=0o700)
    words = ["cp", "-a", f"/proc/self/fd/{source}/.", str(target)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, pass_fds=[source], timeout=SECONDS)
    if done.returncode:
        shutil.rmtree(target, ignore_errors=True)
        raise Unknown(f"{place!r} of the image cannot be copied to volume {target.parent.name!r}: {done.stderr[-500:]}")
