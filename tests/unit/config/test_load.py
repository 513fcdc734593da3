"""Loading files, imports and flags; what is wrong is found with its file and line and nothing is raised."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moored.config.load import Flags, load, load_text
from moored.config.main_section import TIMEOUTS, Main
from moored.config.report import report
from moored.kernel.duration import Duration

GRPC = "io.containerd.server.v1.grpc"
TTRPC = "io.containerd.server.v1.ttrpc"


@pytest.fixture
def write(tmp_path):
    def write_(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_


def errors(loaded):
    return [problem for problem in loaded.problems if problem.level == "error"]


def only_error(text, **kwargs):
    (error,) = errors(load_text(text, **kwargs))
    return error


# --- files -----------------------------------------------------------------------------------------------------------


def test_no_file_at_all_is_the_defaults(tmp_path):
    loaded = load(tmp_path / "config.toml", explicit=False)

    assert (loaded.ok, loaded.main, loaded.files) == (True, Main(), ())
    assert str(loaded.origin(("root",))) == "default"
    assert str(loaded.origin(("timeouts", "io.containerd.timeout.shim.load"))) == "default"


def test_a_file_that_was_asked_for_must_be_there(tmp_path):
    loaded = load(tmp_path / "config.toml", explicit=True)

    assert not loaded.ok
    assert str(tmp_path / "config.toml") in report(loaded.problems)
    assert "no such file" in report(loaded.problems)


def test_drop_ins_beside_the_main_file_are_read_without_being_named(write, tmp_path):
    write("conf.d/b.toml", "version = 4\noom_score = 2\n")
    write("conf.d/a.toml", "version = 4\noom_score = 1\nroot = '/a'\n")
    write("conf.d/c.txt", "this is no toml")

    without_main = load(tmp_path / "config.toml", explicit=False)
    write("config.toml", "version = 4\nroot = '/main'\n")
    with_main = load(tmp_path / "config.toml", explicit=True)

    assert (without_main.main.root, without_main.main.oom_score) == ("/a", 2)
    assert (with_main.main.root, with_main.main.oom_score) == ("/a", 2)
    assert str(with_main.origin(("oom_score",))) == f"{tmp_path}/conf.d/b.toml:2"
    assert [file.path.name for file in with_main.files] == ["config.toml", "a.toml", "b.toml"]
    assert [file.imported for file in with_main.files] == [False, True, True]


@pytest.mark.parametrize(
    ("imports", "explicit", "read"),
    [
        ("[]", True, []),
        ("[]", False, []),
        ("['x.toml']", True, ["x.toml"]),
        ("['x.toml']", False, ["d.toml", "x.toml"]),
    ],
)
def test_naming_imports_replaces_the_drop_ins_except_at_the_default_path(write, imports, explicit, read):
    write("conf.d/d.toml", "version = 4\n")
    write("x.toml", "version = 4\n")
    main = write("config.toml", f"version = 4\nimports = {imports}\n")

    assert [file.path.name for file in load(main, explicit=explicit).files[1:]] == read


def test_imports_are_relative_to_the_importing_file_and_queued(write):
    main = write("m/config.toml", "version = 4\nimports = ['sub/a.toml', 'b.toml']\noom_score = 1\n")
    write("m/sub/a.toml", "version = 4\nimports = ['c.toml', '../config.toml', 'a.toml']\noom_score = 2\n")
    write("m/b.toml", "version = 4\nimports = ['sub/c.toml', 'no/*.toml']\noom_score = 3\n")
    write("m/sub/c.toml", "version = 4\noom_score = 4\n")

    loaded = load(main, explicit=True)

    assert loaded.problems == []
    assert [file.path.name for file in loaded.files] == ["config.toml", "a.toml", "b.toml", "c.toml"]
    assert loaded.main.oom_score == 4
    assert loaded.main.imports == [
        "sub/a.toml",
        "b.toml",
        "c.toml",
        "../config.toml",
        "a.toml",
        "sub/c.toml",
        "no/*.toml",
    ]


def test_a_named_import_that_is_missing_is_an_error_where_it_is_named(write, tmp_path):
    main = write("config.toml", "version = 4\n\nimports = ['gone.toml']\n")

    (error,) = errors(load(main, explicit=True))

    assert str(error.origin) == f"{main}:3"
    assert error.message == f"file '{tmp_path}/gone.toml' cannot be read: no such file or directory"


def test_every_broken_file_is_reported_and_the_others_are_still_read(write, tmp_path):
    write("conf.d/1.toml", "a = \n")
    write("conf.d/2.toml", "version = 99\n")
    write("conf.d/3.toml", "version = 4\nplugins = 3\n")
    write("conf.d/4.toml", "version = 4\noom_score = 7\n")
    main = write("config.toml", "version = 4\nrot = '/x'\n")

    loaded = load(main, explicit=True)

    assert sorted(str(error.origin).removeprefix(f"{tmp_path}/") for error in errors(loaded)) == [
        "conf.d/1.toml:1:5",
        "conf.d/2.toml:1",
        "conf.d/3.toml:2",
        "config.toml:2",
    ]
    assert loaded.main is None
    assert loaded.tree["oom_score"] == 7


def test_each_file_is_migrated_by_itself(write):
    main = write("config.toml", "version = 4\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'native'\n")
    write("conf.d/old.toml", "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'p'\n")

    loaded = load(main, explicit=True)

    assert loaded.section("io.containerd.cri.v1.images") == {"snapshotter": "native", "pinned_images": {"sandbox": "p"}}
    assert [file.version for file in loaded.files] == [4, 2]
    assert loaded.problems == []


def test_strict_counts_only_in_the_main_file(write):
    write("conf.d/a.toml", "version = 4\nstrict = false\nunknown = 1\n")
    main = write("config.toml", "version = 4\n")

    loaded = load(main, explicit=True)
    (warning,) = [problem for problem in loaded.problems if problem.level == "warning"]

    assert loaded.strict
    assert (warning.key, warning.origin.line) == (("strict",), 2)
    assert [error.key for error in errors(loaded)] == [("unknown",)]


def test_without_strictness_unknown_keys_only_warn():
    loaded = load_text("version = 4\nstrict = false\nrot = '/x'\n[grpc]\naddress = '/a'\n[debug]\nlevel = 'loud'\n")

    assert [(problem.level, problem.key) for problem in loaded.problems] == [
        ("warning", ("rot",)),
        ("warning", ("grpc", "address")),
        ("error", ("debug", "level")),
    ]


def test_entries_that_defaults_have_stay_unless_overwritten():
    loaded = load_text("version = 4\n[timeouts]\n'io.containerd.timeout.shim.load' = '9s'\nmine = '1m'\n")

    timeouts = loaded.main.timeouts

    assert len(timeouts) == len(TIMEOUTS) + 1
    assert timeouts["io.containerd.timeout.shim.load"] == Duration(9)
    assert str(loaded.origin(("timeouts", "mine"))) == "config.toml:4"
    assert set(loaded.main.stream_processors) == set(Main().stream_processors)


# --- flags and derived values ----------------------------------------------------------------------------------------


def test_flags_win_and_are_named_as_the_origin(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    flags = Flags(root="r", state="/s/../t", address="/f.sock", log_level="debug")

    loaded = load_text("version = 4\nroot = '/x'\n[debug]\nlevel = 'warn'\n", flags=flags)

    assert loaded.problems == []
    assert (loaded.main.root, loaded.main.state, loaded.main.debug.level) == (f"{tmp_path}/r", "/t", "debug")
    assert loaded.section(GRPC) == {"address": "/f.sock"}
    assert [str(loaded.origin(key)) for key in (("root",), ("plugins", GRPC, "address"), ("debug", "level"))] == [
        "flag --root",
        "flag --address",
        "flag --log-level",
    ]


def test_a_bad_flag_is_reported_as_the_flag():
    error = only_error("version = 4\n", flags=Flags(log_level="loud"))

    assert str(error.origin) == "flag --log-level"


@pytest.mark.parametrize(
    ("text", "address", "ttrpc"),
    [
        ("version = 4\n", None, None),
        (f"version = 4\n[plugins.'{GRPC}']\naddress = '/a'\n", None, "/a.ttrpc"),
        (f"version = 4\n[plugins.'{GRPC}']\naddress = '/a'\n", "/f", "/f.ttrpc"),
        (f"version = 4\n[plugins.'{TTRPC}']\naddress = '/t'\n", "/f", "/t"),
        ("version = 2\n[grpc]\naddress = '/a'\n", None, "/a.ttrpc"),
        ("version = 2\n[grpc]\naddress = '/a'\n", "/f", "/f.ttrpc"),
        ("version = 2\n[grpc]\naddress = '/a'\n[ttrpc]\naddress = '/t'\n", "/f", "/t"),
    ],
)
def test_the_ttrpc_address_follows_the_grpc_one_unless_it_is_set(text, address, ttrpc):
    loaded = load_text(text, flags=Flags(address=address))

    assert loaded.section(TTRPC).get("address") == ttrpc


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "key", "message"),
    [
        ("version = 99\n", 1, "version", "version '99' is not known, wanted 1 to 4"),
        ("version = -1\n", 1, "version", "version '-1' is not known, wanted 1 to 4"),
        (
            "version = 4\nroot = '/a'\nstate = '/a/'\n",
            3,
            "state",
            "root and state are both '/a', wanted different folders",
        ),
        ("version = 4\nroot = ''\n", 2, "root", "root is empty, wanted an absolute path"),
        ("version = 4\nstate = 'run'\n", 2, "state", "state 'run' is relative, wanted an absolute path"),
        ("version = 4\ntemp = 'tmp'\n", 2, "temp", "temp 'tmp' is relative, wanted an absolute path"),
        ("version = 4\nroot = '/dev/null'\n", 2, "root", "root '/dev/null' is a file, wanted a folder"),
        ("version = 4\nroot = 3\n", 2, "root", "3 is an integer, wanted a string"),
        ("version = 4\noom_score = 1001\n", 2, "oom_score", "'1001' is out of range, wanted at most 1000"),
        (
            "version = 4\n[timeouts]\nx = '5'\n",
            3,
            "timeouts.x",
            "missing unit in duration '5', wanted one of ns, us, ms, s, m, h",
        ),
        (
            "version = 4\n[lifecycle]\nstart_timeout = '-1s'\n",
            3,
            "lifecycle.start_timeout",
            "'-1s' is out of range, wanted at least 0s",
        ),
        (
            "version = 4\n[debug]\nlevel = 'inof'\n",
            3,
            "debug.level",
            (
                "'inof' is not one of 'trace', 'debug', 'info', 'warn', 'warning', 'error', 'fatal', 'panic',"
                " did you mean 'info'?"
            ),
        ),
        ("version = 4\nrooot = '/x'\n", 2, "rooot", "unknown key, did you mean 'root'?"),
        ("version = 4\n[debg]\n", 2, "debg", "unknown key, did you mean 'debug'?"),
        ("version = 4\n[debug]\nlevl = ''\n", 3, "debug.levl", "unknown key, did you mean 'level'?"),
        (
            "version = 4\n[grpc]\naddress = '/a'\n",
            3,
            "grpc.address",
            'not used at version 4, did you mean plugins."io.containerd.server.v1.grpc".address?',
        ),
        (
            "version = 4\n[debug]\naddress = '/a'\n",
            3,
            "debug.address",
            'not used at version 4, did you mean plugins."io.containerd.server.v1.debug".address?',
        ),
        ("version = 2\n[grpc]\nadress = '/a'\n", 3, "grpc.adress", "unknown key, did you mean 'address'?"),
        (
            "version = 2\ndisabled_plugins = [\n 'a.b',\n 'cri']\n",
            4,
            "disabled_plugins",
            (
                "plugin 'cri' is not a URI, wanted one like 'io.containerd.grpc.v1.cri',"
                " did you mean 'io.containerd.grpc.v1.cri'?"
            ),
        ),
        (
            "version = 4\nrequired_plugins = ['x']\n",
            2,
            "required_plugins",
            "plugin 'x' is not a URI, wanted one like 'io.containerd.grpc.v1.cri'",
        ),
        (
            "version = 4\n[proxy_plugins.p]\ntype = 'snapshoter'\naddress = '/p'\n",
            3,
            "proxy_plugins.p.type",
            (
                "proxy plugin 'p' has type 'snapshoter', wanted one of 'snapshot', 'content', 'diff', 'sandbox',"
                " did you mean 'snapshot'?"
            ),
        ),
        (
            "version = 4\n[proxy_plugins.p]\ntype = 'diff'\n",
            2,
            "proxy_plugins.p.address",
            "proxy plugin 'p' has no address",
        ),
        ("version = 4\nplugins = 3\n", 2, "plugins", "3 is not a table"),
        ("version = 4\n[plugins]\n'a.v1.b' = 3\n", 3, 'plugins."a.v1.b"', "3 is not a table"),
    ],
)
def test_a_bad_value_is_an_error_at_its_line(text, line, key, message):
    error = only_error(text)

    assert report([error]) == f"config.toml:{line}: {key}: {message}\n"


@pytest.mark.parametrize(
    ("text", "place"),
    [("a = \n", "config.toml:1:5"), ("version = 4\noom_score = 1\noom_score = 2\n", "config.toml:3:1")],
)
def test_bad_toml_and_a_duplicate_key_are_errors_with_line_and_column(text, place):
    assert str(only_error(text).origin) == place


@pytest.mark.parametrize("version", [3, 4])
def test_a_socket_path_beyond_the_kernels_limit_is_refused_with_its_length(version):
    section = "grpc" if version == 3 else f"plugins.'{GRPC}'"
    good, too_long, only_ttrpc = "/" + "a" * 97, "/" + "a" * 299, "/" + "a" * 103

    found = {
        length: [
            (error.key[1], error.message.split(":")[0])
            for error in errors(load_text(f"version = {version}\n[{section}]\naddress = '{address}'\n"))
        ]
        for length, address in (("good", good), ("long", too_long), ("ttrpc", only_ttrpc))
    }

    assert found == {
        "good": [],
        "long": [(GRPC, "socket path is 300 bytes long, wanted at most 104")],
        "ttrpc": [(TTRPC, "socket path is 110 bytes long, wanted at most 104")],
    }


def test_every_address_is_measured():
    sections = "".join(
        f"[plugins.'{name}']\naddress = '/{'é' * 52}'\n" for name in (GRPC, TTRPC, "io.containerd.server.v1.debug")
    )

    assert len(errors(load_text(f"version = 4\n{sections}"))) == 3


def test_all_that_is_wrong_is_found_in_one_go():
    text = "version = 4\nroot = ''\nxyz = 1\ndisabled_plugins = ['cri']\n"
    text += "[proxy_plugins.p]\ntype = 'x'\n[timeouts]\na = 'b'\n"

    assert len(errors(load_text(text))) == 6


def test_a_timeout_that_only_looks_like_one_is_warned_of():
    (warning,) = load_text("version = 4\n[timeouts]\n'io.containerd.timeout.shim.lod' = '1s'\n").problems

    assert warning.level == "warning"
    assert "did you mean 'io.containerd.timeout.shim.load'" in warning.message


def test_what_newer_containerd_has_dropped_is_only_warned_of():
    (warning,) = load_text("version = 2\nplugin_dir = ''\n").problems

    assert warning.level == "warning"


# --- places ----------------------------------------------------------------------------------------------------------


def test_a_copy_of_the_tree_can_be_changed():
    loaded = load_text("version = 4\n[plugins.'io.x.v1.y']\nl = [1]\n")

    loaded.tree["plugins"]["io.x.v1.y"]["l"].append(2)

    assert loaded.section("io.x.v1.y") == {"l": [1]}


def test_starting_without_problems_loads_no_slow_library(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text("version = 4\noom_score = 1\n[plugins.'io.containerd.gc.v1.scheduler']\npause_threshold = 0.1\n")
    code = (
        "import sys; from moored.config.load import load; assert load(sys.argv[1], explicit=True).ok;"
        "print(*sorted({'tomlkit', 'msgspec', 'difflib', 'hashlib', 'jsonschema', 'structlog', 'asyncio', 'grpc',"
        " 'moored.config.scanner', 'moored.config.known', 'moored.config.dump'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "contrib" / "dev")}

    done = subprocess.run([sys.executable, "-c", code, config], env=env, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""
