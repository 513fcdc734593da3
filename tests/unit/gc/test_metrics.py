"""Garbage collections as Prometheus sees them: in the exporter, in the collector, and of a running daemon."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from daemons import Daemon
from moored.api.services.images.v1 import images_pb2, images_pb2_grpc
from moored.api.services.leases.v1 import leases_pb2, leases_pb2_grpc
from moored.api.types.descriptor_pb2 import Descriptor
from moored.kernel.ports.objects import Collection
from moored.plugins.gc.scheduler.metrics import CollectionCounts
from moored.plugins.metrics.prometheus.exporter import PrometheusExporter

NS = (("containerd-namespace", "ns"),)
METRICS = "io.containerd.server.v1.metrics"

Samples = dict[tuple[str, str], float]


def samples(exposition: str) -> Samples:
    """Value by name and the one label's value."""
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if "_gc_" in sample.name
    }


def test_collections_are_counted_under_the_names_of_containerd() -> None:
    exporter, counts = PrometheusExporter(), CollectionCounts()
    exporter.register(counts)
    before = samples(exporter.render()[1].decode())
    counts.tell(Collection(pause_seconds=0.003, seconds=0.04, removed={"content": 3, "lease": 1}))
    counts.tell(Collection(pause_seconds=0.005, seconds=20.0, removed={"content": 1}))
    counts.tell(None)

    shown = samples(exporter.render()[1].decode())

    assert before["containerd_gc_collections_total", "fail"] == before["containerd_gc_gc_seconds_count", ""] == 0
    assert shown["containerd_gc_collections_total", "success"] == 2
    assert shown["containerd_gc_collections_total", "fail"] == 1
    buckets = {name[1]: value for name, value in shown.items() if name[0] == "containerd_gc_gc_seconds_bucket"}
    assert (buckets["0.025"], buckets["0.05"], buckets["10.0"], buckets["+Inf"]) == (0, 1, 1, 2)
    assert shown["containerd_gc_gc_seconds_count", ""] == 2
    assert shown["containerd_gc_gc_seconds_sum", ""] == 20.04
    assert shown["moored_gc_pause_seconds_bucket", "0.005"] == 2
    assert shown["moored_gc_removed_total", "content"] == 4
    assert shown["moored_gc_removed_total", "lease"] == 1


def test_running_daemon_shows_its_collections(tmp_path: Path) -> None:
    config = f'version = 4\n[plugins."{METRICS}"]\naddress = "127.0.0.1:0"\n'
    with Daemon(tmp_path, config) as daemon, daemon.channel() as channel:
        url = f"http://{daemon.plugins()[METRICS].exports['address']}/v1/metrics"

        def scraped() -> Samples:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return samples(answer.read().decode())

        images, leases = images_pb2_grpc.ImagesStub(channel), leases_pb2_grpc.LeasesStub(channel)
        expired = {"containerd.io/gc.expire": "2000-01-01T00:00:00Z"}
        target = Descriptor(digest=f"sha256:{'0' * 64}", size=1, media_type="m")
        image = images_pb2.Image(name="i", target=target, labels=expired)
        images.Create(images_pb2.CreateImageRequest(image=image), metadata=NS, timeout=10)
        leases.Create(leases_pb2.CreateRequest(id="l"), metadata=NS, timeout=10)
        before = scraped()

        leases.Delete(leases_pb2.DeleteRequest(id="l", sync=True), metadata=NS, timeout=10)
        after = scraped()

    runs = ("containerd_gc_collections_total", "success")
    assert after[runs] > before[runs] >= 0
    assert after["containerd_gc_gc_seconds_count", ""] == after[runs]
    assert after["containerd_gc_gc_seconds_sum", ""] > 0
    assert after["containerd_gc_collections_total", "fail"] == 0
    assert after["moored_gc_removed_total", "image"] == 1
