"""A look into a container's root file system before anything runs in it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from moored.api.client.users import NOBODY_KNOWN, Accounts, User, is_numeric, read_accounts, resolve
from moored.kernel.errors import FailedPrecondition, MooredError
from moored.kernel.mounts import mounted
from moored.kernel.ports.mounts import Mount


async def find_user(text: str, groups: Sequence[str], place: Path | Sequence[Mount]) -> User:
    """Find who `USER[:GROUP]` is in a folder, or in what mounts show.

    A user whose numbers are given is not looked up, and root is taken to be in no further group where the files are
    out of reach. Raises NotFound, InvalidArgument, FailedPrecondition.
    """
    if is_numeric(text) and not groups:
        return resolve(text, NOBODY_KNOWN)
    try:
        accounts = await asyncio.to_thread(_accounts, place)
    except (OSError, MooredError) as error:
        if not text and not groups:
            return User()
        raise FailedPrecondition(f"user {text!r} cannot be looked up in the image: {error}") from error
    return resolve(text, accounts, groups)


def _accounts(place: Path | Sequence[Mount]) -> Accounts:
    if isinstance(place, Path):
        return read_accounts(place)
    with mounted([read_only(mount) for mount in place]) as root:
        return read_accounts(root)


def read_only(mount: Mount) -> Mount:
    """Give the mount that shows the same and lets nobody write.

    Of an overlay only the lower folders are taken: what is above them is new, or in use.
    """
    options = tuple(option for option in mount.options if option != "rw")
    if mount.type == "overlay":
        kept = tuple(option for option in options if not option.startswith(("upperdir=", "workdir=")))
        lower = next((option for option in kept if option.startswith("lowerdir=")), "").removeprefix("lowerdir=")
        if lower and ":" not in lower:
            return Mount(type="bind", source=lower, target=mount.target, options=("rbind", "ro"))
        options = kept
    return replace(mount, options=(*options, "ro") if "ro" not in options else options)
