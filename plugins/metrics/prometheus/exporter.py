"""Collects metrics and renders them with prometheus_client, which is imported by the first rendering.

What it adds by itself:

process_*                                       memory, CPU, file descriptors, start time
containerd_build_info_total{version,revision}   1
moored_plugin_outcome{plugin,outcome}           1 for the outcome that the plugin has
moored_plugin_start_seconds{plugin}             time its start took
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

import structlog
from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import AlreadyExists
from moored.kernel.hooks import hookimpl
from moored.kernel.ports.daemon import PluginRecord

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric


class Collects(Protocol):
    """What prometheus_client wants of a collector."""

    def collect(self) -> Iterable[Metric]:
        """Give the metrics as they are now."""


class PrometheusExporter:
    """The MetricsExporter. Registering belongs on the event loop, rendering may be done in any thread.

    A daemon that nobody scrapes does without the library and its memory. So a name that is taken shows with the first
    rendering at the earliest: before it the later collector is left out, with a line in the log.
    """

    def __init__(self, log: FilteringBoundLogger | None = None) -> None:
        self._log = log or structlog.get_logger()
        self._making = threading.Lock()
        self._registry: CollectorRegistry | None = None
        self._waiting: list[Collects] = []

    def register(self, collector: Collects) -> None:
        """See MetricsExporter."""
        with self._making:
            if self._registry is None:
                self._waiting.append(collector)
                return
            _register(self._registry, collector)

    def unregister(self, collector: Collects) -> None:
        """See MetricsExporter."""
        with self._making:
            if collector in self._waiting:
                self._waiting.remove(collector)
            if self._registry is None:
                return
            try:
                self._registry.unregister(collector)
            except KeyError:
                return

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """See MetricsExporter; the classic text format unless the header asks for OpenMetrics."""
        from prometheus_client.exposition import choose_encoder

        with self._making:
            registry = self._registry = self._registry or self._made()
        encode, kind = choose_encoder(accept)
        return kind, encode(registry)

    def _made(self) -> CollectorRegistry:
        from prometheus_client import CollectorRegistry, ProcessCollector

        registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=registry)
        for collector in self._waiting:
            try:
                _register(registry, collector)
            except AlreadyExists as error:
                self._log.error("metrics are left out", reason=error.text)
        self._waiting.clear()
        return registry


def _register(registry: CollectorRegistry, collector: Collects) -> None:
    try:
        registry.register(collector)
    except ValueError as error:
        raise AlreadyExists(f"metrics of {type(collector).__name__!r} are taken: {error}") from error


class DaemonMetrics:
    """The daemon's own metrics; keeps its copy of the plugins' outcomes, so that a scrape needs no event loop."""

    def __init__(self, version: str, revision: str, records: Iterable[PluginRecord]) -> None:
        self._build = (version, revision)
        self._records = {record.uri: record for record in records}

    @hookimpl
    def moored_plugin_settled(self, record: PluginRecord) -> None:
        """Keep what became of a plugin."""
        self._records[record.uri] = record

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        build = CounterMetricFamily("containerd_build_info", "version of the daemon", labels=("version", "revision"))
        build.add_metric(self._build, 1)
        yield build
        outcomes = GaugeMetricFamily("moored_plugin_outcome", "1 for the outcome it has", labels=("plugin", "outcome"))
        seconds = GaugeMetricFamily("moored_plugin_start_seconds", "time that its start took", labels=("plugin",))
        for uri, record in sorted(self._records.copy().items()):
            outcomes.add_metric((uri, record.outcome.value), 1)
            if record.start_seconds:
                seconds.add_metric((uri,), record.start_seconds)
        yield outcomes
        yield seconds
