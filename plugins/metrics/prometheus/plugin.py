"""Registers the Prometheus exporter, which other plugins give their metrics to."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.metrics import METRICS_EXPORTER, MetricsExporter


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[MetricsExporter]:
    """Collect as long as it runs; showing what was collected is a listener's work."""
    from moored.plugins.metrics.prometheus.exporter import DaemonMetrics, PrometheusExporter

    exporter = PrometheusExporter(ctx.log)
    own = DaemonMetrics(ctx.daemon.version, ctx.daemon.revision, ctx.daemon.plugins())
    exporter.register(own)
    ctx.hooks.register(own)
    yield exporter


plugin = Registration(
    kind=METRICS_EXPORTER, id="prometheus", open=open_, summary="collects metrics and renders them for Prometheus"
)
