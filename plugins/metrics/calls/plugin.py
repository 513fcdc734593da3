"""Registers the counting of gRPC calls for Prometheus."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from moored.kernel.config import setting
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.metrics import METRICS, METRICS_EXPORTER, CallObserver


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.metrics.v1.grpc-prometheus"]"""

    grpc_histogram: bool = setting(False, doc="also keep a histogram of how long calls take")


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[CallObserver]:
    """Count every call of every gRPC listener and show the counts in all exporters."""
    from moored.plugins.metrics.calls.observer import CallCounts

    counts = CallCounts(histogram=ctx.config.grpc_histogram)
    exporters = list(ctx.all(METRICS_EXPORTER).values())
    for exporter in exporters:
        exporter.register(counts)
    try:
        yield counts
    finally:
        for exporter in exporters:
            exporter.unregister(counts)


plugin = Registration(
    kind=METRICS,
    id="grpc-prometheus",
    config=Config,
    open=open_,
    requires=(METRICS_EXPORTER,),
    summary="counts gRPC calls by method and status",
)
