"""Tells when the kernel kills in a container's cgroup because its memory is used up.

v1 counts on an eventfd that is registered for `memory.oom_control`; in v2 the number of kills in `memory.events` rises,
which poll(2) tells. Source: contracts/shim-v2.md 11.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from moored.plugins.runtime.shim.cgroups import Cgroups, parse_table
from moored.plugins.runtime.shim.descriptors import Descriptors
from moored.plugins.runtime.shim.loop import Loop


class OomWatch:
    """A watch that goes on until it is closed or its cgroup is gone; `watch` makes it."""

    def __init__(self, loop: Loop, fds: Descriptors, work: Coroutine[Any, Any, None]) -> None:
        self._task = loop.spawn(work)
        self._task.add_callback(fds.close_all)  # also of one that is cancelled before it began

    def close(self) -> None:
        """Watch no longer. May be called again."""
        self._task.cancel()

    def over(self) -> bool:
        """Whether nothing is watched any more and all is given back."""
        return self._task.done()


def watch(loop: Loop, cgroups: Cgroups, on_oom: Callable[[], None]) -> OomWatch | None:
    """Call `on_oom`, from the loop, for each time; None without a memory cgroup, where it never happens."""
    with suppress(OSError):  # the container is gone already
        if cgroups.unified:
            return watch_rise(loop, f"{cgroups.unified}/memory.events", "oom_kill", on_oom)
        if "memory" in cgroups.controllers:
            return _watch_v1(loop, cgroups.controllers["memory"], on_oom)
    return None


def _watch_v1(loop: Loop, folder: str, on_oom: Callable[[], None]) -> OomWatch:
    fds = Descriptors()
    try:
        (counter,) = fds.take([os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)])
        (watched,) = fds.take([os.open(f"{folder}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)])
        (control,) = fds.take([os.open(f"{folder}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)])
        os.write(control, f"{counter} {watched}".encode())
        fds.close((watched, control))
    except OSError:
        fds.close_all()
        raise

    async def counting() -> None:
        while True:
            await loop.readable(counter)
            os.eventfd_read(counter)
            if not os.access(f"{folder}/memory.oom_control", os.F_OK):
                return  # the end of a cgroup is told in the same way
            on_oom()

    return OomWatch(loop, fds, counting())


def watch_rise(loop: Loop, path: str, name: str, on_rise: Callable[[], None]) -> OomWatch:
    """Call something whenever a number in a file of events of cgroup v2 is higher than before.

    Raises OSError if there is no such file.
    """
    fds = Descriptors()
    (events,) = fds.take([os.open(path, os.O_RDONLY | os.O_CLOEXEC)])
    # Such a file is always readable; a change is a priority event, which the loop does not wait for but this does.
    changes = select.epoll()
    changes.register(events, select.EPOLLPRI)

    async def rising() -> None:
        with changes, suppress(OSError):  # ENODEV once the cgroup is gone
            known = _number(events, name)
            while True:
                await loop.readable(changes.fileno())
                found = _number(events, name)
                if found > known:
                    on_rise()
                known = found

    return OomWatch(loop, fds, rising())


def _number(events: int, name: str) -> int:
    """Read, which also marks what was read as seen."""
    return parse_table(os.pread(events, 4096, 0).decode()).get(name, 0)
