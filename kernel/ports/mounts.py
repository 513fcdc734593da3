"""The mount: what has to be mounted where, as plain data that travels between plugins, runtimes and clients."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One call of mount(2) to make, with options as in fstab.

    type     `bind`, or a file system's name
    source   a path, a device, or the name that the file system wants
    target   where below the place that the mounter chooses, empty for that place itself
    options  in order, the last one wins: `ro`, `rbind`, `lowerdir=/a:/b`
    """

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()

    @property
    def read_only(self) -> bool:
        """Whether the options end up read-only."""
        last = [option for option in self.options if option in {"ro", "rw"}][-1:]
        return last == ["ro"]
