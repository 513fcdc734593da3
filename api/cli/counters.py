"""What a task uses, from its cgroup's counters of either version, and the rates between two of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from moored.kernel.ports.tasks import Metric

UNLIMITED: Final = 1 << 60
"""A limit of memory from here on is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Counters of one moment: ns of cpu; bytes of memory that cannot be dropped, its limit or 0; bytes of disks."""

    moment: int
    cpu: int = 0
    memory: int = 0
    limit: int = 0
    pids: int = 0
    read: int = 0
    written: int = 0


def use(metric: Metric) -> Use:
    """Read a metric; of a kind that is not known only the moment is."""
    name = metric.data.type_url.rpartition("/")[2]
    if name == "io.containerd.cgroups.v1.Metrics":
        return _of_v1(metric)
    if name == "io.containerd.cgroups.v2.Metrics":
        return _of_v2(metric)
    return Use(moment=metric.timestamp)


def _of_v1(metric: Metric) -> Use:
    from moored.api.cgroups.v1 import metrics_pb2

    found: Any = metrics_pb2.Metrics.FromString(metric.data.value)
    memory = found.memory
    done = {"Read": 0, "Write": 0}
    for entry in found.blkio.io_service_bytes_recursive:
        if entry.op in done:
            done[entry.op] += entry.value
    return Use(
        moment=metric.timestamp,
        cpu=found.cpu.usage.total,
        memory=max(memory.usage.usage - memory.total_inactive_file, 0),
        limit=_limit(memory.usage.limit),
        pids=found.pids.current,
        read=done["Read"],
        written=done["Write"],
    )


def _of_v2(metric: Metric) -> Use:
    from moored.api.cgroups.v2 import metrics_pb2

    found: Any = metrics_pb2.Metrics.FromString(metric.data.value)
    return Use(
        moment=metric.timestamp,
        cpu=found.cpu.usage_usec * 1000,
        memory=max(found.memory.usage - found.memory.inactive_file, 0),
        limit=_limit(found.memory.usage_limit),
        pids=found.pids.current,
        read=sum(entry.rbytes for entry in found.io.usage),
        written=sum(entry.wbytes for entry in found.io.usage),
    )


def _limit(value: int) -> int:
    return value if 0 < value < UNLIMITED else 0


def percent(before: Use | None, now: Use) -> float:
    """Processors in use between two moments, 100 for one; 0 where there is only one moment."""
    if before is None or now.moment <= before.moment:
        return 0.0
    return max(now.cpu - before.cpu, 0) / (now.moment - before.moment) * 100
