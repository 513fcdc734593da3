"""Environments with separately built packages installed by pip, and one daemon a module that `moorctl` asks."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.moorctl import Moorctl, moorctl, nothing_is_left

PACKAGES = Path(__file__).parents[1] / "packages"
IMPORT_ROOT = Path(__file__).parents[2] / "contrib" / "dev"


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A function (package names) -> python of a new environment that has moored and these packages; made once each."""
    made: dict[tuple[str, ...], str] = {}

    def make(*packages: str) -> str:
        if packages not in made:
            made[packages] = _make(tmp_path_factory.mktemp("env"), packages)
        return made[packages]

    return make


def _make(folder: Path, packages: tuple[str, ...]) -> str:
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # The libraries, and moored itself, are those of the environment that runs the tests.
    (site / "tests.pth").write_text(f"{sysconfig.get_path('purelib')}\n{IMPORT_ROOT}\n")
    if packages:
        paths = [str(PACKAGES / name) for name in packages]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
        command = [*pip, "install", "--quiet", "--no-deps", "--no-build-isolation", *paths]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return str(python)


@pytest.fixture(scope="module")
def world() -> Iterator[Moorctl]:
    """`moorctl` on a daemon of the module's own."""
    with moorctl() as made:
        yield made


@pytest.fixture
def nothing_of_moorctl_is_left(world: Moorctl) -> Iterator[None]:
    """Fail a test that leaves containers behind; a module that wants more says so in one of the same name."""
    yield
    nothing_is_left(world)
