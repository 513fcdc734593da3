"""What is built is what is in git, under one import namespace, and works where it is installed."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("kernel", "plugins", "config", "api")


def tracked() -> set[str]:
    """Files that git knows (and that are still there), as paths from the checkout's root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {line for line in listed.stdout.splitlines() if (ROOT / line).is_file()}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder), cwd=ROOT)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, as pip does it."""
    folder = tmp_path_factory.mktemp("wheel")
    run("tar", "-xf", str(sdist), "-C", str(folder))
    source = next(path for path in folder.iterdir() if path.is_dir())
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=source)
    return next(folder.glob("*.whl"))


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_the_rooms_as_git_has_them_and_nothing_else(wheel: Path) -> None:
    expected = {f"moored/{path}" for path in tracked() if path.split("/")[0] in ROOMS}

    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}

    assert packed == expected


def test_wheel_has_no_init_at_the_top_of_the_namespace(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert "moored/__init__.py" not in archive.namelist()


def test_source_distribution_holds_what_a_build_and_its_tests_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {"pyproject.toml", "README.md", "LICENSE", "kernel/plugin.py", "tests/daemons.py"} <= names


def test_installed_wheel_runs_and_knows_its_plugins(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    # The libraries come from here, moored itself from the wheel alone.
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel))
    where = "import moored.kernel as k; print(k.__file__)"

    assert str(tmp_path) in run(str(python), "-c", where)
    assert run(str(python.parent / "moored"), "--version").startswith("moored 2.3.4+moored.")
    assert "io.containerd.server.v1.grpc" in run(str(python.parent / "moored"), "config", "default")
    assert "Usage" in run(str(python.parent / "moorctl"), "--help")
