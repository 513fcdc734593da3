"""Counts garbage collections, under the metric names and labels of containerd; those of its own are below.

containerd_gc_collections_total{status}   status is success or fail
containerd_gc_gc_seconds                  a histogram: how long those that succeeded took
moored_gc_pause_seconds                   a histogram: how long each of them held up writers
moored_gc_removed_total{kind}             records that were removed: content, image, snapshot, lease, ...
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from moored.kernel.ports.objects import Collection

if TYPE_CHECKING:
    from prometheus_client.core import Metric

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histograms, seconds."""


class CollectionCounts:
    """Keeps the counts on the event loop, and shows them in any thread."""

    def __init__(self) -> None:
        # Both are shown as 0 from the start, so that a first failure is a change.
        self._runs = Counter({"success": 0, "fail": 0})
        self._removed: Counter[str] = Counter()
        self._seconds = _Histogram()
        self._pauses = _Histogram()

    def tell(self, done: Collection | None) -> None:
        """Take note of a collection, None for one that failed."""
        if done is None:
            self._runs["fail"] += 1
            return
        self._runs["success"] += 1
        self._removed.update(done.removed)
        self._seconds.observe(done.seconds)
        self._pauses.observe(done.pause_seconds)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        yield _counter("containerd_gc_collections", "garbage collections", "status", self._runs)
        yield self._seconds.metric("containerd_gc_gc_seconds", "time that garbage collections took")
        yield self._pauses.metric("moored_gc_pause_seconds", "time that garbage collections held up writers")
        yield _counter("moored_gc_removed", "records removed by garbage collections", "kind", self._removed)


class _Histogram:
    """Counts by bucket, the last one for what is above all, and the sum."""

    def __init__(self) -> None:
        self._counts = (0,) * (len(BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        at = bisect.bisect_left(BUCKETS, seconds)
        # Replaced as a whole: a scrape in another thread sees the one or the other.
        self._counts = (*self._counts[:at], self._counts[at] + 1, *self._counts[at + 1 :])
        self._sum += seconds

    def metric(self, name: str, help_: str) -> Metric:
        from prometheus_client.core import HistogramMetricFamily

        counts = self._counts
        bounds = [*(str(bound) for bound in BUCKETS), "+Inf"]
        buckets = [(bound, float(sum(counts[: at + 1]))) for at, bound in enumerate(bounds)]
        return HistogramMetricFamily(name, help_, buckets=buckets, sum_value=self._sum)


def _counter(name: str, help_: str, label: str, counts: Counter[str]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    metric = CounterMetricFamily(name, help_, labels=(label,))
    for value, count in sorted(counts.copy().items()):
        metric.add_metric((value,), count)
    return metric
