"""Files as they are found on nodes, with the version 4 values and the report that they must give."""

import tomllib
from pathlib import Path

import pytest

from moored.config.load import load
from moored.config.main_section import defaults
from moored.config.report import report

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


def test_the_golden_cases_are_found():
    assert {"v1", "kubeadm_v2", "k3s_v2", "k3s_v3", "nvidia_v4_over_v2", "v3_old_sections"} <= set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_a_real_file_gives_the_golden_values(case):
    loaded = load(GOLDEN / case / "main.toml", explicit=True)

    values = {key: value for key, value in loaded.tree.items() if key not in defaults()}

    assert values == tomllib.loads((GOLDEN / case / "expected.toml").read_text())
    assert loaded.ok


@pytest.mark.parametrize("case", CASES)
def test_a_real_file_gives_the_golden_report(case):
    loaded = load(GOLDEN / case / "main.toml", explicit=True)

    moves = [
        f"{note.ref.origin()}: {note.message}\n" for file in loaded.files for note in file.notes if note.level == "note"
    ]
    text = (report(loaded.problems) + "".join(moves)).replace(f"{GOLDEN / case}/", "")

    assert text == (GOLDEN / case / "report.txt").read_text()


def test_a_drop_in_newer_than_the_main_file_is_taken():
    """containerd 2.3 exits on it, which has taken nodes down."""
    loaded = load(GOLDEN / "nvidia_v4_over_v2" / "main.toml", explicit=True)

    containerd = loaded.section("io.containerd.cri.v1.runtime")["containerd"]

    assert loaded.ok
    assert containerd["default_runtime_name"] == "nvidia"
    assert containerd["runtimes"]["runc"]["options"]["SystemdCgroup"] is True
    assert loaded.section("io.containerd.cri.v1.images")["pinned_images"] == {"sandbox": "registry.k8s.io/pause:3.9"}
    assert [problem.level for problem in loaded.problems] == ["warning"]
