"""The wire contract: stubs are what the protos say, protos are what containerd says, and all of it imports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "api"
CHECKER = ROOT.parent / "shared" / "tools" / "check_contract.py"
PACKAGES = 31

needs_checker = pytest.mark.skipif(
    not CHECKER.is_file(), reason="no ../shared/tools/check_contract.py beside this checkout"
)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "contrib" / "dev")}
    return subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, check=False
    )


def python(code: str, *arguments: str) -> list[str]:
    """The words that code prints in a process of its own, where warnings are errors."""
    done = run("-W", "error", "-c", code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def stub_modules() -> list[str]:
    files = sorted(path for path in API.rglob("*.py") if path.stem.endswith(("_pb2", "_pb2_grpc")))
    return ["moored." + ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout of only what the two commands need, to be changed at will."""
    shutil.copytree(API, tmp_path / "api", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "contrib" / "dev", tmp_path / "contrib" / "dev", ignore=shutil.ignore_patterns("moored"))
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_committed_stubs_are_what_the_protos_generate() -> None:
    done = run(ROOT / "contrib/dev/protogen.py", "--check")

    assert done.returncode == 0, done.stdout + done.stderr


def test_check_lists_changed_missing_and_stale_stubs(copy: Path) -> None:
    replace(copy / "api/services/version/v1/version.proto", "string revision = 2;", "string commit = 2;")
    (copy / "api/types/mount_pb2.py").unlink()
    (copy / "api/types/gone_pb2.pyi").touch()

    done = run(copy / "contrib/dev/protogen.py", "--check")

    assert done.returncode == 1
    assert done.stdout.splitlines()[:-1] == [
        "changed api/services/version/v1/version_pb2.py",
        "changed api/services/version/v1/version_pb2.pyi",
        "stale   api/types/gone_pb2.pyi",
        "missing api/types/mount_pb2.py",
    ]


def test_generating_repairs_the_tree_to_the_same_bytes(copy: Path) -> None:
    (copy / "api/types/mount_pb2.py").write_text("broken")
    (copy / "api/types/gone_pb2.pyi").touch()

    done = run(copy / "contrib/dev/protogen.py")

    assert done.returncode == 0, done.stderr
    assert (copy / "api/types/mount_pb2.py").read_bytes() == (API / "types/mount_pb2.py").read_bytes()
    assert not (copy / "api/types/gone_pb2.pyi").exists()


def test_an_unused_import_in_a_proto_is_refused(copy: Path) -> None:
    proto = copy / "api/services/version/v1/version.proto"
    replace(
        proto,
        'import "google/protobuf/empty.proto";',
        'import "google/protobuf/empty.proto";\nimport "moored/api/types/mount.proto";',
    )

    done = run(copy / "contrib/dev/protogen.py", "--check")

    assert done.returncode == 2
    assert "mount.proto is unused" in done.stderr


@needs_checker
def test_every_package_of_the_contract_is_complete() -> None:
    done = run(ROOT / "contrib/dev/contract.py")

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{PACKAGES}/{PACKAGES} packages" in done.stdout


@needs_checker
def test_a_wrong_field_number_breaks_the_contract(copy: Path) -> None:
    replace(copy / "api/services/version/v1/version.proto", "string revision = 2;", "string revision = 3;")

    done = run(copy / "contrib/dev/contract.py", "--checker", CHECKER)

    assert done.returncode == 1
    assert "VersionResponse.revision: number 3, contract 2" in done.stdout
    assert f"{PACKAGES - 1}/{PACKAGES} packages" in done.stdout


@pytest.mark.parametrize("step", [1, -1], ids=["sorted", "reversed"])
def test_all_stubs_import_together_in_any_order(step: int) -> None:
    names = stub_modules()[::step]

    imported = python(
        "import importlib, sys\nfor n in sys.argv[1:]: print(importlib.import_module(n).__name__)", *names
    )

    assert imported == names
    assert len(names) > PACKAGES


def test_service_stub_loads_only_what_its_messages_need() -> None:
    code = "import sys, moored.api.services.tasks.v1.tasks_pb2_grpc\nprint(*(n for n in sys.modules if '_pb2' in n))"

    loaded = {name for name in python(code) if name.startswith("moored.")}

    assert loaded == {
        "moored.api.services.tasks.v1.tasks_pb2",
        "moored.api.services.tasks.v1.tasks_pb2_grpc",
        "moored.api.types.descriptor_pb2",
        "moored.api.types.metrics_pb2",
        "moored.api.types.mount_pb2",
        "moored.api.types.task.task_pb2",
    }


def test_shim_messages_load_neither_grpc_nor_asyncio() -> None:
    code = "import sys, moored.api.runtime.task.v3.shim_pb2\nprint(*sys.modules)"

    loaded = set(python(code))

    assert "google.protobuf" in loaded
    assert loaded.isdisjoint({"grpc", "asyncio"})


def test_every_folder_of_stubs_is_a_documented_package() -> None:
    folders = {parent for path in API.rglob("*_pb2.py") for parent in path.parents if parent.is_relative_to(API)}

    undocumented = [
        str(folder.relative_to(ROOT)) for folder in sorted(folders) if '"""' not in (folder / "__init__.py").read_text()
    ]

    assert undocumented == []
