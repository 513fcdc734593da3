"""Counts gRPC calls, under the metric names and labels of go-grpc-prometheus.

    grpc_server_started_total{grpc_type,grpc_service,grpc_method}
    grpc_server_handled_total{grpc_type,grpc_service,grpc_method,grpc_code}
    grpc_server_msg_received_total, grpc_server_msg_sent_total     as started
    grpc_server_handling_seconds                                   as started; a histogram, if asked for

Counting is a dictionary's work, on the event loop alone; prometheus_client only comes in when somebody scrapes.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric

LABELS = ("grpc_type", "grpc_service", "grpc_method")
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram, seconds."""
MAX_METHODS = 4096
"""Methods that are counted by name; more of them are counted as OTHER, so that no client can fill the memory."""
OTHER = ("unary", "unknown", "unknown")

Labels = tuple[str, str, str]


class CallCounts:
    """The CallObserver that keeps all counts, and the collector that shows them."""

    def __init__(self, *, histogram: bool) -> None:
        self._histogram = histogram
        self._started: Counter[Labels] = Counter()
        self._received: Counter[Labels] = Counter()
        self._sent: Counter[Labels] = Counter()
        self._handled: Counter[tuple[str, str, str, str]] = Counter()
        self._seconds: dict[Labels, list[float]] = {}

    def started(self, kind: str, service: str, method: str) -> None:
        """See CallObserver."""
        self._started[self._labels(kind, service, method)] += 1

    def received(self, kind: str, service: str, method: str) -> None:
        """See CallObserver."""
        self._received[self._labels(kind, service, method)] += 1

    def sent(self, kind: str, service: str, method: str) -> None:
        """See CallObserver."""
        self._sent[self._labels(kind, service, method)] += 1

    def handled(self, kind: str, service: str, method: str, code: str, seconds: float) -> None:
        """See CallObserver."""
        labels = self._labels(kind, service, method)
        self._handled[(*labels, code)] += 1
        if self._histogram:
            # One count a bucket, one for what is above all, and the sum.
            counts = self._seconds.setdefault(labels, [0.0] * (len(BUCKETS) + 2))
            counts[bisect.bisect_left(BUCKETS, seconds)] += 1
            counts[-1] += seconds

    def _labels(self, kind: str, service: str, method: str) -> Labels:
        labels = (kind, service, method)
        return labels if labels in self._started or len(self._started) < MAX_METHODS else OTHER

    def collect(self) -> Iterator[Metric]:
        """Called by the registry, in any thread."""
        yield _counter("started", "calls started", self._started, LABELS)
        yield _counter("handled", "calls ended", self._handled, (*LABELS, "grpc_code"))
        yield _counter("msg_received", "messages received", self._received, LABELS)
        yield _counter("msg_sent", "messages sent", self._sent, LABELS)
        if self._histogram:
            yield self._durations()

    def _durations(self) -> Metric:
        from prometheus_client.core import HistogramMetricFamily

        metric = HistogramMetricFamily("grpc_server_handling_seconds", "time that calls took", labels=LABELS)
        for labels, counts in sorted(self._seconds.copy().items()):
            *buckets, total = counts.copy()
            sums = [sum(buckets[: at + 1]) for at in range(len(buckets))]
            bounds = [*(str(bound) for bound in BUCKETS), "+Inf"]
            metric.add_metric(labels, list(zip(bounds, sums, strict=True)), total)
        return metric


def _counter(
    name: str, help_: str, counts: Counter[Labels] | Counter[tuple[str, str, str, str]], labels: tuple[str, ...]
) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    metric = CounterMetricFamily(f"grpc_server_{name}", help_, labels=labels)
    for values, count in sorted(counts.copy().items()):
        metric.add_metric(values, count)
    return metric
