"""Metrics have every field of the contract, with the controllers' own numbers."""

import itertools
import os
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from moored.api.cgroups.v1 import metrics_pb2 as v1
from moored.api.cgroups.v2 import metrics_pb2 as v2
from moored.kernel.errors import NotFound
from moored.plugins.runtime.shim import cgroups, metricsproto
from moored.plugins.runtime.shim.cgroups import Cgroups, cgroups_of, huge_pages
from moored.plugins.runtime.shim.stats import stats_of

ROOT = Path("/sys/fs/cgroup")
V1_CONTROLLERS = ("memory", "cpu", "cpuacct", "pids", "blkio")
TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
NO_LIMIT = (1 << 64) - 1

on_cgroup_v1 = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes cgroups"),
    pytest.mark.skipif(not (ROOT / "memory/cgroup.procs").exists(), reason="there is no cgroup v1"),
]


def write_files(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def leaves(message: Message, prefix: str = "") -> Generator[str]:
    """Name all fields that can have a value of their own."""
    for field in message.DESCRIPTOR.fields:
        path = f"{prefix}{field.name}"
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            yield path
            continue
        yield from leaves(field.message_type._concrete_class(), f"{path}.")


def values(message: Any, path: str) -> list[Any]:
    """Give all values of a field, of repeated messages each one's."""
    name, _, rest = path.partition(".")
    value = getattr(message, name)
    if isinstance(value, Message):
        return values(value, rest) if rest else [value]
    if rest:
        return [found for one in value for found in values(one, rest)]
    return list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else [value]


def numbered(names: list[str], first: int) -> str:
    return "".join(f"{name} {number}\n" for number, name in enumerate(names, first))


V1_MEMORY = [
    *("cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback", "pgpgin", "pgpgout", "pgfault", "pgmajfault"),
    *("inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable"),
    *("hierarchical_memory_limit", "hierarchical_memsw_limit"),
]
V1_TOTALS = [f"total_{name}" for name in V1_MEMORY[:15]]
RENAMED = {"pgpgin": "pg_pg_in", "pgpgout": "pg_pg_out", "pgfault": "pg_fault", "pgmajfault": "pg_maj_fault"}
RENAMED["hierarchical_memsw_limit"] = "hierarchical_swap_limit"
COUNTERS = {"": "usage", "memsw.": "swap", "kmem.": "kernel", "kmem.tcp.": "kernel_tcp"}
COUNTER_FILES = {
    "limit": "limit_in_bytes",
    "usage": "usage_in_bytes",
    "max": "max_usage_in_bytes",
    "failcnt": "failcnt",
}
BLOCK_IO = [
    "io_service_bytes",
    "io_serviced",
    "io_queued",
    "io_service_time",
    "io_wait_time",
    "io_merged",
    "time",
    "sectors",
]


@pytest.fixture
def v1_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cgroups:
    """A host on which every file of cgroup v1 says something else."""
    monkeypatch.setattr("moored.plugins.runtime.shim.stats_v1.huge_pages", lambda: ["2MB"])
    controllers = (*V1_CONTROLLERS, "hugetlb", "rdma")
    folders = {name: str(tmp_path / name) for name in controllers}
    numbers = itertools.count(5000)
    write_files(tmp_path / "pids", {"pids.current": "11\n", "pids.max": "12\n"})
    write_files(tmp_path / "cpu", {"cpu.stat": "nr_periods 21\nnr_throttled 22\nthrottled_time 23\nnr_bursts 24\n"})
    usage = {"cpuacct.usage": "31\n", "cpuacct.stat": "user 32\nsystem 33\n", "cpuacct.usage_percpu": "34 0 36 \n"}
    write_files(tmp_path / "cpuacct", usage)
    memory = {f"memory.{prefix}{name}": f"{next(numbers)}\n" for prefix in COUNTERS for name in COUNTER_FILES.values()}
    memory["memory.stat"] = numbered(V1_MEMORY, 1001) + "swap 77\n" + numbered(V1_TOTALS, 2001)
    memory["memory.oom_control"] = "oom_kill_disable 1\nunder_oom 1\noom_kill 41\n"
    write_files(tmp_path / "memory", memory)
    block = {
        f"blkio.{name}_recursive": f"7:3 Read {number}\n7:3 Async 0\n9:9 {number}\nTotal 1\n"
        for number, name in enumerate(BLOCK_IO, 51)
    }
    write_files(tmp_path / "blkio", block)
    huge = {"hugetlb.2MB.usage_in_bytes": "61", "hugetlb.2MB.max_usage_in_bytes": "62", "hugetlb.2MB.failcnt": "63"}
    write_files(tmp_path / "hugetlb", huge)
    rdma = {"rdma.current": "mlx4_0 hca_handle=2 hca_object=2000\n", "rdma.max": "mlx4_0 hca_handle=max hca_object=9\n"}
    write_files(tmp_path / "rdma", rdma)
    return Cgroups(controllers=folders)


def v1_metrics(found: Cgroups) -> v1.Metrics:
    name, data = stats_of(found)
    assert name == v1.Metrics.DESCRIPTOR.full_name
    return v1.Metrics.FromString(data)


def v2_metrics(folder: Path) -> v2.Metrics:
    name, data = stats_of(Cgroups(unified=str(folder)))
    assert name == v2.Metrics.DESCRIPTOR.full_name
    return v2.Metrics.FromString(data)


def test_v1_fills_every_field_that_controllers_count(v1_host: Cgroups) -> None:
    message = v1_metrics(v1_host)
    empty = {path for path in leaves(message) if not any(values(message, path))}
    # Networks and counts of tasks by state come from elsewhere, in containerd too; no block device is 7:3 here.
    others = {path for path in empty if path.startswith(("network.", "cgroup_stats."))}
    assert empty - others <= {f"blkio.{field.name}.device" for field in v1.BlkIOStat.DESCRIPTOR.fields}


def test_v1_puts_every_number_where_it_belongs(v1_host: Cgroups) -> None:
    message = v1_metrics(v1_host)
    memory = message.memory
    assert [getattr(memory, _renamed(name)) for name in V1_MEMORY] == list(range(1001, 1018))
    assert [getattr(memory, _renamed(name)) for name in V1_TOTALS] == list(range(2001, 2016))
    counters = [getattr(getattr(memory, entry), name) for entry in COUNTERS.values() for name in COUNTER_FILES]
    assert counters == list(range(5000, 5016))
    assert (message.pids.current, message.pids.limit) == (11, 12)
    assert message.cpu.throttling == v1.Throttle(periods=21, throttled_periods=22, throttled_time=23)
    assert message.cpu.usage == v1.CPUUsage(total=31, user=32 * TICK, kernel=33 * TICK, per_cpu=[34, 0, 36])
    assert message.memory_oom_control == v1.MemoryOomControl(oom_kill_disable=1, under_oom=1, oom_kill=41)
    assert list(message.hugetlb) == [v1.HugetlbStat(usage=61, max=62, failcnt=63, pagesize="2MB")]
    assert list(message.rdma.current) == [v1.RdmaEntry(device="mlx4_0", hca_handles=2, hca_objects=2000)]
    assert list(message.rdma.limit) == [v1.RdmaEntry(device="mlx4_0", hca_handles=(1 << 32) - 1, hca_objects=9)]


def test_v1_block_devices_are_named(v1_host: Cgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moored.plugins.runtime.shim.stats_v1._devices", lambda: {"7:3": "/dev/loop3"})
    found = v1_metrics(v1_host).blkio
    for field, number in zip(v1.BlkIOStat.DESCRIPTOR.fields, range(51, 59), strict=True):
        assert list(getattr(found, field.name)) == [
            v1.BlkIOEntry(op="Read", device="/dev/loop3", major=7, minor=3, value=number),
            v1.BlkIOEntry(op="Async", device="/dev/loop3", major=7, minor=3),
            v1.BlkIOEntry(major=9, minor=9, value=number),
        ]


def _renamed(name: str) -> str:
    plain = name.removeprefix("total_")
    plain = RENAMED.get(plain, plain)
    return f"total_{plain}" if name.startswith("total_") else plain


def test_v1_falls_back_to_throttling_counts_without_a_counting_scheduler(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {"blkio.throttle.io_serviced": "8:0 Read 3\nTotal 3\n", "blkio.throttle.io_service_bytes": "8:0 Write 4096\n"},
    )
    found = v1_metrics(Cgroups(controllers={"blkio": str(tmp_path)})).blkio
    assert [(one.op, one.value) for one in found.io_serviced_recursive] == [("Read", 3)]
    assert [(one.op, one.value) for one in found.io_service_bytes_recursive] == [("Write", 4096)]


def test_v1_without_limits_and_without_files(tmp_path: Path) -> None:
    write_files(tmp_path / "pids", {"pids.current": "1\n", "pids.max": "max\n"})
    write_files(tmp_path / "memory", {"memory.stat": "cache 1\n"})
    found = v1_metrics(Cgroups(controllers={name: str(tmp_path / name) for name in ("pids", "memory")}))
    assert (found.pids.current, found.pids.limit) == (1, 0)
    assert found.HasField("cpu")
    assert found.memory.HasField("swap")
    assert not found.HasField("memory_oom_control")
    assert not found.HasField("blkio")


V2_MEMORY = [field.name for field in v2.MemoryStat.DESCRIPTOR.fields if field.number <= 31]
V2_FILES = {
    "memory.current": ("usage", 301),
    "memory.max": ("usage_limit", 302),
    "memory.swap.current": ("swap_usage", 303),
    "memory.swap.max": ("swap_limit", 304),
    "memory.peak": ("max_usage", 305),
    "memory.swap.peak": ("swap_max_usage", 306),
}
V2_CPU = [
    "usage_usec",
    "user_usec",
    "system_usec",
    "nr_periods",
    "nr_throttled",
    "throttled_usec",
    "nr_bursts",
    "burst_usec",
]
V2_EVENTS = ["low", "high", "max", "oom", "oom_kill", "oom_group_kill"]
PRESSURE = "some avg10=1.50 avg60=2.25 avg300=3.00 total=9\nfull avg10=0.50 avg60=0.25 avg300=0.75 total=4\n"
STALLS = v2.PSIStats(
    some=v2.PSIData(avg10=1.5, avg60=2.25, avg300=3, total=9),
    full=v2.PSIData(avg10=0.5, avg60=0.25, avg300=0.75, total=4),
)


@pytest.fixture
def v2_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup of v2 in which every file says something else."""
    monkeypatch.setattr("moored.plugins.runtime.shim.stats_v2.huge_pages", lambda: ["2MB", "1GB"])
    files = {name: f"{number}\n" for name, (_, number) in V2_FILES.items()}
    files |= {f"{name}.pressure": PRESSURE for name in ("cpu", "memory", "io")}
    files |= {
        "pids.current": "11\n",
        "pids.max": "12\n",
        "cpu.stat": numbered(V2_CPU, 21),
        "memory.stat": numbered(V2_MEMORY, 101) + "zswap 9\n",
        "memory.events": numbered(V2_EVENTS, 41),
        "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n7:0 \n253:2 rbytes=7\n",
        "rdma.current": "mlx4_0 hca_handle=2 hca_object=3\n",
        "rdma.max": "mlx4_0 hca_handle=max hca_object=4\n",
        "hugetlb.2MB.current": "61\n",
        "hugetlb.2MB.max": "max\n",
        "hugetlb.2MB.events": "max 63\n",
    }
    write_files(tmp_path, files)
    return tmp_path


def test_v2_fills_every_field_that_controllers_count(v2_folder: Path) -> None:
    message = v2_metrics(v2_folder)
    empty = {path for path in leaves(message) if not any(values(message, path))}
    assert {path.split(".")[0] for path in empty} == {"network"}


def test_v2_puts_every_number_where_it_belongs(v2_folder: Path) -> None:
    message = v2_metrics(v2_folder)
    assert [getattr(message.cpu, name) for name in V2_CPU] == list(range(21, 29))
    assert [getattr(message.memory, name) for name in V2_MEMORY] == list(range(101, 132))
    assert {name: getattr(message.memory, name) for name, _ in V2_FILES.values()} == dict(V2_FILES.values())
    assert [getattr(message.memory_events, name) for name in V2_EVENTS] == list(range(41, 47))
    assert [message.cpu.psi, message.memory.psi, message.io.psi] == [STALLS] * 3
    assert list(message.io.usage) == [
        v2.IOEntry(major=8, rbytes=1, wbytes=2, rios=3, wios=4),
        v2.IOEntry(major=253, minor=2, rbytes=7),
    ]
    assert (message.pids.current, message.pids.limit) == (11, 12)
    assert list(message.rdma.limit) == [v2.RdmaEntry(device="mlx4_0", hca_handles=(1 << 32) - 1, hca_objects=4)]
    assert list(message.hugetlb) == [
        v2.HugeTlbStat(current=61, max=NO_LIMIT, pagesize="2MB", failcnt=63),
        v2.HugeTlbStat(pagesize="1GB"),
    ]


def test_v2_no_limit_is_the_largest_number(v2_folder: Path) -> None:
    for name in ("pids.max", "memory.max", "memory.swap.max"):
        (v2_folder / name).write_text("max\n")
    message = v2_metrics(v2_folder)
    limits = (message.pids.limit, message.memory.usage_limit, message.memory.swap_limit)
    assert limits == (NO_LIMIT,) * 3


def test_v2_without_controllers_has_messages_without_numbers(tmp_path: Path) -> None:
    message = v2_metrics(tmp_path)
    present = {field.name for field, _ in message.ListFields()} - {"hugetlb"}
    assert present == {"pids", "cpu", "memory", "rdma", "io"}
    assert not message.io.HasField("psi")


def test_cgroup_that_is_gone_is_not_found(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    for found in (None, Cgroups(), Cgroups(unified=gone), Cgroups(controllers={"memory": gone})):
        with pytest.raises(NotFound, match=r"^cgroup does not exist$"):
            stats_of(found)


def test_cgroups_of_a_process_that_is_gone_are_not_found() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    with pytest.raises(NotFound, match=r"^cgroup does not exist$"):
        cgroups_of(pid)


def test_paths_are_seen_through_mounts_of_a_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("mem/c1", "both"):
        (tmp_path / name).mkdir(parents=True)
    texts = {
        "/proc/7/cgroup": "4:memory:/docker/abc/c1\n3:cpu,cpuacct:/\n1:name=systemd:/elsewhere\n0::/x\n",
        "/proc/self/mountinfo": f"31 23 0:28 / / rw - tmpfs tmpfs rw\n"
        f"35 31 0:32 /docker/abc {tmp_path}/mem rw,relatime - cgroup cgroup rw,memory\n"
        f"36 31 0:33 / {tmp_path}/both rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
        f"37 31 0:34 / {tmp_path}/named rw - cgroup cgroup rw,name=systemd\n",
    }
    monkeypatch.setattr(cgroups, "read_text", texts.get)
    monkeypatch.setattr(cgroups, "ROOT", str(tmp_path))
    both = f"{tmp_path}/both"
    assert cgroups_of(7).controllers == {"memory": f"{tmp_path}/mem/c1", "cpu": both, "cpuacct": both}


def test_unified_host_has_one_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    monkeypatch.setattr(cgroups, "ROOT", str(tmp_path))
    monkeypatch.setattr(cgroups, "read_text", {"/proc/7/cgroup": "0::/system.slice/c1\n"}.get)
    assert cgroups_of(7) == Cgroups(unified=f"{tmp_path}/system.slice/c1")


def test_names_of_huge_pages_are_those_of_the_controller() -> None:
    pages = Path("/sys/kernel/mm/hugepages")
    assert len(huge_pages()) == (len(list(pages.iterdir())) if pages.exists() else 0)
    assert set(huge_pages()) <= {"64KB", "1MB", "2MB", "16MB", "32MB", "512MB", "1GB", "16GB"}


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, (1 << 63) + 5, (1 << 64) - 1])
def test_numbers_of_all_sizes_are_written(value: int) -> None:
    assert v2.PidsStat.FromString(metricsproto.numbers((value, value))) == v2.PidsStat(current=value, limit=value)


@pytest.fixture
def real_v1() -> Generator[dict[str, Path]]:
    """A cgroup of our own in real hierarchies."""
    folders = {name: ROOT / name / f"moored-test-{os.getpid()}" for name in V1_CONTROLLERS}
    for folder in folders.values():
        folder.mkdir()
    yield folders
    for folder in folders.values():
        folder.rmdir()


def run_inside(folders: list[Path], script: str, fd: int) -> int:
    """Start a script that has itself put into cgroups first, and that ends when `fd` is closed here."""
    joining = "".join(f"echo $$ > {folder}/cgroup.procs; " for folder in folders)
    actions = [(os.POSIX_SPAWN_DUP2, fd, 0), (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    return os.posix_spawn("/bin/sh", ["sh", "-c", joining + script], dict(os.environ), file_actions=actions)


@pytest.mark.parametrize("_", [pytest.param(0, marks=on_cgroup_v1)])
def test_v1_metrics_are_the_kernels(real_v1: dict[str, Path], _: int) -> None:
    read, write = os.pipe2(os.O_CLOEXEC)
    pid = run_inside(list(real_v1.values()), "head -c 3000000 /dev/zero | sort | wc; read x", read)
    try:
        while "moored-test" not in (Path(f"/proc/{pid}/cgroup").read_text().split("blkio", 1)[1].split("\n")[0]):
            os.sched_yield()
        found = cgroups_of(pid)
        (real_v1["pids"] / "pids.max").write_text("50")
    finally:
        os.close(write)
        os.waitpid(pid, 0)
        os.close(read)
    message = v1_metrics(found)  # of a cgroup whose processes have ended, so that nothing moves
    assert {name: found.controllers[name] for name in real_v1} == {name: str(path) for name, path in real_v1.items()}
    assert message.cpu.usage.total == int((real_v1["cpuacct"] / "cpuacct.usage").read_text()) > 0
    assert sum(message.cpu.usage.per_cpu) == message.cpu.usage.total
    assert (message.pids.current, message.pids.limit) == (0, 50)
    assert message.memory.usage.max == int((real_v1["memory"] / "memory.max_usage_in_bytes").read_text()) > 0
    assert message.memory.hierarchical_memory_limit == message.memory.usage.limit > 1 << 60
    assert message.memory.total_pg_fault == message.memory.pg_fault > 0


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="makes cgroups")
@pytest.mark.skipif(not Path("/sys/fs/cgroup/unified/cgroup.procs").exists(), reason="there is no cgroup v2 beside v1")
def test_v2_metrics_are_the_kernels() -> None:
    folder = ROOT / "unified" / f"moored-test-{os.getpid()}"
    folder.mkdir()
    read, write = os.pipe2(os.O_CLOEXEC)
    pid = run_inside([folder], "head -c 3000000 /dev/zero | sort | wc; read x", read)
    os.close(write)
    os.waitpid(pid, 0)
    os.close(read)
    message = v2_metrics(folder)
    used = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
    with suppress(FileNotFoundError):
        assert message.cpu.HasField("psi") == bool((folder / "cpu.pressure").read_text())
    folder.rmdir()
    assert (message.cpu.usage_usec, message.cpu.user_usec) == (int(used["usage_usec"]), int(used["user_usec"]))
    assert message.cpu.usage_usec > 0
