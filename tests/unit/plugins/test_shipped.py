"""What is shipped as a whole: every entry point works, importing it is cheap, every setting is documented."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import pytest

from harness import shipped
from moored.kernel.config import fields_of
from moored.kernel.plugin import Registration
from moored.plugins.metrics.calls.observer import MAX_METHODS, OTHER, CallCounts
from moored.plugins.warning.deprecations.warnings import MAX_IDS, DeprecationWarnings

ROOT = Path(__file__).parents[3]
POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
MINE = (
    "plugins.server",
    "plugins.services.daemon",
    "plugins.services.healthcheck",
    "plugins.services.introspection",
    "plugins.services.version",
    "plugins.debug",
    "plugins.metrics",
    "plugins.introspection",
    "plugins.warning",
    "plugins.proxy",
    "plugins.events",
    "plugins.services.events",
)
URIS = sorted(
    uri for uri, value in POINTS["moored.plugins"].items() if value.startswith(tuple(f"moored.{m}." for m in MINE))
)
HEAVY = ("grpc", "aiohttp", "prometheus_client", "google.protobuf")


@dataclass
class Table:
    type: str
    address: str = "/x"
    platform: str = ""
    exports: dict[str, str] = field(default_factory=dict)
    capabilities: list[str] = field(default_factory=list)


@pytest.mark.parametrize("uri", URIS)
def test_entry_point_names_its_registration_and_says_what_it_is(uri: str) -> None:
    registration = shipped(uri)
    assert registration.summary


@pytest.mark.parametrize("uri", URIS)
def test_every_setting_is_documented(uri: str) -> None:
    config = shipped(uri).config
    undocumented = [one.name for one in fields_of(config) if not one.bounds.doc] if config else []
    assert undocumented == []


@pytest.mark.parametrize("kind", sorted(POINTS["moored.proxies"]))
def test_proxy_entry_point_makes_a_plugin_of_its_type(kind: str) -> None:
    module, _, attribute = POINTS["moored.proxies"][kind].partition(":")
    made = getattr(import_module(module), attribute)("far", Table(kind))
    assert isinstance(made, Registration)
    assert made.uri == f"{kind}.far"


def test_importing_all_plugins_imports_no_heavy_library() -> None:
    groups = (POINTS["moored.plugins"][uri] for uri in URIS), POINTS["moored.proxies"].values()
    modules = sorted({value.partition(":")[0] for group in groups for value in group})
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "contrib" / "dev", check=True
    )
    assert done.stdout.strip() == "[]"


def test_counts_of_made_up_methods_are_bounded() -> None:
    counts = CallCounts(histogram=True)
    for number in range(MAX_METHODS + 50):
        labels = ("unary", "made.up", f"M{number}")
        counts.started(*labels)
        counts.handled(*labels, "OK", 0.001)
    started = next(metric for metric in counts.collect() if metric.name == "grpc_server_started")
    assert len(started.samples) == MAX_METHODS + 1
    other = [sample.value for sample in started.samples if sample.labels["grpc_method"] == OTHER[2]]
    assert other == [50]


def test_histogram_counts_up_to_each_bound() -> None:
    counts = CallCounts(histogram=True)
    for seconds in (0.001, 0.005, 0.2, 60):
        counts.started("unary", "s", "m")
        counts.handled("unary", "s", "m", "OK", seconds)
    metric = next(metric for metric in counts.collect() if metric.name == "grpc_server_handling_seconds")
    buckets = {s.labels["le"]: s.value for s in metric.samples if s.name.endswith("_bucket")}
    assert (buckets["0.005"], buckets["0.1"], buckets["0.25"], buckets["10.0"], buckets["+Inf"]) == (2, 2, 3, 3, 4)
    assert [s.value for s in metric.samples if s.name.endswith("_sum")] == [pytest.approx(60.206)]


def test_deprecations_are_bounded_and_keep_the_last_use() -> None:
    warnings = DeprecationWarnings()
    warnings.emit("0", "first")
    for number in range(MAX_IDS + 10):
        warnings.emit(str(number), "later")
    found = warnings.deprecations()
    assert len(found) == MAX_IDS
    assert found[0].id == "0"
    assert found[0].message == "later"
