"""Metrics as Prometheus fetches them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness import (
    THING,
    basics,
    fails,
    on_loop,
    outcome_of,
    plug,
    version,
)
from moored.kernel.errors import AlreadyExists
from moored.kernel.plugin import Skip
from moored.kernel.ports.daemon import (
    Outcome,
)
from moored.plugins.metrics.calls.observer import CallCounts
from moored.plugins.metrics.prometheus.exporter import PrometheusExporter

METRICS_SERVER = "io.containerd.server.v1.metrics"
EXPORTER = "io.moored.metrics-exporter.v1.prometheus"
COUNTS = "io.containerd.metrics.v1.grpc-prometheus"


@asynccontextmanager
async def measured(folder: Path, **counts: Any) -> AsyncGenerator[tuple[str, grpc.aio.Channel]]:
    """The URL of the metrics, and a channel whose calls they count."""
    plugins = (METRICS_SERVER, EXPORTER, COUNTS, plug(THING, "lame", error=Skip("no legs")))
    configs = {METRICS_SERVER: {"address": "127.0.0.1:0"}, COUNTS: counts}
    async with basics(folder, *plugins, configs=configs) as (world, channel):
        yield f"http://{world.address(METRICS_SERVER)}", channel


async def scraped(url: str, accept: str = "") -> tuple[str, str]:
    async with aiohttp.ClientSession() as session, session.get(url, headers={"Accept": accept}) as response:
        assert response.status == 200
        return response.content_type, await response.text()


@on_loop
async def test_metrics_count_calls_under_the_names_of_go(tmp_path: Path) -> None:
    async with measured(tmp_path) as (url, channel):
        for _ in range(3):
            await version(channel)
        await fails(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="x")))
        await fails(channel.unary_unary("/no.such.Service/Do")(b""))
        kind, text = await scraped(f"{url}/v1/metrics")
    assert kind == "text/plain"
    lines = set(text.splitlines())
    one = 'grpc_method="Version",grpc_service="containerd.services.version.v1.Version",grpc_type="unary"'
    check = 'grpc_method="Check",grpc_service="grpc.health.v1.Health",grpc_type="unary"'
    other = 'grpc_method="unknown",grpc_service="unknown",grpc_type="bidi_stream"'
    wanted = {
        f"grpc_server_started_total{{{one}}} 3.0",
        f'grpc_server_handled_total{{grpc_code="OK",{one}}} 3.0',
        f"grpc_server_msg_received_total{{{one}}} 3.0",
        f"grpc_server_msg_sent_total{{{one}}} 3.0",
        f'grpc_server_handled_total{{grpc_code="NotFound",{check}}} 1.0',
        f"grpc_server_started_total{{{other}}} 1.0",
        'containerd_build_info_total{revision="cafe",version="0.0.1-test"} 1.0',
        'moored_plugin_outcome{outcome="ok",plugin="io.containerd.server.v1.grpc"} 1.0',
        'moored_plugin_outcome{outcome="skipped",plugin="io.moored.thing.v1.lame"} 1.0',
    }
    shown = {_sorted_labels(line) for line in lines}
    assert wanted <= shown
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)
    assert any(line.startswith("moored_plugin_start_seconds{") for line in lines)
    assert "grpc_server_handling_seconds" not in text


def _sorted_labels(line: str) -> str:
    name, brace, rest = line.partition("{")
    labels, end, value = rest.rpartition("}")
    return f"{name}{{{','.join(sorted(labels.split(',')))}}}{value}" if brace and end else line


@on_loop
async def test_metrics_show_a_histogram_where_asked(tmp_path: Path) -> None:
    async with measured(tmp_path, grpc_histogram=True) as (url, channel):
        await version(channel)
        _, text = await scraped(f"{url}/v1/metrics")
    lines = [line for line in text.splitlines() if line.startswith("grpc_server_handling_seconds")]
    assert [line for line in lines if 'le="+Inf"' in line and line.endswith(" 1.0")]
    assert [line for line in lines if line.startswith("grpc_server_handling_seconds_count") and line.endswith(" 1.0")]


@on_loop
async def test_metrics_speak_openmetrics_to_those_who_ask(tmp_path: Path) -> None:
    async with measured(tmp_path) as (url, _):
        kind, text = await scraped(f"{url}/v1/metrics", "application/openmetrics-text; version=1.0.0")
    assert kind == "application/openmetrics-text"
    assert text.endswith("# EOF\n")


def test_library_comes_in_when_somebody_looks() -> None:
    script = """
import sys, structlog
from moored.plugins.metrics.calls.observer import CallCounts
from moored.plugins.metrics.prometheus.exporter import DaemonMetrics, PrometheusExporter

exporter = PrometheusExporter(structlog.get_logger())
counts = CallCounts(histogram=True)
exporter.register(counts)
exporter.register(DaemonMetrics("1", "r", ()))
counts.started("unary", "s", "m")
assert "prometheus_client" not in sys.modules
assert b'grpc_server_started_total{grpc_method="m",grpc_service="s",grpc_type="unary"} 1.0' in exporter.render()[1]
"""
    paths = str(Path(__file__).resolve().parents[3] / "contrib" / "dev")
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert done.returncode == 0


def test_names_that_are_taken_leave_only_the_later_collector_out() -> None:
    exporter = PrometheusExporter(structlog.get_logger())
    first, second, third = (CallCounts(histogram=False) for _ in range(3))
    exporter.register(first)
    exporter.register(second)
    first.started("unary", "s", "m")

    assert b'grpc_service="s"' in exporter.render()[1]
    with pytest.raises(AlreadyExists, match="are taken"):
        exporter.register(third)
    exporter.unregister(second)
    exporter.unregister(first)
    exporter.register(third)


@on_loop
async def test_metrics_are_the_only_page(tmp_path: Path) -> None:
    async with measured(tmp_path) as (url, _), aiohttp.ClientSession() as session:
        for path in ("/", "/metrics", "/debug/vars"):
            async with session.get(f"{url}{path}") as response:
                assert response.status == 404


@on_loop
async def test_metrics_without_address_are_skipped(tmp_path: Path) -> None:
    assert await outcome_of(tmp_path, METRICS_SERVER, EXPORTER) == (Outcome.SKIPPED, "no address configured")


@on_loop
async def test_metrics_on_a_taken_port_name_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        outcome, reason = await outcome_of(tmp_path, METRICS_SERVER, EXPORTER, address=address)
    assert outcome is Outcome.FAILED
    assert f"cannot listen on {address!r}: address already in use" in reason
