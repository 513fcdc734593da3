"""The whole of moorctl's commands: lists, help, what they import, pages, completion."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from moored.api.cli.completion import SHELLS, script
from moored.api.cli.failing import Failed, start_failures, start_status
from moored.api.cli.main import COMMANDS, root
from moored.api.cli.man import commands, page, reference
from moored.kernel.errors import Unknown

LEAVES = [(path, command) for path, command, _ in commands() if not isinstance(command, click.Group)]
NO_JSON = {"content get", "completion", "man", "attach", "config dump"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_of_a_command_what_its_own_help_begins_with(name):
    command = COMMANDS[name].load()

    assert command.name == name
    assert COMMANDS[name].help.endswith(".")
    assert command.help


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[" ".join(path[1:]) for path, _ in LEAVES])
def test_every_command_has_examples_that_are_its_own_and_tells_its_json(path, command):
    epilog = command.epilog or ""

    assert "Examples:" in epilog
    assert " ".join(path[1:]) in epilog
    if " ".join(path[1:]) not in NO_JSON and path[-1] != "tree":
        assert "JSON" in epilog


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[" ".join(path[1:]) for path, _ in LEAVES])
def test_help_of_every_command_is_shown(path, command):
    result = CliRunner().invoke(root, [*path[1:], "--help"])

    assert result.exit_code == 0
    assert "Usage: " in result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_a_wrong_name_is_answered_with_one_that_is_like_it():
    result = CliRunner().invoke(root, ["imags"])

    assert result.exit_code == 2
    assert "did you mean 'images'?" in result.output


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_imports_nothing_slow(words):
    assert imported(words) & {"grpc", "rich", "asyncio", "msgspec", "moored.api.client"} == set()


def test_ps_does_without_the_client_library():
    found = imported(["-a", "/nowhere.sock", "run", "--help"])

    assert "moored.api.client" not in found
    assert "moored.api.client" not in imported_by("moored.api.cli.ps, moored.api.cli.listing, moored.api.cli.states")


def imported(words: list[str]) -> set[str]:
    code = (
        "import sys\nfrom moored.api.cli.main import root\n"
        f"try: root.main({words!r}, 'moorctl')\nexcept SystemExit: pass\n"
        "print('MODULES', *sys.modules)"
    )
    return modules(code)


def imported_by(names: str) -> set[str]:
    return modules(f"import sys, {names}\nprint('MODULES', *sys.modules)")


def modules(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("MODULES")[2].split())


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_scripts_ask_moorctl(shell):
    text = script(shell)

    assert "_MOORCTL_COMPLETE=" in text
    assert f"{shell}_complete" in text


def test_a_page_has_the_parts_that_man_expects():
    path, command, ctx = next(one for one in commands() if one[0] == ("moorctl", "logs"))

    text = page(path, command, ctx)

    for part in (".TH", ".SH NAME", ".SH SYNOPSIS", ".SH OPTIONS", ".SH EXAMPLES", "\\-\\-follow"):
        assert part in text


def test_the_reference_has_every_command():
    text = reference()

    assert [f"# {' '.join(path)}\n" for path, _, _ in commands() if f"# {' '.join(path)}\n" not in text] == []


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('exec: "x": executable file not found in $PATH', 127),
        ("executable file `x` not found in $PATH: No such file or directory", 127),
        ("exec /x: no such file or directory", 127),
        ('exec: "/etc": permission denied', 126),
        ('exec: "/etc": is a directory', 126),
        ("exec /x: exec format error", 126),
        ("no space left on device", 125),
        ("mount /a: permission denied", 125),
    ],
)
def test_the_status_of_a_start_that_failed_tells_why(text, status):
    assert start_status(Unknown(text)) == status


@pytest.mark.parametrize(
    ("own", "text", "status"), [(125, "x", 125), (1, "x", 1), (1, "exec /x: no such file or directory", 127)]
)
def test_an_error_of_a_start_ends_moorctl_with_its_status_or_that_of_errors_of_its_own(own, text, status):
    with pytest.raises(Failed) as raised, start_failures(own):
        raise Unknown(text)

    assert (raised.value.message, raised.value.exit_code) == (text, status)


def test_the_reference_in_docs_is_the_present_one():
    page = Path(__file__).parents[3] / "docs" / "moorctl-reference.md"

    assert page.read_text() == reference(), "moorctl man --markdown > docs/moorctl-reference.md"
