"""What cgroup v2 counts for a container, as `io.containerd.cgroups.v2.Metrics`.

Files that a controller or the kernel does not have leave their fields out. Source:
contracts/io.containerd.cgroups.v2.tsv.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from moored.plugins.runtime.shim.cgroups import huge_pages, read_number, read_table, read_text
from moored.plugins.runtime.shim.metricsproto import double, message, number, numbers, optional, table, text
from moored.plugins.runtime.shim.stats_v1 import rdma_entries

NAME: Final = "io.containerd.cgroups.v2.Metrics"

_MEMORY: Final = (
    *("anon", "file", "kernel_stack", "slab", "sock", "shmem", "file_mapped", "file_dirty", "file_writeback"),
    *("anon_thp", "inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable"),
    *("slab_reclaimable", "slab_unreclaimable", "pgfault", "pgmajfault"),
    *("workingset_refault", "workingset_activate", "workingset_nodereclaim"),
    *("pgrefill", "pgscan", "pgsteal", "pgactivate", "pgdeactivate", "pglazyfree", "pglazyfreed"),
    *("thp_fault_alloc", "thp_collapse_alloc"),
)
"""Names in memory.stat, of the fields from 1 on."""
_MEMORY_FILES: Final = (
    (32, "memory.current"),
    (33, "memory.max"),
    (34, "memory.swap.current"),
    (35, "memory.swap.max"),
    (36, "memory.peak"),
    (37, "memory.swap.peak"),
)
_CPU: Final = ("usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec")
_CPU_BURSTS: Final = ((8, "nr_bursts"), (9, "burst_usec"))
_EVENTS: Final = ("low", "high", "max", "oom", "oom_kill", "oom_group_kill")
_IO: Final = ((3, "rbytes"), (4, "wbytes"), (5, "rios"), (6, "wios"))
_NO_LIMIT: Final = (1 << 64) - 1


def metrics(folder: str) -> bytes:
    """Read everything in the cgroup's folder."""
    events = read_table(f"{folder}/memory.events")
    return b"".join(
        (
            message(1, _pids(folder)),
            message(2, _cpu(folder)),
            message(4, _memory(folder)),
            message(5, _rdma(folder)),
            message(6, _io(folder)),
            *(message(7, _huge_page(folder, size)) for size in huge_pages()),
            optional(8, table(_EVENTS, events) if events else None),
        )
    )


def _value(path: str) -> int | None:
    return read_number(path, _NO_LIMIT)


def _pids(folder: str) -> bytes:
    return numbers((_value(f"{folder}/pids.current"), _value(f"{folder}/pids.max")))


def _cpu(folder: str) -> bytes:
    found = read_table(f"{folder}/cpu.stat")
    if found is None:
        return b""
    bursts = b"".join(number(field, found.get(name)) for field, name in _CPU_BURSTS)
    return table(_CPU, found) + optional(7, _pressure(f"{folder}/cpu.pressure")) + bursts


def _memory(folder: str) -> bytes:
    found = read_table(f"{folder}/memory.stat")
    if found is None:
        return b""
    files = b"".join(number(field, _value(f"{folder}/{name}")) for field, name in _MEMORY_FILES)
    return table(_MEMORY, found) + files + optional(38, _pressure(f"{folder}/memory.pressure"))


def _rdma(folder: str) -> bytes:
    names = ((1, "rdma.current"), (2, "rdma.max"))
    return b"".join(message(field, one) for field, name in names for one in rdma_entries(f"{folder}/{name}") or ())


def _io(folder: str) -> bytes:
    lines = (read_text(f"{folder}/io.stat") or "").splitlines()
    entries = b"".join(message(1, entry) for line in lines if (entry := _io_entry(line)) is not None)
    return entries + optional(2, _pressure(f"{folder}/io.pressure"))


def _io_entry(line: str) -> bytes | None:
    """Read `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`."""
    device, *pairs = line.split() or [""]
    major, _, minor = device.partition(":")
    if not (major.isdigit() and minor.isdigit() and pairs):
        return None
    found = {name: int(value) for name, _, value in (pair.partition("=") for pair in pairs) if value.isdigit()}
    return number(1, int(major)) + number(2, int(minor)) + b"".join(number(field, found.get(key)) for field, key in _IO)


def _huge_page(folder: str, size: str) -> bytes:
    failures = (read_table(f"{folder}/hugetlb.{size}.events") or {}).get("max")
    sizes = (_value(f"{folder}/hugetlb.{size}.current"), _value(f"{folder}/hugetlb.{size}.max"))
    return numbers(sizes) + text(3, size) + number(4, failures)


def _pressure(path: str) -> bytes | None:
    """Read lines of `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`; None where the kernel does not measure."""
    found = read_text(path)
    if not found:
        return None
    fields = {"some": 1, "full": 2}
    lines = [line.split() for line in found.splitlines()]
    return b"".join(message(fields[words[0]], _stall(words[1:])) for words in lines if words and words[0] in fields)


def _stall(pairs: list[str]) -> bytes:
    out: list[bytes] = []
    for pair in pairs:
        name, _, value = pair.partition("=")
        with suppress(ValueError):
            if name == "total":
                out.append(number(4, int(value)))
            elif name in {"avg10", "avg60", "avg300"}:
                out.append(double(("avg10", "avg60", "avg300").index(name) + 1, float(value)))
    return b"".join(out)
