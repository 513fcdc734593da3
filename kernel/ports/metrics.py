"""Metrics: observers of calls, and exporters that show what was counted."""

from __future__ import annotations

from typing import Any, Protocol

from moored.kernel.plugin import PluginType


class CallObserver(Protocol):
    """Is told of every gRPC call of every server. Methods run on the event loop, must be quick and never raise.

    service and method are bare names (`containerd.services.version.v1.Version`, `Version`); kind is `unary`,
    `client_stream`, `server_stream` or `bidi_stream`; code is the name of the gRPC status (`OK`, `NotFound`).
    """

    def started(self, kind: str, service: str, method: str) -> None:
        """A call came in."""

    def received(self, kind: str, service: str, method: str) -> None:
        """A message came in."""

    def sent(self, kind: str, service: str, method: str) -> None:
        """A message went out."""

    def handled(self, kind: str, service: str, method: str, code: str, seconds: float) -> None:
        """A call ended."""


class MetricsExporter(Protocol):
    """Collects from whoever registers, and renders or sends all of it."""

    def register(self, collector: Any) -> None:
        """Add what has a `collect`, as prometheus_client's collectors have. Raises AlreadyExists for a taken name.

        An exporter that has shown nothing yet may instead leave the collector out, and log that, when it first does.
        """

    def unregister(self, collector: Any) -> None:
        """Remove it again; unknown ones are ignored."""

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """(content type, exposition) for an HTTP Accept header; runs collectors, so call it off the event loop."""


METRICS: PluginType[CallObserver] = PluginType("io.containerd.metrics.v1")
METRICS_EXPORTER: PluginType[MetricsExporter] = PluginType("io.moored.metrics-exporter.v1")
