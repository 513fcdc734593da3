"""Every row of the catalogue has tests, and they are there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fault.catalogue import ROWS

TESTS = Path(__file__).parents[1]
WANTED = (*range(1, 86), *range(101, 133))


@pytest.fixture(scope="module")
def collected() -> set[str]:
    """The id of every test of the files that the catalogue names, from the folder of tests on."""
    files = sorted({name.partition("::")[0] for names in ROWS.values() for name in names})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.removeprefix("tests/") for line in done.stdout.splitlines() if "::" in line}


def test_every_row_is_in_the_catalogue() -> None:
    assert tuple(ROWS) == WANTED


def test_every_row_names_tests_that_exist(collected: set[str]) -> None:
    missing = [f"{row}: {name}" for row, names in ROWS.items() for name in names if not _exists(name, collected)]

    assert all(ROWS.values())
    assert missing == []


def _exists(name: str, collected: set[str]) -> bool:
    """Whether a test is among those collected: by its id, or by a part of it that ends at its parameters."""
    function, bracket, parameters = name.partition("[")
    mine = [found for found in collected if found.partition("[")[0] == function or found.startswith(f"{function}::")]
    if not bracket:
        return bool(mine)
    wanted = parameters.removesuffix("]")
    return any(found.partition("[")[2].removesuffix("]").endswith(wanted) for found in mine)
