"""Values with their origins stay TOML, and a check reads as compilers' messages do."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moored.api.cli.config import checked, origins, toml, verdict
from moored.api.cli.records import Change, Check, Problem, Value

CHECK = Check(
    (
        Problem(
            "error", "plugins.x.deley", "unknown key 'deley', did you mean 'delay'?", "/etc/moored/config.toml", 12
        ),
        Problem("warning", "", "file is\nempty", "/etc/moored/conf.d/a.toml", 0),
        Problem("warning", "grpc.uid", "is ignored", "", 0),
    ),
    (
        Change("io.containerd.gc.v1.scheduler", "restarted", ("startup_delay", "schedule_delay")),
        Change("io.containerd.nri.v1.nri", "stopped", ()),
        Change("io.containerd.content.v1.content", "kept", ()),
    ),
)


def test_origins_stand_beside_their_values():
    values = [
        Value("root", "/var/lib/moored", "flag --root"),
        Value('plugins."io.x.v1.y".delay', "100ms", "/etc/moored/config.toml:7"),
        Value("grpc.uid", 0, "default"),
        Value("imports", None, "default"),
    ]

    assert origins(values) == (
        'root = "/var/lib/moored"             # flag --root\n'
        'plugins."io.x.v1.y".delay = "100ms"  # /etc/moored/config.toml:7\n'
        "grpc.uid = 0                         # default\n"
        "# imports = unset                    # default\n"
    )
    assert tomllib.loads(origins(values)) == {
        "root": "/var/lib/moored",
        "plugins": {"io.x.v1.y": {"delay": "100ms"}},
        "grpc": {"uid": 0},
    }


json_values = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(json_values)
def test_any_value_read_back_from_toml_is_the_same(value):
    assert tomllib.loads(f"key = {toml(value)}") == {"key": value}


def test_a_check_is_one_line_a_finding():
    assert checked(CHECK) == (
        "error: /etc/moored/config.toml:12: plugins.x.deley: unknown key 'deley', did you mean 'delay'?\n"
        "warning: /etc/moored/conf.d/a.toml: file is empty\n"
        "warning: grpc.uid: is ignored\n"
        "restarted    io.containerd.gc.v1.scheduler (startup_delay, schedule_delay)\n"
        "stopped      io.containerd.nri.v1.nri\n"
        "kept         io.containerd.content.v1.content\n"
    )


def test_a_change_of_the_daemon_itself_names_no_plugin():
    assert checked(Check((), (Change("", "restart the daemon", ("strict",)),))) == "restart the daemon (strict)\n"


def test_only_errors_spoil_a_check():
    assert not CHECK.ok
    assert Check(CHECK.problems[1:], ()).ok


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (CHECK, "1 error, 2 warnings; 2 plugins would change"),
        (
            Check((), (Change("", "restart the daemon", ("strict",)), Change("io.x.v1.y", "stop", ()))),
            "no errors, no warnings; 1 plugin would change, so would the daemon itself",
        ),
        (Check((), ()), "no errors, no warnings; no plugins would change"),
    ],
)
def test_the_verdict_counts(check, text):
    assert verdict(check) == text
