"""What the controllers of cgroup v1 count for a container, as `io.containerd.cgroups.v1.Metrics`.

A controller that the container has no cgroup in, and a file that the kernel does not have, leave their fields out.
Source: contracts/io.containerd.cgroups.v1.tsv.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from moored.plugins.runtime.shim.cgroups import huge_pages, read_number, read_table, read_text
from moored.plugins.runtime.shim.metricsproto import message, number, numbers, packed, table, text

NAME: Final = "io.containerd.cgroups.v1.Metrics"

_MEMORY: Final = (
    *("cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback", "pgpgin", "pgpgout", "pgfault", "pgmajfault"),
    *("inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable"),
    *("hierarchical_memory_limit", "hierarchical_memsw_limit"),
    *("total_cache", "total_rss", "total_rss_huge", "total_mapped_file", "total_dirty", "total_writeback"),
    *("total_pgpgin", "total_pgpgout", "total_pgfault", "total_pgmajfault"),
    *("total_inactive_anon", "total_active_anon", "total_inactive_file", "total_active_file", "total_unevictable"),
)
"""Names in memory.stat, of the fields from 1 on."""
_COUNTERS: Final = ((33, "memory"), (34, "memory.memsw"), (35, "memory.kmem"), (36, "memory.kmem.tcp"))
_COUNTER: Final = ("limit_in_bytes", "usage_in_bytes", "max_usage_in_bytes", "failcnt")
_OOM_CONTROL: Final = ("oom_kill_disable", "under_oom", "oom_kill")
_THROTTLING: Final = ("nr_periods", "nr_throttled", "throttled_time")
_SCHEDULER: Final = (
    (1, "io_service_bytes_recursive"),
    (2, "io_serviced_recursive"),
    (3, "io_queued_recursive"),
    (4, "io_service_time_recursive"),
    (5, "io_wait_time_recursive"),
    (6, "io_merged_recursive"),
    (7, "time_recursive"),
    (8, "sectors_recursive"),
)
"""What the CFQ scheduler of older kernels counts."""
_THROTTLE: Final = ((1, "throttle.io_service_bytes"), (2, "throttle.io_serviced"))
_MAX32: Final = (1 << 32) - 1
_SECOND: Final = 1_000_000_000


def metrics(folders: Mapping[str, str]) -> bytes:
    """Read everything; `folders` has the cgroup's folder for each controller."""
    parts = (
        (1, _huge_pages, "hugetlb"),
        (2, _pids, "pids"),
        (4, _memory, "memory"),
        (5, _block_io, "blkio"),
        (6, _rdma, "rdma"),
        (9, _oom_control, "memory"),
    )
    out = [message(3, _cpu(folders))]
    for field, read, controller in parts:
        if controller in folders:
            found = read(folders[controller])
            out += [message(field, one) for one in ([found] if isinstance(found, bytes) else found or ())]
    return b"".join(out)


def _cpu(folders: Mapping[str, str]) -> bytes:
    usage = _cpu_usage(folders["cpuacct"]) if "cpuacct" in folders else b""
    throttling = read_table(f"{folders['cpu']}/cpu.stat") if "cpu" in folders else None
    return message(1, usage) + message(2, table(_THROTTLING, throttling or {}))


def _cpu_usage(folder: str) -> bytes:
    ticks = read_table(f"{folder}/cpuacct.stat") or {}
    total = read_number(f"{folder}/cpuacct.usage")
    each = (read_text(f"{folder}/cpuacct.usage_percpu") or "").split()
    tick = os.sysconf("SC_CLK_TCK")
    kernel, user = (ticks.get(name, 0) * _SECOND // tick for name in ("system", "user"))
    return numbers((total, kernel, user)) + packed(4, map(int, each))


def _pids(folder: str) -> bytes | None:
    current = read_number(f"{folder}/pids.current")
    return None if current is None else numbers((current, read_number(f"{folder}/pids.max")))


def _memory(folder: str) -> bytes | None:
    found = read_table(f"{folder}/memory.stat")
    if found is None:
        return None
    counters = (message(field, _counter(f"{folder}/{prefix}")) for field, prefix in _COUNTERS)
    return table(_MEMORY, found) + b"".join(counters)


def _counter(prefix: str) -> bytes:
    return numbers(read_number(f"{prefix}.{name}") for name in _COUNTER)


def _oom_control(folder: str) -> bytes | None:
    found = read_table(f"{folder}/memory.oom_control")
    return None if found is None else table(_OOM_CONTROL, found)


def _huge_pages(folder: str) -> list[bytes]:
    found: list[bytes] = []
    for size in huge_pages():
        names = ("usage_in_bytes", "max_usage_in_bytes", "failcnt")
        values = [read_number(f"{folder}/hugetlb.{size}.{name}") for name in names]
        if values[0] is not None:
            found.append(numbers(values) + text(4, size))
    return found


def _block_io(folder: str) -> bytes:
    devices = _devices()
    scheduler = b"".join(_entries(f"{folder}/blkio.{name}", field, devices) for field, name in _SCHEDULER)
    return scheduler or b"".join(_entries(f"{folder}/blkio.{name}", field, devices) for field, name in _THROTTLE)


def _entries(path: str, field: int, devices: Mapping[str, str]) -> bytes:
    """Read lines of `8:0 Read 4096` or `8:0 4096`; the totals at the end are left out."""
    out: list[bytes] = []
    for line in (read_text(path) or "").splitlines():
        device, *operation, value = line.split()
        major, colon, minor = device.partition(":")
        if colon and value.isdigit():
            name = text(1, operation[0]) if operation else b""
            numbered = number(3, int(major)) + number(4, int(minor)) + number(5, int(value))
            out.append(message(field, name + text(2, devices.get(device, "")) + numbered))
    return b"".join(out)


def _devices() -> dict[str, str]:
    """Give the paths of the block devices by `major:minor`."""
    found: dict[str, str] = {}
    for line in (read_text("/proc/partitions") or "").splitlines()[2:]:
        major, minor, _, name = line.split()
        found.setdefault(f"{major}:{minor}", f"/dev/{name}")
    return found


def _rdma(folder: str) -> bytes | None:
    current, limit = rdma_entries(f"{folder}/rdma.current"), rdma_entries(f"{folder}/rdma.max")
    if current is None or limit is None:
        return None
    return b"".join(message(1, one) for one in current) + b"".join(message(2, one) for one in limit)


def rdma_entries(path: str) -> list[bytes] | None:
    """Read lines of `mlx4_0 hca_handle=2 hca_object=max` as RdmaEntry, the same in v1 and v2; None without the file."""
    found = read_text(path)
    if found is None:
        return None
    out: list[bytes] = []
    for line in found.splitlines():
        device, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        handles, objects = (_limited(values.get(name, "0")) for name in ("hca_handle", "hca_object"))
        out.append(text(1, device) + number(2, handles) + number(3, objects))
    return out


def _limited(value: str) -> int:
    return _MAX32 if value == "max" else int(value) if value.isdigit() else 0
