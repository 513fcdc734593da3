"""The measurements run, and say what they were asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")
def test_every_group_runs_and_gives_its_values() -> None:
    groups = ["writes", "lists", "ingest", "unpack", "gc"]
    command = [
        sys.executable,
        "-m",
        "contrib.bench",
        *groups,
        "--alone",
        "--rounds",
        "1",
        "--scale",
        "0.01",
        "--json",
        "-",
    ]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["groups"]
    assert sorted(found) == sorted(groups)
    for group, name in zip(
        groups, ("write_16_per_s", "list_images_ms", "ingest_32k_8_mb_per_s", "unpack_layers_s", "gc_s"), strict=True
    ):
        assert found[group][name]["moored"] > 0
        assert found[group]["peak_rss_mb"]["moored"] > 10


def test_unknown_groups_are_refused() -> None:
    command = [sys.executable, "-m", "contrib.bench", "speed"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "group 'speed' is unknown" in done.stderr
