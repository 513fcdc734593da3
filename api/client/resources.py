"""What a container may use of the host, as the runtime spec has it (LinuxResources)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from moored.kernel.errors import InvalidArgument

RESOURCES_TYPE: Final = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
PERIOD: Final = 100_000
"""Microseconds in which a share of processors is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Limits; None and empty texts leave things as they are.

    cpus                 processors' worth of time, 0.5 for half of one
    cpu_shares           weight against others, 1024 is usual
    cpuset_cpus, _mems   which processors and memory nodes, `0-2,7`
    memory               bytes; -1 for no limit, as for memory_swap
    memory_swap          bytes of memory and swap together
    memory_reservation   bytes that it is pushed back to when memory is short
    pids                 how many processes and threads; -1 for no limit
    """

    cpus: float | None = None
    cpu_shares: int | None = None
    cpu_quota: int | None = None
    cpu_period: int | None = None
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    memory: int | None = None
    memory_swap: int | None = None
    memory_reservation: int | None = None
    pids: int | None = None

    def document(self) -> dict[str, Any]:
        """Give it as JSON objects, without what is not set. Raises InvalidArgument for numbers that cannot be."""
        parts = {
            "cpu": self._cpu(),
            "memory": _set(limit=self.memory, swap=self.memory_swap, reservation=self.memory_reservation),
            "pids": _set(limit=self.pids),
        }
        return {name: part for name, part in parts.items() if part}

    def _cpu(self) -> dict[str, Any]:
        quota, period = self.cpu_quota, self.cpu_period
        if self.cpus is not None:
            if quota is not None:
                raise InvalidArgument("cpus and cpu_quota say the same, wanted one of them")
            # One that is not a number fails the comparison too.
            if not 0 < self.cpus < 1 << 20:
                raise InvalidArgument(f"cpus {self.cpus!r} must be more than 0")
            period = period or PERIOD
            quota = max(1000, round(self.cpus * period))
        sets = {name: text for name, text in (("cpus", self.cpuset_cpus), ("mems", self.cpuset_mems)) if text}
        return {**_set(shares=self.cpu_shares, quota=quota, period=period), **sets}


def _set(**numbers: int | None) -> dict[str, Any]:
    return {name: number for name, number in numbers.items() if number is not None}


NO_LIMITS: Final = Resources()
