"""`moorctl` as a program against a gRPC server with canned answers: output, colours, JSON, errors, closed pipes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from moored.api.moored.daemon.v1 import daemon_pb2 as pb
from moored.api.moored.daemon.v1 import daemon_pb2_grpc
from moored.api.services.version.v1 import version_pb2, version_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-c", "from moored.api.cli.main import main; main()"]
NOBODY = 65534

CONTENT = "io.containerd.content.v1"
METADATA = "io.containerd.metadata.v1"
GRPC = "io.containerd.grpc.v1"


def plugins() -> list[pb.Plugin]:
    content = pb.Plugin(
        uri=f"{CONTENT}.content",
        type=CONTENT,
        id="content",
        outcome=pb.OUTCOME_OK,
        distribution="moored",
        distribution_version="0.1.0",
        exports={"root": "/var/lib/moored/content"},
        summary="Keeps blobs.",
    )
    content.import_time.FromMilliseconds(2)
    content.start_time.FromMilliseconds(10)
    content.started_at.FromJsonString("2026-01-02T03:04:05.000000006Z")
    bolt = pb.Plugin(
        uri=f"{METADATA}.bolt",
        type=METADATA,
        id="bolt",
        outcome=pb.OUTCOME_TIMED_OUT,
        reason="did not start within 10s",
        traceback="Traceback (most recent call last):\nTimeoutError",
        distribution="moored",
        distribution_version="0.1.0",
        requires=[CONTENT],
        depends_on=[f"{CONTENT}.content"],
        order=1,
    )
    images = pb.Plugin(
        uri=f"{GRPC}.images",
        type=GRPC,
        id="images",
        outcome=pb.OUTCOME_BLOCKED,
        reason=f"requires {METADATA}: {METADATA}.bolt is timed out (did not start within 10s)",
        distribution="moored",
        distribution_version="0.1.0",
        requires=[METADATA],
        depends_on=[f"{METADATA}.bolt"],
        blocked_by=[f"{METADATA}.bolt"],
        order=2,
    )
    off = pb.Plugin(uri="io.x.v1.bolt-on", type="io.x.v1", id="bolt-on", outcome=pb.OUTCOME_DISABLED, order=3)
    return [content, bolt, images, off]


class Canned(daemon_pb2_grpc.DaemonServicer):
    def __init__(self):
        self.plugins = plugins()
        self.config = pb.ConfigResponse(
            toml='version = 4\nroot = "/srv"\n',
            values=[
                pb.Value(key="root", value_json='"/srv"', origin="flag --root"),
                pb.Value(key="version", value_json="4", origin="/etc/moored/config.toml:1"),
            ],
            files=["/etc/moored/config.toml"],
        )
        self.check = pb.CheckResponse()
        self.abort: tuple[grpc.StatusCode, str] | None = None
        self.hang: threading.Event | None = None

    def Plugins(self, request, context):
        if self.hang:
            self.hang.wait()
        if self.abort:
            context.abort(*self.abort)
        return pb.PluginsResponse(plugins=self.plugins)

    def Config(self, request, context):
        return self.config

    def Check(self, request, context):
        return self.check


class Version(version_pb2_grpc.VersionServicer):
    def Version(self, request, context):
        return version_pb2.VersionResponse(version="1.2.3", revision="abc")


@contextlib.contextmanager
def serving(address, *, canned=None):
    with ThreadPoolExecutor(max_workers=2) as threads:
        server = grpc.server(threads)
        version_pb2_grpc.add_VersionServicer_to_server(Version(), server)
        if canned is not None:
            daemon_pb2_grpc.add_DaemonServicer_to_server(canned, server)
        assert server.add_insecure_port(f"unix:{address}")
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()


@pytest.fixture
def folder():
    """A folder with a name short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="moorctl-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def daemon(folder):
    canned = Canned()
    with serving(folder / "d.sock", canned=canned):
        yield canned


@pytest.fixture
def environment(folder):
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "contrib/dev"), "LC_ALL": "C.UTF-8"}
    return kept | {"MOORED_ADDRESS": str(folder / "d.sock"), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def moorctl(environment):
    """Runs the program with its output in pipes; gives (status, stdout, stderr)."""

    def run(*args, **env):
        done = subprocess.run(
            [*PROGRAM, *args], env=environment | env, capture_output=True, text=True, timeout=60, check=False
        )
        assert "Traceback (most recent call last):\n  File" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def on_terminal(environment):
    """Runs the program with its output on a terminal; gives what that was sent."""

    def run(*args, **env):
        ours, theirs = pty.openpty()
        try:
            child = subprocess.Popen(
                [*PROGRAM, *args], env=environment | {"TERM": "xterm"} | env, stdout=theirs, stderr=subprocess.DEVNULL
            )
        finally:
            os.close(theirs)
        sent = bytearray()
        with contextlib.suppress(OSError):  # Linux reports the closed other end as EIO
            while piece := os.read(ours, 65536):
                sent += piece
        os.close(ours)
        assert child.wait(timeout=60) == 0
        return sent.decode().replace("\r\n", "\n")

    return run


def test_ls_in_a_pipe_is_plain_and_full_and_its_summary_is_not_in_the_way(daemon, moorctl):
    status, out, err = moorctl("plugins", "ls", COLUMNS="40")

    assert status == 0
    assert out == (
        "TYPE                       ID       STATUS     TIME  FROM          REASON\n"
        "io.containerd.content.v1   content  ok         12ms  moored 0.1.0\n"
        "io.containerd.metadata.v1  bolt     timed-out     -  moored 0.1.0  did not start within 10s\n"
        "io.containerd.grpc.v1      images   blocked       -  moored 0.1.0  "
        "requires io.containerd.metadata.v1: io.containerd.metadata.v1.bolt is timed out (did not start within 10s)\n"
        "io.x.v1                    bolt-on  disabled      -\n"
    )
    assert err == "1 ok, 1 disabled, 1 blocked, 1 timed-out\n"


def test_ls_filters(daemon, moorctl):
    status, out, err = moorctl("plugins", "ls", "--status", "Timed-Out", "--status", "ok", "--type", "metadata")

    assert (status, err) == (0, "1 timed-out\n")
    assert [row.split()[1] for row in out.splitlines()] == ["ID", "bolt"]
    assert moorctl("plugins", "ls", "--type", "none") == (0, "", "no plugins\n")


def test_ls_verbose_tells_all(daemon, moorctl):
    _, out, _ = moorctl("plugins", "ls", "-v", "--status", "ok")

    assert out == (
        "io.containerd.content.v1.content  ok\n"
        "  summary     Keeps blobs.\n"
        "  from        moored 0.1.0\n"
        "  import      2ms\n"
        "  start       10ms\n"
        "  started at  2026-01-02T03:04:05.000000006Z\n"
        "  exports     root=/var/lib/moored/content\n"
    )


def test_ls_fits_a_narrow_terminal(daemon, on_terminal):
    text = on_terminal("--no-color", "plugins", "ls", COLUMNS="40")

    assert max(map(len, text.splitlines())) <= 40
    assert "\x1b" not in text
    assert "blocked    io.containerd.grpc.v1.images\n  moored 0.1.0\n  requires io.containerd.metadata.v1:\n" in text


def test_a_terminal_gets_colours_unless_told_otherwise(daemon, on_terminal):
    for columns in ("80", "200"):
        text = on_terminal("plugins", "ls", COLUMNS=columns)
        assert "\x1b[32mok" in text
        assert "\x1b[1;31mtimed-out\x1b[0m" in text
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in on_terminal("plugins", "ls", **env)
    assert "\x1b" not in on_terminal("plugins", "ls", "--no-color")


def test_ls_json_has_the_documented_keys(daemon, moorctl):
    status, out, err = moorctl("plugins", "ls", "--json")
    document = json.loads(out)

    assert (status, err) == (0, "")
    assert document["counts"] == {"ok": 1, "disabled": 1, "blocked": 1, "timed-out": 1}
    _, told, _ = moorctl("plugins", "ls", "--help")
    assert all(f'"{key}"' in told for key in (*document, *document["plugins"][0]))
    assert document["plugins"][0] == {
        "uri": f"{CONTENT}.content",
        "type": CONTENT,
        "id": "content",
        "status": "ok",
        "reason": "",
        "traceback": "",
        "blocked_by": [],
        "distribution": "moored",
        "distribution_version": "0.1.0",
        "entry_point": "",
        "requires": [],
        "after": [],
        "depends_on": [],
        "waits_for": [],
        "import_seconds": 0.002,
        "start_seconds": 0.01,
        "started_at": "2026-01-02T03:04:05.000000006Z",
        "exports": {"root": "/var/lib/moored/content"},
        "capabilities": [],
        "summary": "Keeps blobs.",
        "required": False,
        "essential": False,
        "order": 0,
    }


def test_why_leads_from_a_blocked_plugin_to_the_traceback_of_its_cause(daemon, moorctl):
    status, out, err = moorctl("plugins", "why", "images")
    assert (status, err) == (0, "")
    assert f"    └── {METADATA}.bolt  timed-out: did not start within 10s  (root cause)\n" in out

    following = next(row for row in out.splitlines() if row.startswith("next: moorctl ")).split()[2:]
    status, out, _ = moorctl(*following)
    assert status == 0
    assert out.endswith("traceback\n  Traceback (most recent call last):\n  TimeoutError\n")
    assert f"keeps from starting\n└── {GRPC}.images  blocked\n" in out


def test_why_json_is_one_document(daemon, moorctl):
    _, out, err = moorctl("plugins", "why", "images", "--json")

    assert json.loads(out)["root_causes"] == [f"{METADATA}.bolt"]
    assert err == ""


def test_why_of_an_unknown_plugin_says_what_was_meant(daemon, moorctl):
    assert moorctl("plugins", "why", "imagse") == (
        1,
        "",
        f"moorctl: no plugin is named 'imagse', did you mean '{GRPC}.images'?\n",
    )


def test_why_of_an_ambiguous_name_asks_back(daemon, moorctl):
    daemon.plugins.append(pb.Plugin(uri="io.y.v1.images", type="io.y.v1", id="images"))

    status, out, err = moorctl("plugins", "why", "images")

    assert (status, out) == (1, "")
    assert f"is ambiguous, did you mean '{GRPC}.images' or 'io.y.v1.images'?\n" in err


def test_graph_in_each_form(daemon, moorctl):
    status, out, err = moorctl("plugins", "graph")
    assert (status, err) == (0, "")
    assert out == (
        f"{GRPC}.images  blocked\n"
        f"└── {METADATA}.bolt  timed-out\n"
        f"    └── {CONTENT}.content\n"
        "io.x.v1.bolt-on  disabled\n"
    )
    assert moorctl("plugins", "graph", "--format", "mermaid")[1].startswith("flowchart TD\n")
    assert moorctl("plugins", "graph", "--format", "dot")[1].startswith("digraph plugins {\n")
    _, out, _ = moorctl("--json", "plugins", "graph", "content")
    assert json.loads(out)["edges"][0] == {"from": f"{GRPC}.images", "to": f"{METADATA}.bolt", "soft": False}


def test_graph_explains_its_marks_on_standard_error(daemon, moorctl):
    daemon.plugins[3].depends_on.append(f"{CONTENT}.content")

    status, out, err = moorctl("plugins", "graph")

    assert status == 0
    assert out.endswith(f"io.x.v1.bolt-on  disabled\n└── {CONTENT}.content  (*)\n")
    assert err == "(*) drawn in full above\n"


def test_a_terminal_without_line_drawing_gets_ascii(daemon, moorctl):
    _, out, _ = moorctl("plugins", "graph", PYTHONIOENCODING="latin-1")

    assert f"\n`-- {METADATA}.bolt" in out


def test_config_dump_prints_the_file_or_the_origins(daemon, moorctl):
    assert moorctl("config", "dump") == (0, 'version = 4\nroot = "/srv"\n', "")
    assert moorctl("config", "dump", "--origin") == (
        0,
        'root = "/srv"  # flag --root\nversion = 4    # /etc/moored/config.toml:1\n',
        "",
    )
    document = json.loads(moorctl("config", "dump", "--json")[1])
    assert list(document) == ["files", "drifted", "drift", "values", "toml"]
    assert document["values"][1] == {"key": "version", "value": 4, "origin": "/etc/moored/config.toml:1"}


def test_config_drift(daemon, moorctl):
    assert moorctl("config", "drift") == (0, "", "no drift, 1 file as read\n")

    daemon.config.drifted = True
    daemon.config.drift.append("/etc/moored/config.toml changed")

    assert moorctl("config", "drift")[:2] == (0, "/etc/moored/config.toml changed\n")
    assert moorctl("config", "dump")[2] == "files changed since the daemon read them, see moorctl config drift\n"
    assert json.loads(moorctl("--json", "config", "drift")[1])["drifted"] is True


def test_config_check_fails_for_errors_only(daemon, moorctl):
    assert moorctl("config", "check") == (0, "", "no errors, no warnings; no plugins would change\n")

    daemon.check.problems.add(level="warning", key="a", message="is old", file="/f", line=3)
    daemon.check.changes.add(plugin="io.x.v1.y", action="restarted", keys=["k"])
    assert moorctl("config", "check") == (
        0,
        "warning: /f:3: a: is old\nrestarted    io.x.v1.y (k)\n",
        "no errors, 1 warning; 1 plugin would change\n",
    )

    daemon.check.problems.add(level="error", message="is no TOML", file="/f")
    assert moorctl("config", "check")[0] == 1
    status, out, _ = moorctl("--json", "config", "check")
    assert (status, json.loads(out)["ok"]) == (1, False)


def test_version_tells_both(daemon, moorctl):
    status, out, _ = moorctl("version")
    assert status == 0
    assert out.splitlines()[1] == "server  1.2.3 (revision abc)"
    assert json.loads(moorctl("version", "--json")[1])["server"] == {"version": "1.2.3", "revision": "abc"}
    assert moorctl("--version")[1].startswith("moorctl ")


def test_version_without_a_daemon_still_tells_its_own(moorctl):
    status, out, err = moorctl("version")
    assert status == 1
    assert out.startswith("client  ")
    assert err.count("\n") == 1
    assert json.loads(moorctl("version", "--json")[1])["server"] is None


def test_no_socket_says_how_to_start_the_daemon(moorctl, folder):
    status, out, err = moorctl("plugins", "ls")

    assert (status, out) == (1, "")
    assert err == (
        f"moorctl: there is no socket {folder}/d.sock, "
        "is the daemon running? start it with: moored -c /etc/moored/config.toml\n"
    )


def test_a_dead_socket_is_told_from_none(moorctl, folder):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "d.sock"))

    status, _, err = moorctl("plugins", "ls")

    assert status == 1
    assert err.startswith(f"moorctl: nobody listens on socket {folder}/d.sock, is the daemon running?")


def test_a_socket_that_is_not_allowed_says_to_be_root(daemon, environment, folder):
    """Root is nobody only once all is imported, since the interpreter's own files may be root's alone."""
    code = (
        "import os, moored.api.cli.connection, moored.api.cli.render, moored.api.cli.why\n"
        "from moored.api.cli.main import main\n"
        f"if os.geteuid() == 0: os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "main()"
    )
    folder.chmod(0o755)
    (folder / "d.sock").chmod(0)

    done = subprocess.run(
        [sys.executable, "-c", code, "plugins", "ls"], env=environment, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"moorctl: permission denied on socket {folder}/d.sock, run moorctl as root or name another socket with "
        "--address\n"
    )


def test_a_daemon_that_is_not_moored_is_left_to_ctr(moorctl, folder):
    with serving(folder / "d.sock"):
        status, _, err = moorctl("plugins", "ls")
        assert status == 1
        assert err.startswith(f"moorctl: the daemon at {folder}/d.sock is not moored, use ctr")
        assert err.count("\n") == 1
        assert moorctl("version")[0] == 0


def test_a_daemon_that_does_not_answer_is_given_up(daemon, moorctl, folder):
    daemon.hang = threading.Event()
    try:
        assert moorctl("--timeout", "0.2", "plugins", "ls") == (
            1,
            "",
            f"moorctl: the daemon at {folder}/d.sock gave no answer within 0.2s, wait longer with --timeout\n",
        )
    finally:
        daemon.hang.set()


def test_a_listener_that_never_speaks_is_given_up(moorctl, folder):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(folder / "d.sock"))
        silent.listen()

        status, _, err = moorctl("--timeout", "0.2", "plugins", "ls")

    assert status == 1
    assert "gave no answer within 0.2s" in err


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (grpc.StatusCode.INTERNAL, "answered INTERNAL: it ? broke; its log may say more"),
        (grpc.StatusCode.PERMISSION_DENIED, "refuses: it ? broke; run moorctl as root"),
        (grpc.StatusCode.UNAVAILABLE, "broke off: it ? broke; try again"),
    ],
)
def test_the_daemon_s_own_error_is_one_harmless_line(daemon, moorctl, folder, code, text):
    daemon.abort = (code, "it\n\x1b broke")

    assert moorctl("plugins", "ls") == (1, "", f"moorctl: the daemon at {folder}/d.sock {text}\n")


def test_a_path_that_leads_nowhere_is_one_line(daemon, moorctl, folder):
    status, _, err = moorctl("-a", f"{folder}/d.sock/d.sock", "plugins", "ls")

    assert status == 1
    assert err == (
        f"moorctl: cannot connect to '{folder}/d.sock/d.sock': Not a directory; name a socket with --address\n"
    )


def test_a_path_with_odd_characters_is_a_path(moorctl, folder):
    odd = folder / "a b%41?#é"
    odd.mkdir()
    with serving(folder / "plain.sock", canned=Canned()):
        (folder / "plain.sock").rename(odd / "d.sock")
        assert moorctl("-a", str(odd / "d.sock"), "plugins", "ls")[0] == 0
        (odd / "d.sock").rename(folder / "plain.sock")


@pytest.mark.parametrize(
    "args",
    [
        ("nonsense",),
        ("plugins", "ls", "--status", "fine"),
        ("plugins", "why"),
        ("-a", "tcp://localhost:1", "plugins", "ls"),
        ("--timeout", "soon", "version"),
    ],
)
def test_wrong_usage_has_a_status_of_its_own(moorctl, args):
    status, out, err = moorctl(*args)

    assert (status, out) == (2, "")
    assert "Usage: moorctl" in err


@pytest.mark.parametrize(
    "args", [(), ("plugins",), ("plugins", "ls"), ("plugins", "why"), ("plugins", "graph"), ("config", "check")]
)
def test_help_has_examples(moorctl, args):
    _, out, _ = moorctl(*args, "--help")

    assert "Examples:\n" in out
    assert "    moorctl " in out


def test_help_imports_nothing_slow(environment):
    code = (
        "import sys\nfrom moored.api.cli.main import root\n"
        "root.main(['plugins', 'ls', '--help'], standalone_mode=False)\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'grpc', 'rich', 'google', 'asyncio'}))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.splitlines()[-1] == "[]"


def test_it_imports_no_plugin_no_config_and_no_daemon(daemon, environment):
    code = (
        "import sys\nfrom moored.api.cli.main import root\n"
        "root.main(['plugins', 'graph'], standalone_mode=False)\n"
        "foreign = ('moored.kernel.daemon', 'moored.plugins', 'moored.config')\n"
        "print(sorted(n for n in sys.modules if n.startswith(foreign)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "args", [("plugins", "ls"), ("--json", "plugins", "ls"), ("plugins", "why", "bolt"), ("config", "dump")]
)
def test_a_reader_that_went_away_is_no_error(daemon, environment, args):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*PROGRAM, *args],
            env=environment,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)

    assert done.returncode == 0
    assert "Broken pipe" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_check_keeps_its_status_when_the_reader_went_away(daemon, environment):
    daemon.check.problems.add(level="error", message="is no TOML", file="/f")
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*PROGRAM, "config", "check"],
            env=environment,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)

    assert (done.returncode, done.stderr) == (1, "1 error, no warnings; no plugins would change\n")


def test_without_any_standard_output_it_ends_quietly(daemon, environment):
    shell = 'exec "$@" >&-'

    done = subprocess.run(
        ["sh", "-c", shell, "sh", *PROGRAM, "plugins", "ls"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "1 ok, 1 disabled, 1 blocked, 1 timed-out\n")


def test_a_full_disk_is_an_error(daemon, environment):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*PROGRAM, "plugins", "ls"], env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )

    assert done.returncode == 1
    assert done.stderr == "moorctl: cannot write the output: No space left on device\n"
