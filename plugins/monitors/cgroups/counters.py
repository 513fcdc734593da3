"""Which metric shows which field of a shim's counters, for cgroup v1 and v2.

Names are containerd's, their endings too: what counts pages or faults ends in `_bytes` all the same.
Source: metrics-cgroup-v1.tsv, metrics-cgroup-v2.tsv, io.containerd.cgroups.v1.tsv, io.containerd.cgroups.v2.tsv.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from moored.plugins.monitors.cgroups.message import Fields, messages_at, number_of, numbers_of, text_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """One metric.

    name     with its unit, without `container_`
    at       field numbers that lead to the messages that hold the value
    value    the value's field number in these
    labels   further labels, with field numbers in the same messages: numbers above, texts below
    texts    those of the labels that are texts
    each     label for the index, where the value is a list
    """

    name: str
    help: str
    at: tuple[int, ...]
    value: int
    labels: Mapping[str, int] = field(default_factory=dict)
    texts: frozenset[str] = frozenset()
    each: str = ""

    def read(self, root: Fields) -> Iterator[tuple[dict[str, str], int]]:
        """Give labels and value of each; none where the kernel has no such counter. Raises ValueError."""
        for message in messages_at(root, self.at):
            if self.each:
                for index, number in enumerate(numbers_of(message, self.value)):
                    yield {self.each: str(index)}, number
            else:
                yield {name: self._label(message, name) for name in self.labels}, number_of(message, self.value)

    def _label(self, message: Fields, name: str) -> str:
        read = text_of if name in self.texts else number_of
        return str(read(message, self.labels[name]))


def _plain(at: tuple[int, ...], rows: Iterable[tuple[str, int, str]]) -> list[Counter]:
    return [Counter(name=name, help=help_, at=at, value=value) for name, value, help_ in rows]


# --- v1 ---------------------------------------------------------------------------------------------------------------

_BLKIO: Final = (
    ("blkio_io_merged_recursive_total", 6, "requests that were merged into others"),
    ("blkio_io_queued_recursive_total", 3, "requests that wait"),
    ("blkio_io_service_bytes_recursive_bytes", 1, "bytes moved from or to a device"),
    ("blkio_io_service_time_recursive_total", 4, "nanoseconds from the start to the end of requests"),
    ("blkio_io_serviced_recursive_total", 2, "requests made to a device"),
    ("blkio_io_time_recursive_total", 7, "time that a device was given to the cgroup"),
    ("blkio_sectors_recursive_total", 8, "sectors moved from or to a device"),
)
_MEMORY: Final = (
    ("cache", "page cache"),
    ("rss", "anonymous memory"),
    ("rss_huge", "anonymous memory in huge pages"),
    ("mapped_file", "mapped files"),
    ("dirty", "memory that waits to be written back"),
    ("writeback", "memory that is being written back"),
    ("pgpgin", "charges to the cgroup"),
    ("pgpgout", "charges taken back"),
    ("pgfault", "page faults"),
    ("pgmajfault", "page faults that needed a read"),
    ("inactive_anon", "anonymous memory on the inactive list"),
    ("active_anon", "anonymous memory on the active list"),
    ("inactive_file", "files on the inactive list"),
    ("active_file", "files on the active list"),
    ("unevictable", "memory that cannot be reclaimed"),
)
_LIMITED: Final = (("usage", 33, "memory"), ("swap", 34, "memory and swap"), ("kernel", 35, "memory of the kernel"))
_LIMITS: Final = (
    ("failcnt_total", 4, "times that the limit was hit"),
    ("limit_bytes", 1, "the limit"),
    ("max_bytes", 3, "the most that was used"),
    ("usage_bytes", 2, "what is used"),
)


def _v1_memory() -> Iterator[Counter]:
    for number, (name, help_) in enumerate(_MEMORY, start=1):
        yield Counter(name=f"memory_{name}_bytes", help=help_, at=(4,), value=number)
    yield Counter(name="memory_hierarchical_memory_limit_bytes", help="lowest memory limit above", at=(4,), value=16)
    text = "lowest limit of memory and swap above"
    yield Counter(name="memory_hierarchical_memsw_limit_bytes", help=text, at=(4,), value=17)
    for number, (name, help_) in enumerate(_MEMORY, start=18):
        text = f"{help_}, with those of cgroups below"
        yield Counter(name=f"memory_total_{name}_bytes", help=text, at=(4,), value=number)
    for kind, number, what in (*_LIMITED, ("kerneltcp", 36, "memory of TCP buffers")):
        for name, value, help_ in _LIMITS:
            yield Counter(name=f"memory_{kind}_{name}", help=f"{what}: {help_}", at=(4, number), value=value)


V1: Final[tuple[Counter, ...]] = (
    *(
        Counter(
            name=name,
            help=help_,
            at=(5, number),
            value=5,
            labels={"op": 1, "device": 2, "major": 3, "minor": 4},
            texts=frozenset({"op", "device"}),
        )
        for name, number, help_ in _BLKIO
    ),
    *_plain(
        (3, 1),
        (
            ("cpu_total_nanoseconds", 1, "CPU time"),
            ("cpu_kernel_nanoseconds", 2, "CPU time in the kernel"),
            ("cpu_user_nanoseconds", 3, "CPU time outside of the kernel"),
        ),
    ),
    Counter(name="per_cpu_nanoseconds", help="CPU time on one CPU", at=(3, 1), value=4, each="cpu"),
    *_plain(
        (3, 2),
        (
            ("cpu_throttle_periods_total", 1, "periods of bandwidth control"),
            ("cpu_throttled_periods_total", 2, "periods in which the cgroup had to wait"),
            ("cpu_throttled_time_nanoseconds", 3, "time that the cgroup had to wait"),
        ),
    ),
    *(
        Counter(name=name, help=help_, at=(1,), value=value, labels={"page": 4}, texts=frozenset({"page"}))
        for name, value, help_ in (
            ("hugetlb_usage_bytes", 1, "huge pages in use"),
            ("hugetlb_failcnt_total", 3, "times that the limit of huge pages was hit"),
            ("hugetlb_max_bytes", 2, "most huge pages that were in use"),
        )
    ),
    *_v1_memory(),
    *_plain(
        (2,), (("pids_limit", 2, "limit of processes and threads, 0 for none"), ("pids_current", 1, "their number"))
    ),
)
"""Of `io.containerd.cgroups.v1.Metrics`."""

# --- v2 ---------------------------------------------------------------------------------------------------------------

V2: Final[tuple[Counter, ...]] = (
    *_plain(
        (2,),
        (
            ("cpu_usage_usec_microseconds", 1, "CPU time"),
            ("cpu_user_usec_microseconds", 2, "CPU time outside of the kernel"),
            ("cpu_system_usec_microseconds", 3, "CPU time in the kernel"),
            ("cpu_nr_periods_total", 4, "periods of bandwidth control"),
            ("cpu_nr_throttled_total", 5, "periods in which the cgroup had to wait"),
            ("cpu_throttled_usec_microseconds", 6, "time that the cgroup had to wait"),
        ),
    ),
    *(
        Counter(name=name, help=help_, at=(6, 1), value=value, labels={"major": 1, "minor": 2})
        for name, value, help_ in (
            ("io_rbytes_bytes", 3, "bytes read"),
            ("io_wbytes_bytes", 4, "bytes written"),
            ("io_rios_total", 5, "reads"),
            ("io_wios_total", 6, "writes"),
        )
    ),
    *_plain(
        (4,),
        (
            ("memory_usage_bytes", 32, "memory in use"),
            ("memory_usage_limit_bytes", 33, "limit of memory"),
            ("memory_swap_usage_bytes", 34, "swap in use"),
            ("memory_swap_limit_bytes", 35, "limit of swap"),
            ("memory_file_mapped_bytes", 7, "mapped files"),
            ("memory_file_dirty_bytes", 8, "file pages that wait to be written back"),
            ("memory_file_writeback_bytes", 9, "file pages that are being written back"),
            ("memory_pgactivate_bytes", 26, "pages moved to the active list"),
            ("memory_pgdeactivate_bytes", 27, "pages moved to the inactive list"),
            ("memory_pgfault_bytes", 18, "page faults"),
            ("memory_pgmajfault_bytes", 19, "page faults that needed a read"),
            ("memory_pglazyfree_bytes", 28, "pages put off to be freed"),
            ("memory_pgrefill_bytes", 23, "pages scanned on the active list"),
            ("memory_pglazyfreed_bytes", 29, "pages freed that were put off"),
            ("memory_pgscan_bytes", 24, "pages scanned on the inactive list"),
            ("memory_pgsteal_bytes", 25, "pages reclaimed"),
            ("memory_inactive_anon_bytes", 11, "anonymous memory on the inactive list"),
            ("memory_active_anon_bytes", 12, "anonymous memory on the active list"),
            ("memory_inactive_file_bytes", 13, "files on the inactive list"),
            ("memory_active_file_bytes", 14, "files on the active list"),
            ("memory_unevictable_bytes", 15, "memory that cannot be reclaimed"),
            ("memory_anon_bytes", 1, "anonymous memory"),
            ("memory_file_bytes", 2, "page cache"),
            ("memory_kernel_stack_bytes", 3, "stacks of the kernel"),
            ("memory_slab_bytes", 4, "data structures of the kernel"),
            ("memory_sock_bytes", 5, "buffers of sockets"),
            ("memory_shmem_bytes", 6, "shared memory and tmpfs"),
            ("memory_anon_thp_bytes", 10, "anonymous memory in huge pages"),
            ("memory_slab_reclaimable_bytes", 16, "data structures of the kernel that can be reclaimed"),
            ("memory_slab_unreclaimable_bytes", 17, "data structures of the kernel that cannot be reclaimed"),
            ("memory_workingset_refault_bytes", 20, "page faults of pages that had been reclaimed"),
            ("memory_workingset_activate_bytes", 21, "such pages that became active at once"),
            ("memory_workingset_nodereclaim_bytes", 22, "times that the memory of such marks was reclaimed"),
            ("memory_thp_fault_alloc_bytes", 30, "huge pages given on a page fault"),
            ("memory_thp_collapse_alloc_bytes", 31, "huge pages made of small ones"),
        ),
    ),
    *_plain((8,), (("memory_oom_total", 4, "times that memory ran out"),)),
    *_plain(
        (1,), (("pids_limit", 2, "limit of processes and threads, 0 for none"), ("pids_current", 1, "their number"))
    ),
)
"""Of `io.containerd.cgroups.v2.Metrics`."""

BY_TYPE: Final[Mapping[str, tuple[Counter, ...]]] = {
    "io.containerd.cgroups.v1.Metrics": V1,
    "io.containerd.cgroups.v2.Metrics": V2,
}
OOM_V1: Final = ("container_memory_oom", "times that the kernel killed for want of memory")
"""Name without `_total`, and help, of the one that v1 does not count itself: it is made of events."""
