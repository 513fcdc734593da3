"""Addresses and time limits as users write them, and where options may stand."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from moored.api.cli.settings import Settings, global_options, pass_settings, positive_seconds, socket_path


@pytest.fixture
def ask():
    """Runs a group with one command; returns the settings that the command saw."""
    seen = []

    @click.group()
    @global_options
    def root():
        pass

    @root.command()
    @global_options
    @pass_settings
    def leaf(settings: Settings):
        seen.append(settings)

    def run(*args, **env):
        clean = {"MOORED_ADDRESS": None, "CONTAINERD_ADDRESS": None}
        result = CliRunner().invoke(root, args, env=clean | env)
        assert result.exit_code == 0, result.output
        return seen.pop()

    return run


@pytest.mark.parametrize("address", ["/run/x.sock", "unix:///run/x.sock", "unix:/run/x.sock", "/run/./y/../x.sock"])
def test_an_address_is_a_path_with_or_without_its_scheme(address):
    assert socket_path(address) == "/run/x.sock"


def test_a_relative_address_counts_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert socket_path("x.sock") == f"{tmp_path}/x.sock"


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "unix://", ""])
def test_other_addresses_are_refused(address):
    with pytest.raises(ValueError, match="must be the path of a unix socket"):
        socket_path(address)


def test_a_path_that_no_socket_can_have_is_refused():
    longest = "/" + "x" * 106

    assert socket_path(longest) == longest
    with pytest.raises(ValueError, match="longer than the 107 bytes"):
        socket_path("/" + "x" * 105 + "é")


def test_a_time_limit_is_a_positive_number_of_seconds():
    assert positive_seconds("2.5") == positive_seconds("2.5s") == 2.5
    for wrong in ("0", "-1", "nan", "inf", "soon", ""):
        with pytest.raises(ValueError, match="positive number of seconds"):
            positive_seconds(wrong)


def test_the_default_is_moored_s_own_socket(ask):
    assert ask("leaf") == Settings("/run/moored/moored.sock", 10.0, False, False)


def test_options_may_stand_before_or_after_the_command(ask):
    wanted = Settings("/a.sock", 3.0, True, True)

    assert ask("-a", "/a.sock", "--timeout", "3", "--json", "--no-color", "leaf") == wanted
    assert ask("leaf", "-a", "/a.sock", "--timeout", "3", "--json", "--no-color") == wanted
    assert ask("-a", "/b.sock", "--json", "leaf", "-a", "/a.sock", "--timeout", "3", "--no-color") == wanted


def test_the_environment_gives_the_address_and_the_command_line_overrules_it(ask):
    assert ask("leaf", CONTAINERD_ADDRESS="/c.sock").address == "/c.sock"
    assert ask("leaf", CONTAINERD_ADDRESS="/c.sock", MOORED_ADDRESS="/m.sock").address == "/m.sock"
    assert ask("-a", "/a.sock", "leaf", MOORED_ADDRESS="/m.sock").address == "/a.sock"
    assert ask("leaf", "-a", "/a.sock", MOORED_ADDRESS="/m.sock").address == "/a.sock"
