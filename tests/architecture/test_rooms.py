"""The rooms keep their walls: import rules, bare names, docstrings, absolute imports, a code for every error."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moored.api.errors import WIRE
from moored.kernel import errors

CHECKOUT = Path(__file__).resolve().parents[2]
ROOMS = ("kernel", "plugins", "api", "config")


def modules() -> Iterator[Path]:
    """Every source file of the rooms but generated stubs."""
    for room in ROOMS:
        for path in sorted((CHECKOUT / room).rglob("*.py")):
            if not path.stem.endswith(("_pb2", "_pb2_grpc")):
                yield path.relative_to(CHECKOUT)


def parsed(module: Path) -> ast.Module:
    return ast.parse((CHECKOUT / module).read_text(encoding="utf-8"))


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Hold the tree of `moored` under root against the contracts in pyproject.toml."""
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(root), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_import_rules_hold() -> None:
    result = lint_imports(CHECKOUT / "contrib" / "dev")

    assert result.returncode == 0, result.stdout + result.stderr
    assert " 0 broken" in result.stdout


PLANTED = {
    "kernel/graph.py": {
        "moored.plugins.one.plugin": ["the kernel imports no other room"],
        "moored.api.errors": ["the kernel imports no other room"],
        "moored.config.load": ["the kernel imports no other room"],
        "grpc": ["the kernel knows no wire"],
        "google.protobuf.any_pb2": ["the kernel knows no wire"],
        "aiohttp": ["the kernel knows no wire"],
        "lmdb": ["the kernel knows no wire"],
        "prometheus_client": ["the kernel knows no wire"],
        "moored.kernel.daemon.command": ["the rest of the kernel does not import the composition root"],
        "pytest": ["nobody imports tests"],
    },
    "kernel/daemon/command.py": {
        "moored.config.load": [],
        "moored.kernel.graph": [],
        "moored.plugins.one.plugin": ["the kernel imports no other room"],
    },
    "config/load.py": {
        "moored.kernel.graph": [],
        "moored.api.errors": ["the config imports only the kernel"],
        "moored.plugins.one.plugin": ["the config imports only the kernel"],
    },
    "plugins/one/plugin.py": {
        "moored.kernel.graph": [],
        "moored.plugins.one.part": [],
        "moored.plugins.two.plugin": ["plugins know each other only by ports"],
        "moored.api.errors": ["generated stubs stay at the edges"],
        "moored.config.load": ["plugins do not read the config"],
        "tests.something": ["nobody imports tests"],
        "contrib.something": ["nobody imports tests"],
    },
    "plugins/services/one/plugin.py": {
        "moored.api.errors": [],
        "moored.plugins.services.two.plugin": ["services know each other only by ports"],
        "moored.plugins.two.plugin": ["plugins know each other only by ports"],
    },
    "api/client/calls.py": {
        "moored.kernel.graph": [],
        "moored.api.errors": [],
        "moored.plugins.one.plugin": ["client and command line import no plugin"],
        "moored.config.load": ["client and command line import no plugin"],
    },
}
SKELETON = (*PLANTED, "api/errors.py", "plugins/one/part.py", "plugins/two/plugin.py", "plugins/services/two/plugin.py")


@pytest.mark.parametrize(
    ("module", "imported", "broken"),
    [(module, imported, broken) for module, cases in PLANTED.items() for imported, broken in cases.items()],
)
def test_planted_import_breaks_its_rule_alone(tmp_path: Path, module: str, imported: str, broken: list[str]) -> None:
    for path in (tmp_path / "moored" / name for name in SKELETON):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        for folder in path.relative_to(tmp_path / "moored").parents[:-1]:
            (tmp_path / "moored" / folder / "__init__.py").touch()
    (tmp_path / "moored" / module).write_text(f"import {imported}\n")

    result = lint_imports(tmp_path)

    names = [line.removesuffix(" BROKEN") for line in result.stdout.splitlines() if line.endswith(" BROKEN")]
    assert [name for name, start in zip(names, broken, strict=True) if not name.startswith(start)] == []
    assert result.returncode == bool(broken), result.stdout + result.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_room_refuses_its_bare_name(room: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    result = subprocess.run(
        [sys.executable, "-B", "-c", f"import {room}"],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert result.returncode == 1
    assert f"ImportError: import moored.{room}, not {room}" in result.stderr


def test_every_module_has_a_docstring() -> None:
    assert [str(module) for module in modules() if not ast.get_docstring(parsed(module))] == []


def test_no_import_is_relative() -> None:
    found = [
        f"{module}:{node.lineno}"
        for module in modules()
        for node in ast.walk(parsed(module))
        if isinstance(node, ast.ImportFrom) and node.level
    ]

    assert found == []


def test_every_error_class_has_a_code_on_the_wire() -> None:
    classes = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.MooredError) and kind is not errors.MooredError
    }

    assert set(WIRE) == classes
    assert {wire.code for wire in WIRE.values()} == set(range(1, 17))
