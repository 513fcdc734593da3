"""Who a process runs as: names and numbers looked up in the files of an image, which nobody has vouched for.

`/etc/passwd` and `/etc/group` are opened below the root file system and never outside of it, whatever symbolic links
say; only regular files of a bounded size are read. Source: faults catalogue, CVE-2021-21334, 2022-2989, 2024-40635.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moored.kernel.errors import FailedPrecondition, InvalidArgument, NotFound
from moored.kernel.mountfds import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, open_within

MAX_FILE: Final = 4 << 20
"""Bytes of a file of accounts."""
MAX_ID: Final = 2**32 - 2
"""The highest uid or gid; the one above means none."""


@dataclass(frozen=True, slots=True)
class Account:
    """A line of `/etc/passwd`."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class Group:
    """A line of `/etc/group`."""

    name: str
    gid: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Accounts:
    """What the two files say; lines that are malformed are left out."""

    users: Sequence[Account] = ()
    groups: Sequence[Group] = ()


NOBODY_KNOWN: Final = Accounts()


@dataclass(frozen=True, slots=True)
class User:
    """What a process runs as; groups hold the primary one too. home is empty for an unknown user."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = (0,)
    home: str = ""


ROOT: Final = User()


def read_accounts(root: Path) -> Accounts:
    """Read the accounts of a root file system; blocks. A file that is missing has none.

    Raises FailedPrecondition for one that is too large, no regular file, or cannot be read.
    """
    users = [account for fields in _lines(root, "etc/passwd", 7) if (account := _account(fields))]
    groups = [group for fields in _lines(root, "etc/group", 4) if (group := _group(fields))]
    return Accounts(users, groups)


def resolve(text: str, accounts: Accounts, extra: Sequence[str] = ()) -> User:
    """Find who `USER[:GROUP]` is, each a name or a number; an empty text is root.

    Without a group it is the account's, 0 for an unknown number, and the groups that list the user come along. extra
    are further groups. Raises NotFound for a name that is not known, InvalidArgument for what is neither.
    """
    user, colon, group = text.partition(":")
    if colon and (not user or not group):
        raise InvalidArgument(f"user {text!r} must look like 'USER' or 'USER:GROUP', each a name or a number")
    account = _find_account(user or "0", accounts)
    more = [_find_group(one, accounts) for one in extra]
    if group:
        gid = _find_group(group, accounts)
        listed: list[int] = []
    else:
        gid = account.gid
        listed = [one.gid for one in accounts.groups if account.name and account.name in one.members]
    return User(account.uid, gid, tuple(dict.fromkeys([gid, *listed, *more])), account.home)


def is_numeric(text: str) -> bool:
    """Whether a user is given as `UID:GID`, which needs no looking up."""
    user, _, group = text.partition(":")
    return _number(user) is not None and _number(group) is not None


def _find_account(user: str, accounts: Accounts) -> Account:
    uid = _number(user)
    if uid is None:
        found = next((one for one in accounts.users if one.name == user), None)
        if found is None:
            raise NotFound(f"user {user!r} is not in /etc/passwd of the image")
        return found
    _check(uid, "user", user)
    return next((one for one in accounts.users if one.uid == uid), Account("", uid, 0, ""))


def _find_group(group: str, accounts: Accounts) -> int:
    gid = _number(group)
    if gid is None:
        found = next((one for one in accounts.groups if one.name == group), None)
        if found is None:
            raise NotFound(f"group {group!r} is not in /etc/group of the image")
        return found.gid
    _check(gid, "group", group)
    return gid


def _check(number: int, what: str, text: str) -> None:
    if not 0 <= number <= MAX_ID:
        raise InvalidArgument(f"{what} {text[:32]!r} is no number from 0 to {MAX_ID}")


def _number(text: str) -> int | None:
    """Give the number that a text is, also one that is too large, None for a name."""
    digits = text.removeprefix("-")
    return int(text[:32]) if digits.isascii() and digits.isdigit() else None


def _account(fields: Sequence[str]) -> Account | None:
    uid, gid = _number(fields[2]), _number(fields[3])
    if uid is None or gid is None or not (0 <= uid <= MAX_ID and 0 <= gid <= MAX_ID):
        return None
    return Account(fields[0], uid, gid, fields[5])


def _group(fields: Sequence[str]) -> Group | None:
    gid = _number(fields[2])
    if gid is None or not 0 <= gid <= MAX_ID:
        return None
    return Group(fields[0], gid, tuple(name for name in fields[3].split(",") if name))


def _lines(root: Path, name: str, fields: int) -> Iterator[list[str]]:
    for line in _text(root, name).splitlines():
        parts = line.strip().split(":")
        if len(parts) >= fields and parts[0] and not line.startswith("#"):
            yield parts


def _text(root: Path, name: str) -> str:
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # O_NONBLOCK: a FIFO in the image must not hold whoever opens it.
        fd = open_within(top, name, os.O_RDONLY | os.O_NONBLOCK, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise FailedPrecondition(f"/{name} of the image cannot be read: {error.strerror}") from error
    finally:
        os.close(top)
    with os.fdopen(fd, "rb") as file:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise FailedPrecondition(f"/{name} of the image is no regular file")
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise FailedPrecondition(f"/{name} of the image has more than {MAX_FILE} bytes")
    return data.decode("utf-8", "replace")
