"""Counters of tasks as Prometheus gets them: every name, label and field of the contract, and shims that fail."""

from __future__ import annotations

import asyncio
import csv
import itertools
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from harness import on_loop, plug
from moored.api.cgroups.v1 import metrics_pb2 as v1
from moored.api.cgroups.v2 import metrics_pb2 as v2
from moored.kernel.errors import NotFound, Unavailable
from moored.kernel.namespaces import bind
from moored.kernel.payloads import TaskDelete, TaskOOM
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.metrics import METRICS_EXPORTER, MetricsExporter
from moored.kernel.ports.tasks import CreateTask
from moored.plugins.events.exchange.exchange import Bounds, LocalExchange
from moored.plugins.metrics.prometheus.exporter import PrometheusExporter
from moored.plugins.monitors.cgroups.monitor import CgroupMonitor
from unit.tasks.fake import fake_runtime
from unit.tasks.world import Opened, opened

MONITOR = "io.containerd.monitor.task.v1.cgroups"
CONTRACTS = Path(__file__).resolve().parents[4] / "shared" / "contracts"
RUNTIME = "io.containerd.runc.v2"

needs_contracts = pytest.mark.skipif(not CONTRACTS.is_dir(), reason="no ../shared/contracts beside this checkout")
NOTHING = TypedBytes("io.containerd.cgroups.v1.Metrics", b"")
Sample = tuple[str, frozenset[tuple[str, str]]]


@dataclass
class Stub:
    """A task that only answers stats."""

    stats_: TypedBytes | Exception = NOTHING
    id: str = "c1"
    namespace: str = "one"
    pid: int = 7
    silent: bool = False

    async def stats(self) -> TypedBytes:
        if self.silent:
            await asyncio.Event().wait()
        if isinstance(self.stats_, Exception):
            raise self.stats_
        return self.stats_


@asynccontextmanager
async def monitored(*tasks: Any, unified: bool = False) -> AsyncGenerator[tuple[CgroupMonitor, MetricsExporter]]:
    loop = asyncio.get_running_loop()
    monitor = CgroupMonitor(unified=unified, deadline=0.2, loop=loop, log=structlog.get_logger())
    exporter = PrometheusExporter()
    exporter.register(monitor)
    for task in tasks:
        await monitor.watch(task, {"runtime": RUNTIME})
    yield monitor, exporter


async def samples(exporter: MetricsExporter) -> dict[Sample, float]:
    """What a scrape shows of containers."""
    _, body = await asyncio.to_thread(exporter.render)
    found = {}
    for family in text_string_to_metric_families(body.decode()):
        for one in family.samples:
            if one.name.startswith("container_"):
                found[one.name, frozenset(one.labels.items())] = one.value
    return found


def labels(**more: str) -> frozenset[tuple[str, str]]:
    return frozenset({"container_id": "c1", "namespace": "one", "runtime": RUNTIME, **more}.items())


# --- against the contract ---------------------------------------------------------------------------------------------


def filled(kind: type[Any], numbers: Iterator[int]) -> Any:
    """A message with another number in every field, two of whatever is repeated."""
    message = kind()
    for one in kind.DESCRIPTOR.fields:
        if one.message_type is not None:
            inner = one.message_type._concrete_class
            if one.is_repeated:
                getattr(message, one.name).extend([filled(inner, numbers), filled(inner, numbers)])
            else:
                getattr(message, one.name).CopyFrom(filled(inner, numbers))
        elif one.type == one.TYPE_STRING:
            setattr(message, one.name, f"text{next(numbers)}")
        elif one.is_repeated:
            getattr(message, one.name).extend([next(numbers), next(numbers)])
        else:
            setattr(message, one.name, next(numbers))
    return message


def named(message: Any, name: str) -> Any:
    """A field by its name in Go."""
    (found,) = [one for one in message.DESCRIPTOR.fields if one.name.replace("_", "") == name.lower()]
    return getattr(message, found.name)


def rows(version: str) -> list[dict[str, str]]:
    with (CONTRACTS / f"metrics-cgroup-{version}.tsv").open() as table:
        return list(csv.DictReader(table, delimiter="\t"))


def wanted_samples(row: dict[str, str], stats: Any) -> Iterator[tuple[Sample, float]]:
    """What the row of the contract makes of a message."""
    name, extra = row["metric"], row["labels"].split(",")[2:]
    path = row[next(key for key in row if key.startswith("source"))].split()
    at = [stats]
    for part in path[-1].split(".") if not extra else (path[1] if len(path) > 1 else path[0]).split("."):
        at = [value for one in at for value in _several(named(one, part))]
    if not extra:
        (value,) = at
        yield (name, labels()), value
    elif extra == ["cpu"]:
        for index, value in enumerate(at):
            yield (name, labels(cpu=str(index))), value
    else:
        field = {"op": "value", "page": name.split("_")[2], "major": name.split("_")[2]}[extra[0]]
        for one in at:
            own = {label: str(named(one, "pagesize" if label == "page" else label)) for label in extra}
            yield (name, labels(**own)), named(one, field)


def _several(value: Any) -> Any:
    return value if hasattr(value, "extend") and not hasattr(value, "DESCRIPTOR") else [value]


@needs_contracts
@pytest.mark.parametrize(("version", "kind"), [("v1", v1.Metrics), ("v2", v2.Metrics)])
@on_loop
async def test_every_metric_of_the_contract_shows_its_field(version: str, kind: type[Any]) -> None:
    stats = filled(kind, itertools.count(1000))
    answer = TypedBytes(kind.DESCRIPTOR.full_name, stats.SerializeToString())
    async with monitored(Stub(answer), unified=version == "v2") as (_, exporter):
        found = await samples(exporter)
        _, body = await asyncio.to_thread(exporter.render)
    oom = "container_memory_oom_total"
    wanted = {}
    types = {}
    for row in rows(version):
        types[row["metric"]] = row["type"]
        if (version, row["metric"]) == ("v1", oom):
            wanted[oom, labels()] = 0.0
        else:
            wanted.update(wanted_samples(row, stats))
    assert found == wanted
    shown = dict(line.split()[2:] for line in body.decode().splitlines() if line.startswith("# TYPE container_"))
    assert shown == types


@on_loop
async def test_largest_numbers_are_shown_as_such() -> None:
    most = (1 << 64) - 1
    stats = v2.Metrics(memory=v2.MemoryStat(usage_limit=most))
    answer = TypedBytes("type.googleapis.com/io.containerd.cgroups.v2.Metrics", stats.SerializeToString())
    async with monitored(Stub(answer), unified=True) as (_, exporter):
        found = await samples(exporter)
    assert found["container_memory_usage_limit_bytes", labels()] == float(most)
    # What the kernel does not count is not shown, what it counts as nothing is.
    assert found["container_memory_usage_bytes", labels()] == 0
    assert ("container_pids_current", labels()) not in found


@on_loop
async def test_counters_of_the_other_kind_of_cgroups_are_shown_where_the_names_agree() -> None:
    stats = v1.Metrics(pids=v1.PidsStat(current=3), cpu=v1.CPUStat(usage=v1.CPUUsage(total=5)))
    answer = TypedBytes("io.containerd.cgroups.v1.Metrics", stats.SerializeToString())
    async with monitored(Stub(answer), unified=True) as (_, exporter):
        found = await samples(exporter)
    assert found == {("container_pids_current", labels()): 3.0, ("container_pids_limit", labels()): 0.0}


@on_loop
async def test_openmetrics_can_show_them_too() -> None:
    stats = filled(v1.Metrics, itertools.count(1000))
    answer = TypedBytes("io.containerd.cgroups.v1.Metrics", stats.SerializeToString())
    async with monitored(Stub(answer)) as (monitor, _):
        registry = CollectorRegistry()
        registry.register(monitor)
        text = (await asyncio.to_thread(openmetrics, registry)).decode()
    assert 'container_memory_oom_total{container_id="c1",namespace="one",runtime="io.containerd.runc.v2"} 0.0' in text


# --- shims that fail --------------------------------------------------------------------------------------------------


@on_loop
async def test_silent_shim_costs_its_own_samples_and_one_deadline() -> None:
    pids = TypedBytes("io.containerd.cgroups.v1.Metrics", v1.Metrics(pids=v1.PidsStat(current=2)).SerializeToString())
    silent = [Stub(id=f"s{number}", silent=True) for number in range(5)]
    async with monitored(*silent, Stub(pids)) as (_, exporter):
        began = time.monotonic()
        found = await samples(exporter)
        assert time.monotonic() - began < 0.9  # five deadlines would be a second
    assert found["container_pids_current", labels()] == 2
    assert {dict(own)["container_id"] for name, own in found if name == "container_pids_current"} == {"c1"}


@on_loop
async def test_failing_shim_is_logged_once_in_a_row() -> None:
    task = Stub(Unavailable("ttrpc: closed"))
    with capture_logs() as logs:
        async with monitored(task) as (_, exporter):
            await samples(exporter)
            await samples(exporter)
            assert [one["reason"] for one in logs] == ["ttrpc: closed"]
            task.stats_ = TypedBytes("example.Other", b"")
            await samples(exporter)
            assert len(logs) == 1
            task.stats_ = TypedBytes("io.containerd.cgroups.v1.Metrics", b"")
            await samples(exporter)
            task.stats_ = TypedBytes("io.containerd.cgroups.v1.Metrics", b"\xff")
            await samples(exporter)
            assert [one["reason"] for one in logs[1:]] == ["number at byte 0 does not end"]
            task.stats_ = NotFound("cgroup does not exist")
            await samples(exporter)
    assert len(logs) == 2


@on_loop
async def test_registering_asks_no_shim_and_scraping_from_the_loop_gives_nothing() -> None:
    async with monitored(Stub(silent=True)) as (monitor, _):
        names = {family.name for family in monitor.describe()}
        assert len(names) > 60
        assert [list(family.samples) for family in monitor.describe() if family.samples] == []


# --- with tasks -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def running(folder: Path, **more: Any) -> AsyncGenerator[tuple[Opened, MetricsExporter]]:
    exporter = PrometheusExporter()
    async with opened(folder, MONITOR, plug(METRICS_EXPORTER, "prometheus", exporter), **more) as world:
        yield world, exporter


async def containers(exporter: MetricsExporter) -> dict[str, str]:
    """Those that are shown, with their runtimes."""
    found = await samples(exporter)
    shown = [dict(own) for name, own in found if name == "container_pids_current"]
    return {one["container_id"]: one.get("runtime", "") for one in shown}


@on_loop
async def test_tasks_are_shown_from_create_to_delete(tmp_path: Path) -> None:
    async with running(tmp_path) as (world, exporter):
        assert await containers(exporter) == {}
        for name in ("c1", "c2"):
            await world.container(name)
            with bind("one"):
                await world.tasks.create(CreateTask(container_id=name))
        assert await containers(exporter) == {"c1": RUNTIME, "c2": RUNTIME}
        with bind("one"):
            await world.tasks.delete("c1")
        assert await containers(exporter) == {"c2": RUNTIME}


@on_loop
async def test_tasks_that_outlived_the_daemon_keep_their_labels(tmp_path: Path) -> None:
    exchange = LocalExchange(Bounds(1000, 1 << 20), structlog.get_logger(), lambda *_: None)
    async with fake_runtime(exchange) as runtime:
        async with opened(tmp_path, runtime=runtime) as world:
            await world.container("c1")
            with bind("one"):
                await world.tasks.create(CreateTask(container_id="c1"))
        async with running(tmp_path, runtime=runtime) as (_, exporter):
            assert await containers(exporter) == {"c1": RUNTIME}
        runtime.exchange = exchange


@on_loop
async def test_task_of_a_dead_shim_is_shown_no_more(tmp_path: Path) -> None:
    async with running(tmp_path) as (world, exporter):
        await world.container("c1")
        with bind("one"):
            pid = await world.tasks.create(CreateTask(container_id="c1"))
        for event, left in (
            (TaskDelete(container_id="c1", pid=pid, id="e1"), ["c1"]),  # an exec's
            (TaskDelete(container_id="c1", pid=pid + 1), ["c1"]),  # of a task before it
            (TaskDelete(container_id="c1", pid=pid), []),
        ):
            await world.exchange.publish("/tasks/delete", event, "two")
            await world.exchange.publish("/tasks/delete", event, "one")
            assert list(await containers(exporter)) == left


@on_loop
async def test_lack_of_memory_is_counted_by_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moored.plugins.monitors.cgroups.plugin.UNIFIED_MARK", tmp_path / "none")
    async with running(tmp_path) as (world, exporter):
        for name in ("c1", "c2"):
            await world.container(name)
            with bind("one"):
                await world.tasks.create(CreateTask(container_id=name))
        for name in ("c1", "c1", "none"):
            await world.exchange.publish("/tasks/oom", TaskOOM(container_id=name), "one")
        found = await samples(exporter)
        counts = {dict(own)["container_id"]: value for (name, own), value in found.items() if "oom" in name}
        assert counts == {"c1": 2, "c2": 0}


@on_loop
async def test_nothing_is_shown_if_so_configured_or_after_its_end(tmp_path: Path) -> None:
    async with running(tmp_path, **{MONITOR: {"no_prometheus": True}}) as (world, exporter):
        await world.container("c1")
        with bind("one"):
            await world.tasks.create(CreateTask(container_id="c1"))
        assert await samples(exporter) == {}
    (tmp_path / "again").mkdir()
    async with running(tmp_path / "again") as (_, exporter):
        pass
    _, body = await asyncio.to_thread(exporter.render)
    assert b"container_" not in body
