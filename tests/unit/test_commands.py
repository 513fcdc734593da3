"""Installed commands: found by entry point, given all that follows their name, imported only when called."""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from collections.abc import Callable

import pytest

from moored.api.cli.publish import MAX_INPUT, publish
from moored.kernel.daemon import command as daemon
from moored.kernel.daemon.arguments import parse
from moored.kernel.errors import InvalidArgument
from moored.kernel.registry import Source

Offer = tuple[str, Source, Callable[[], object]]


def offer(name: str, function: Callable[[argparse.Namespace], int], distribution: str = "crates") -> Offer:
    return name, Source(distribution, "1.0", "crates:run"), lambda: function


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(*offers: Offer) -> None:
        monkeypatch.setattr(daemon, "entry_points", lambda group: list(offers) if group == "moored.commands" else [])

    return put


def test_command_gets_flags_and_everything_after_its_name(install: Callable[..., None]) -> None:
    seen: list[argparse.Namespace] = []

    def run(args: argparse.Namespace) -> int:
        seen.append(args)
        return 7

    install(offer("stow", run))
    line = ["-a", "/x.sock", "stow", "--root", "-h", "a b", "--", "--config=1"]

    assert daemon.run(line, 0.0) == 7
    assert seen[0].rest == ["--root", "-h", "a b", "--", "--config=1"]
    assert (seen[0].address, seen[0].root, seen[0].config) == ("/x.sock", None, None)


def test_command_that_cannot_be_imported_is_named(
    install: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> object:
        raise ImportError("no module named crane")

    install(("stow", Source("crates", "1.0", "crates:run"), fail))

    assert daemon.run(["stow"], 0.0) == 1
    told = capsys.readouterr().err
    assert told == "moored: command 'stow' cannot be imported: ImportError: no module named crane\n"


def test_command_that_two_offer_is_not_run(install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    install(offer("stow", lambda _: 0), offer("stow", lambda _: 0, "pirates"))

    assert daemon.run(["stow"], 0.0) == 1
    told = "command 'stow' is offered by crates:run of crates 1.0 and by crates:run of pirates 1.0"
    assert told in capsys.readouterr().err


def test_config_is_nobodys_to_offer(install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    install(offer("config", lambda _: 7))

    with pytest.raises(SystemExit) as ended:
        daemon.run(["config"], 0.0)
    assert ended.value.code == 2
    capsys.readouterr()


def test_help_lists_installed_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"], {"stow": "command of crates"})
    assert "command of crates" in capsys.readouterr().out


def test_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["sail"], {"stow": ""})
    assert ended.value.code == 2
    assert "invalid choice: 'sail'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("topic", "given", "text"),
    [
        ("", b"", "topic required to publish event: invalid argument"),
        ("/a", b"\xff", "standard input is no google.protobuf.Any"),
        ("/a", b"x" * (MAX_INPUT + 1), "standard input is longer than the 16777216 bytes"),
    ],
)
def test_publish_refuses_what_cannot_be_an_event(topic: str, given: bytes, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        publish("/nowhere", topic, "one", io.BytesIO(given))


def test_publish_is_imported_only_when_called() -> None:
    assert daemon._Commands().summaries()["publish"] == "command of moored"
    code = "import sys\nfrom moored.kernel.daemon import command\ncommand._Commands()\nprint('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
