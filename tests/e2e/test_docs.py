"""What the documents tell people to type is typed here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemons import Daemon, outcome

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("docs/*.md"))
BIN = Path(sys.executable).parent


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every line of every shell block of docs that runs one of our programs or ctr against a daemon."""
    lines = [
        line.partition(" #")[0].strip() for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()
    ]
    ours = {line for line in lines if line.startswith(("moored ", "moorctl "))}
    return sorted(line for line in ours if " metadata " not in line)  # tests/e2e/test_metadata_command.py runs these


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Daemon]]:
    folder = tmp_path_factory.mktemp("docs")
    started: list[Daemon] = []

    def start() -> Daemon:
        if not started:
            started.append(Daemon(folder).start())
        return started[0]

    yield start
    for one in started:
        one.stop()


@pytest.mark.parametrize("line", commands())
def test_documented_command_runs(daemon: Callable[[], Daemon], line: str) -> None:
    one = daemon()
    words = line.replace("FILE", str(one.config)).replace("overlayfs", "healthcheck").split()
    program = [sys.executable, "-m", "moored.kernel.daemon.main", "-c", str(one.config)]
    if words[0] == "moorctl":
        program = [sys.executable, "-c", "from moored.api.cli.main import main; main()"]
    env = {**os.environ, "MOORED_ADDRESS": str(one.socket)}

    done = subprocess.run([*program, *words[1:]], capture_output=True, text=True, env=env, check=False, timeout=60)

    assert done.returncode == 0, done.stderr
    assert done.stdout or done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_config_is_valid(tmp_path: Path, page: Path) -> None:
    for number, block in enumerate(blocks(page, "toml")):
        if "[project]" in block:
            continue
        file = tmp_path / f"{number}.toml"
        file.write_text(f"version = 4\n{block}")
        command = [sys.executable, "-m", "moored.kernel.daemon.main", "-c", str(file), "config", "check"]

        done = subprocess.run(command, capture_output=True, text=True, check=False)

        assert done.returncode == 0, done.stdout


def test_plugin_of_the_guide_works_as_printed(tmp_path: Path, environment: Callable[..., str]) -> None:
    page = ROOT / "docs" / "plugins.md"
    project, code = blocks(page, "toml")[0], blocks(page, "python")[0]
    package = tmp_path / "package"
    package.mkdir()
    build = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
    (package / "pyproject.toml").write_text(
        f'{build}{project}\n[tool.hatch.build.targets.wheel]\ninclude = ["crane.py"]\n'
    )
    (package / "crane.py").write_text(code)

    with Daemon(tmp_path, python=environment(str(package))) as one:
        assert outcome(one.plugins()["io.example.crane.v1.harbour"]) == "ok"


def test_links_between_documents_lead_somewhere() -> None:
    pages = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    links = {(page, link) for page in pages for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())}

    assert links
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []
