"""What every `MountHandler` does; each check takes a handler, a mount that it can make, and an empty folder.

    await check(Case(handler, Mount(type="erofs", source="/images/good.erofs"), folder))

Where the handler can tell a bad source, `bad` is a mount that must fail. The plain asserts need no test tool, but the
rights that the handler needs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from moored.kernel.errors import MooredError
from moored.kernel.ports.mounts import ActiveMount, Mount, MountHandler


@dataclass(frozen=True, slots=True)
class Case:
    """What a check works with; folder is empty, and is again afterwards but for empty folders."""

    handler: MountHandler
    good: Mount
    folder: Path
    bad: Mount | None = None

    @property
    def target(self) -> Path:
        """Where to mount: not there yet."""
        return self.folder / "target"

    async def mount(self, earlier: tuple[ActiveMount, ...] = ()) -> ActiveMount:
        """Make the good mount."""
        return await self.handler.mount(self.good, self.target, earlier)


Check: TypeAlias = Callable[[Case], Awaitable[None]]


def there(place: Path) -> set[str]:
    """Give the lines of the kernel's table for what is mounted at or below a place."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line for line in lines if line.split()[4] == str(place) or line.split()[4].startswith(f"{place}/")}


def exists(place: str) -> bool:
    """Tell whether something is there, a link that leads nowhere as well."""
    return os.path.lexists(place)


async def check_mount_is_where_it_is_said_to_be(case: Case) -> None:
    """At the place that was asked for, or one that the answer names; with the time at which it was made."""
    before = time.time_ns()
    made = await case.mount()
    try:
        assert exists(made.mount_point), f"there is nothing at {made.mount_point!r}"
        assert made.mount.type == case.good.type
        assert made.mounted_at is None or before <= made.mounted_at <= time.time_ns()
    finally:
        await case.handler.unmount(case.target)


async def check_nothing_is_mounted_after_unmount(case: Case) -> None:
    """And it can be mounted there again."""
    for _ in range(2):
        await case.mount()
        await case.handler.unmount(case.target)
        assert there(case.folder) == set()
        if case.target.is_dir():
            case.target.rmdir()


async def check_unmount_of_what_is_not_there_is_fine(case: Case) -> None:
    """Before a mount, and after one."""
    await case.handler.unmount(case.target)
    await case.mount()
    await case.handler.unmount(case.target)
    await case.handler.unmount(case.target)
    assert there(case.folder) == set()


async def check_failed_mount_leaves_nothing_mounted(case: Case) -> None:
    """An error of the operating system or of the closed set; undoing it is fine as well."""
    if case.bad is None:
        return
    try:
        await case.handler.mount(case.bad, case.target, ())
    except (OSError, MooredError):
        pass
    else:
        await case.handler.unmount(case.target)
        raise AssertionError(f"{case.bad} was mounted")
    assert there(case.folder) == set()
    await case.handler.unmount(case.target)


async def check_mounts_do_not_touch_each_other(case: Case) -> None:
    """The same thing twice, the first one unmounted first."""
    made = await case.mount()
    other = case.folder / "other"
    await case.handler.mount(case.good, other, (made,))
    await case.handler.unmount(case.target)
    left = there(case.folder)
    await case.handler.unmount(other)
    assert all(line.split()[4].startswith(str(other)) for line in left)
    assert there(case.folder) == set()


CHECKS: Final[tuple[Check, ...]] = tuple(
    value for name, value in sorted(globals().items()) if name.startswith("check_") and callable(value)
)
"""All checks, for `for check in CHECKS: await check(Case(...))`."""
