"""Collects metrics in a prometheus_client registry of its own and renders them; what it adds by itself is below.

process_*                                       memory, CPU, file descriptors, start time
containerd_build_info_total{version,revision}   1
moored_plugin_outcome{plugin,outcome}           1 for the outcome that the plugin has
moored_plugin_start_seconds{plugin}             time its start took
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from moored.kernel.errors import AlreadyExists
from moored.kernel.hooks import hookimpl
from moored.kernel.ports.daemon import PluginRecord


class PrometheusExporter:
    """The MetricsExporter. Registering belongs on the event loop, rendering may be done in any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self._registry)

    def register(self, collector: Collector) -> None:
        """See MetricsExporter."""
        try:
            self._registry.register(collector)
        except ValueError as error:
            raise AlreadyExists(f"metrics of {type(collector).__name__!r} are taken: {error}") from error

    def unregister(self, collector: Collector) -> None:
        """See MetricsExporter."""
        try:
            self._registry.unregister(collector)
        except KeyError:
            return

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """See MetricsExporter; the classic text format unless the header asks for OpenMetrics."""
        encode, kind = choose_encoder(accept)
        return kind, encode(self._registry)


class DaemonMetrics(Collector):
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
