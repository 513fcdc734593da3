"""Discovery reads names only and tells all faults; an import is limited, checked, and never harms the daemon."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moored.kernel.plugin import PluginType, Registration, split_uri
from moored.kernel.registry import (
    Candidate,
    Discovery,
    Loaded,
    Source,
    describe,
    discover,
    entry_points,
    load,
    module_summary,
    proxy_candidates,
)

URI = "io.moored.a.v1.x"
GROUP = "moored.test-plugins"

PLUGIN = '''"""Says hello to nobody.

More of it.
"""
from contextlib import asynccontextmanager

from moored.kernel.plugin import PluginType, Registration


@asynccontextmanager
async def open_(ctx):
    yield


plugin = Registration(kind=PluginType("io.moored.a.v1"), id="x", open=open_)
'''

Install = Callable[..., Path]


@pytest.fixture(name="install")
def _install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Writes a distribution to a folder of its own and puts that first on the path."""
    count = 0

    def install(name: str, points: dict[str, str], *, group: str = GROUP, version: str = "1.0", **modules: str) -> Path:
        nonlocal count
        count += 1
        site = tmp_path / f"site{count}"
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = "".join(f"{point} = {value}\n" for point, value in points.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
        for module, text in modules.items():
            (site / f"{module}.py").write_text(text)
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(site)
        return site

    return install


def found(disabled: tuple[str, ...] = ()) -> Discovery:
    return discover(entry_points(GROUP), disabled)


def loaded(seconds: float = 60) -> Loaded:
    return load(found().candidates[URI], seconds=seconds)


def test_discovery_names_candidates_and_imports_nothing(install: Install) -> None:
    install("dist-one", {URI: "moored_test_never:plugin"}, moored_test_never="raise SystemExit")

    result = found()

    assert result.faults == ()
    candidate = result.candidates[URI]
    assert (candidate.type, candidate.id) == ("io.moored.a.v1", "x")
    assert candidate.source == Source("dist-one", "1.0", "moored_test_never:plugin")
    assert str(candidate.source) == "moored_test_never:plugin of dist-one 1.0"
    assert "moored_test_never" not in sys.modules


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (".v1.x", "has no type"),
        ("v1.x", "has no type"),
        ("io.moored.a.x", "has no type"),
        ("io.moored.a.v1", "has no type"),
        ("io.Moored.a.v1.x", "has no type"),
        ("io..a.v1.x", "has no type"),
        ("io.moored.a.v1.", "has no valid id"),
        ("io.moored.a.v1.x/y", "has no valid id"),
        ("io.moored.a.v1..", "has no valid id"),
        ("io.moored.a.v1.x y", "has no valid id"),
        ("io.moored.a.v1.x\n", "has no valid id"),
    ],
)
def test_malformed_name_is_a_fault_that_names_it(name: str, text: str) -> None:
    good = (URI, Source("dist-good", "1", "m:p"), lambda: None)

    result = discover([(name, Source("dist-bad", "1.0", "m:p"), lambda: None), good], ())

    assert list(result.candidates) == [URI]
    (fault,) = result.faults
    assert fault.text.startswith(f"plugin name {name!r} {text}")
    assert fault.text.endswith("(entry point m:p of dist-bad 1.0)")


def test_malformed_name_of_an_installed_distribution_is_a_fault(install: Install) -> None:
    install("dist-bad", {"snapshotter.x": "m:p"})

    assert "'snapshotter.x'" in found().faults[0].text


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("io.containerd.snapshotter.v1.native", ("io.containerd.snapshotter.v1", "native")),
        ("io.containerd.grpc.v12.a-b_c.D9", ("io.containerd.grpc.v12", "a-b_c.D9")),
        ("io.containerd.grpc.v1.v2.x", ("io.containerd.grpc.v1", "v2.x")),
        ("io.moored.oci-runtime.v1.runc", ("io.moored.oci-runtime.v1", "runc")),
    ],
)
def test_uri_is_split_after_the_first_version(uri: str, parts: tuple[str, str]) -> None:
    assert split_uri(uri) == parts


def test_duplicate_names_both_distributions(install: Install) -> None:
    install("dist-one", {URI: "one:plugin"})
    install("dist-two", {URI: "two:plugin"}, version="2.0")

    result = found()

    (fault,) = result.faults
    assert fault.text == (
        f"plugin '{URI}' is offered twice: by two:plugin of dist-two 2.0 and by one:plugin of dist-one 1.0"
    )


def test_duplicate_of_a_disabled_plugin_is_no_fault(install: Install) -> None:
    install("dist-one", {URI: "one:plugin"})
    install("dist-two", {URI: "two:plugin"})

    assert found(disabled=(URI,)).faults == ()


def test_all_faults_are_told_at_once(install: Install) -> None:
    install("dist-one", {URI: "one:plugin", "bad": "one:bad"})
    install("dist-two", {URI: "two:plugin", "worse": "two:worse"})

    assert len(found().faults) == 3


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_distribution_that_is_twice_on_the_path_counts_once(install: Install, version: str) -> None:
    install("dist-one", {URI: "one:plugin"}, version="1.0")
    install("dist-one", {URI: "one:plugin"}, version=version)

    result = found()

    assert result.faults == ()
    assert result.candidates[URI].source.version == version


def test_good_plugin_is_loaded_with_its_summary(install: Install) -> None:
    install("dist-one", {URI: "moored_test_good:plugin"}, moored_test_good=PLUGIN)

    result = loaded()

    assert result.registration is not None
    assert (result.registration.uri, result.reason, result.traceback, result.timed_out) == (URI, "", "", False)
    assert result.seconds > 0
    assert module_summary("moored_test_good:plugin") == "Says hello to nobody."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import moored_test_nothing", "import failed: ModuleNotFoundError: No module named 'moored_test_nothing'"),
        ("1 / 0", "import failed: ZeroDivisionError: division by zero"),
        ("plugin = (", "import failed: SyntaxError: '(' was never closed (moored_test_bad.py, line 1)"),
        ("raise SystemExit(4)", "import failed: SystemExit: 4"),
        ("raise GeneratorExit", "import failed: GeneratorExit"),
        ("", "import failed: AttributeError: module 'moored_test_bad' has no attribute 'plugin'"),
        (
            "plugin = 'text'",
            "entry point moored_test_bad:plugin of dist-one 1.0 is a str, it must be a Registration",
        ),
        (
            PLUGIN.replace('id="x"', 'id="other"'),
            f"entry point is named '{URI}', its registration calls itself 'io.moored.a.v1.other'",
        ),
        (
            PLUGIN.replace('PluginType("io.moored.a.v1")', '"io.moored.a.v1"'),
            "import failed: AttributeError: 'str' object has no attribute 'uri'",
        ),
    ],
)
def test_bad_import_is_a_reason(install: Install, text: str, reason: str) -> None:
    install("dist-one", {URI: "moored_test_bad:plugin"}, moored_test_bad=text)

    result = loaded()

    assert result.registration is None
    assert result.reason == reason
    assert not result.timed_out
    assert bool(result.traceback) == reason.startswith("import failed")


@pytest.mark.parametrize(
    "text",
    [
        "import time; time.sleep(60)",
        "while True: pass",
        "import time\ntry:\n    time.sleep(60)\nexcept Exception:\n    pass\nplugin = None",
    ],
)
def test_import_that_hangs_is_timed_out(install: Install, text: str) -> None:
    install("dist-one", {URI: "moored_test_hang:plugin"}, moored_test_hang=text)
    began = time.monotonic()

    result = loaded(seconds=0.3)

    assert time.monotonic() - began < 30
    assert (result.registration, result.timed_out) == (None, True)
    assert result.reason == "import did not finish within 0.3s"
    assert "moored_test_hang.py" in result.traceback
    assert result.seconds >= 0.3
    assert "moored_test_hang" not in sys.modules


def test_interrupt_from_the_keyboard_ends_the_import_and_the_daemon() -> None:
    def interrupted() -> object:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(Candidate(URI, "io.moored.a.v1", "x", Source("d", "1", "m:p"), interrupted), seconds=60)


def test_nested_failure_is_described_by_its_first_line_and_leaf() -> None:
    assert describe(OSError("one\ntwo")) == "OSError: one"
    assert describe(OSError()) == "OSError"
    assert describe(ExceptionGroup("g", [ValueError("a"), ExceptionGroup("h", [OSError(), OSError()])])) == (
        "ValueError: a (and 1 more)"
    )


MAKER = PLUGIN.replace(
    "plugin = Registration(",
    "def make(name, settings):\n"
    "    return registration(name, settings)\n\n\n"
    "def registration(name, settings):\n"
    "    return Registration(summary=settings, ",
).replace('id="x"', "id=name")


def install_maker(install: Install) -> None:
    install("dist-proxy", {"io.moored.a.v1": "moored_test_maker:make"}, group="moored.proxies", moored_test_maker=MAKER)


def test_proxy_is_made_by_its_types_maker_when_it_is_loaded(install: Install) -> None:
    install_maker(install)

    candidates, faults = proxy_candidates({"far": ("io.moored.a.v1", "its table")})

    assert faults == []
    (candidate,) = candidates
    assert (candidate.uri, candidate.type, candidate.id) == ("io.moored.a.v1.far", "io.moored.a.v1", "far")
    assert str(candidate.source) == "moored_test_maker:make of config proxy_plugins.far by dist-proxy 1.0"
    assert "moored_test_maker" not in sys.modules
    result = load(candidate, seconds=60)
    assert result.reason == ""
    assert isinstance(result.registration, Registration)
    assert (result.registration.kind, result.registration.summary) == (PluginType("io.moored.a.v1"), "its table")


def test_proxies_of_unknown_type_and_bad_name_are_faults(install: Install) -> None:
    install_maker(install)

    candidates, faults = proxy_candidates(
        {
            "far": ("io.moored.unknown.v1", {}),
            "a/b": ("io.moored.a.v1", {}),
            "c": ("snapshot", {}),
            "": ("io.moored.a.v1", {}),
        }
    )

    assert candidates == []
    assert [fault.text for fault in faults] == [
        "proxy_plugins.far: no installed plugin makes proxies of type 'io.moored.unknown.v1'",
        "proxy_plugins.a/b: plugin name 'io.moored.a.v1.a/b' has no valid id after its type 'io.moored.a.v1'",
        "proxy_plugins.c: plugin name 'snapshot.c' has no type, it must look like 'io.containerd.content.v1.content'",
        "proxy_plugins.: plugin name 'io.moored.a.v1.' has no valid id after its type 'io.moored.a.v1'",
    ]


@pytest.mark.parametrize(
    ("maker", "reason"),
    [
        ("make = 5", "import failed: TypeError: 5 must be a function (name, settings) -> Registration"),
        (
            "def make(name, settings): raise ValueError('no address')",
            "import failed: ValueError: no address",
        ),
        (
            "def make(name, settings): return None",
            (
                "entry point moored_test_maker:make of config proxy_plugins.far by dist-proxy 1.0 is a NoneType, "
                "it must be a Registration"
            ),
        ),
    ],
)
def test_bad_proxy_maker_is_a_reason(install: Install, maker: str, reason: str) -> None:
    install("dist-proxy", {"io.moored.a.v1": "moored_test_maker:make"}, group="moored.proxies", moored_test_maker=maker)
    (candidate,), _ = proxy_candidates({"far": ("io.moored.a.v1", {})})

    result = load(candidate, seconds=60)

    assert (result.registration, result.reason) == (None, reason)


def test_registration_type_must_look_like_one() -> None:
    with pytest.raises(ValueError, match="'snapshotter' must look like"):
        PluginType("snapshotter")


def test_malformed_name_that_is_disabled_is_no_fault(install: Install) -> None:
    install("broken", {"typeless": "broken:plugin"})

    assert found(disabled=("typeless",)).faults == ()
    assert len(found().faults) == 1
