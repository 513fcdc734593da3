"""Every port has a page for those who implement it, and what the pages print works as printed."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from daemons import Daemon, outcome
from moored.kernel.plugin import ENTRY_POINT_GROUP, PluginType, Registration, split_uri

CHECKOUT = Path(__file__).resolve().parents[2]
FOLDER = CHECKOUT / "docs" / "ports"
INDEX = FOLDER / "README.md"
PAGES = sorted(page for page in FOLDER.glob("*.md") if page != INDEX)
SUITES = [page for page in PAGES if "`conformance.py`" in page.read_text()]
PORTS = sorted(path.stem for path in (CHECKOUT / "kernel" / "ports").glob("*.py"))
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
OURS = set(PROJECT["entry-points"][ENTRY_POINT_GROUP])
ALONE = {
    "io.containerd.content.v1",
    "io.containerd.event.v1",
    "io.containerd.gc.v1",
    "io.containerd.metadata.v1",
    "io.containerd.runtime.v2",
    "io.containerd.shim.v1",
    "io.moored.database.v1",
}
"""Types of which the daemon uses one plugin, whatever its id."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def types_of(port: str) -> set[str]:
    """The URIs of the plugin types that a port module has."""
    module = importlib.import_module(f"moored.kernel.ports.{port}")
    return {value.uri for value in vars(module).values() if isinstance(value, PluginType)}


def files(page: Path) -> dict[str, str]:
    """The fenced blocks of a page that stand under the name of a file."""
    return dict(re.findall(r"^`([\w.]+)`[^\n]*:\n\n```\w+\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))


def offers(page: Path) -> dict[str, str]:
    """The entry points that a page prints."""
    found: dict[str, str] = tomllib.loads(files(page)["pyproject.toml"])["project"]["entry-points"][ENTRY_POINT_GROUP]
    return found


def written(page: Path, folder: Path) -> None:
    """Put a page's Python files into a folder."""
    for name, text in files(page).items():
        if name.endswith(".py"):
            (folder / name).write_text(text)


@pytest.mark.parametrize("port", [port for port in PORTS if port != "__init__" and types_of(port)])
def test_port_has_a_page(port: str) -> None:
    assert [page.name for page in PAGES if f"../../kernel/ports/{port}.py" in page.read_text()]


def test_every_plugin_type_is_on_a_page() -> None:
    types = {split_uri(uri)[0] for uri in OURS}.union(*map(types_of, PORTS))

    pages, index = "".join(page.read_text() for page in PAGES), INDEX.read_text()

    assert sorted(uri for uri in types if f"`{uri}`" not in pages or f"`{uri}`" not in index) == []


def test_index_lists_every_page() -> None:
    assert sorted(set(re.findall(r"\]\((\w+\.md)\)", INDEX.read_text()))) == [page.name for page in PAGES]


@pytest.mark.parametrize("page", [*PAGES, INDEX], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())

    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []


@each_page
def test_entry_points_name_registrations_of_their_uris(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(page, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    modules: list[str] = []
    for uri, value in offers(page).items():
        module, _, attribute = value.partition(":")
        modules.append(module)
        offered: Any = getattr(importlib.import_module(module), attribute)

        assert isinstance(offered, Registration)
        assert offered.uri == uri
        assert uri not in OURS
    for module in modules:
        sys.modules.pop(module, None)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page, id=page.stem, marks=[pytest.mark.root] if "`conformance.py`, as root" in page.read_text() else []
        )
        for page in SUITES
    ],
)
def test_suite_runs_as_printed(page: Path, tmp_path: Path) -> None:
    written(page, tmp_path)

    done = subprocess.run(
        [sys.executable, "conformance.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "contrib" / "dev")},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok check_" in done.stdout
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.root
@pytest.mark.parametrize("alone", [False, True], ids=["beside ours", "in place of ours"])
def test_plugins_of_the_pages_start_in_a_daemon(alone: bool, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    chosen: dict[str, str] = {}
    for page in PAGES:
        written(page, package)
        chosen |= {uri: value for uri, value in offers(page).items() if (split_uri(uri)[0] in ALONE) is alone}
    info = package / "pages-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pages\nVersion: 1.0\n")
    lines = [f"{uri} = {value}" for uri, value in chosen.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{ENTRY_POINT_GROUP}]", *lines]))
    disabled = sorted(uri for uri in OURS if alone and split_uri(uri)[0] in ALONE)
    config = f"version = 4\ndisabled_plugins = {disabled}\n"
    paths = os.pathsep.join([str(package), str(CHECKOUT / "contrib" / "dev"), os.environ.get("PYTHONPATH", "")])

    with Daemon(tmp_path, config, env={"PYTHONPATH": paths}) as daemon:
        found = daemon.plugins()

    assert chosen
    assert {uri: (outcome(found[uri]), found[uri].reason) for uri in chosen} == dict.fromkeys(chosen, ("ok", ""))
