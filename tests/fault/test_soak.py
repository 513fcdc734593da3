"""Many containers, several at once, with execs: no call fails, the daemon keeps nothing of them, nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from peers import CTR

ROOT = Path(__file__).parents[2]


@pytest.mark.root
@pytest.mark.peer
@pytest.mark.timeout(300)
@pytest.mark.skipif(
    os.geteuid() != 0 or not CTR or not shutil.which("busybox") or not shutil.which("runc"),
    reason="needs root, ctr, busybox and runc",
)
def test_short_soak() -> None:
    command = [sys.executable, "-m", "contrib.bench.soak", "--containers", "96", "--samples", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(done.stdout)["samples"][-1]["containers"] == 96
