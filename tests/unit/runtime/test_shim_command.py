"""The command line of our shim: flags, sockets, and the answer that each generation of containerd wants."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from pathlib import Path

import pytest

from moored.api.runtime.bootstrap.v1.bootstrap_pb2 import BootstrapParams, BootstrapResult
from moored.kernel.errors import InvalidArgument
from moored.plugins.runtime.shim import address, main
from moored.plugins.runtime.shim.bundle import has_private_pids, last_error, read_options, served_at, write_options
from moored.plugins.runtime.shim.messages import Options

ARGUMENTS = ["-namespace", "ns", "-address", "/run/c.sock", "-publish-binary", "/bin/c", "-id", "c", "start"]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MAX_SHIM_VERSION", raising=False)
    monkeypatch.delenv("TTRPC_ADDRESS", raising=False)
    return tmp_path


@pytest.mark.parametrize("arguments", [["-id=c", "--debug", "start"], ["-id", "c", "-debug=true", "start"]])
def test_flags_are_read_as_go_has_them(arguments: list[str]) -> None:
    flags = main.parse(arguments)

    assert (flags.get("id"), flags.get("debug"), flags.action) == ("c", "true", "start")


@pytest.mark.parametrize("arguments", [["-wrong", "x"], ["-id"]])
def test_unknown_and_empty_flags_are_refused(arguments: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        main.parse(arguments)


def test_new_daemon_gets_a_bootstrap_result(bundle: Path) -> None:
    params = BootstrapParams(instance_id="c", namespace="ns", containerd_ttrpc_address="/t", socket_dir=f"{bundle}/s")
    about, modern, sockets = main._asked(main.parse(ARGUMENTS), params.SerializeToString())

    result = BootstrapResult.FromString(main._answer(about, modern=modern))

    name = hashlib.sha256(b"/run/c.sock/ns/c").hexdigest()
    assert (result.version, result.address, result.protocol) == (3, f"unix://{bundle}/s/{name}", "ttrpc")
    assert (about.ttrpc_address, sockets, modern) == ("/t", f"{bundle}/s", True)
    assert not (bundle / "address").exists()


@pytest.mark.parametrize("limit", ["2", None])
def test_older_daemons_get_json_or_the_bare_address(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None
) -> None:
    if limit:
        monkeypatch.setenv("MAX_SHIM_VERSION", limit)
    about, modern, _ = main._asked(main.parse(ARGUMENTS), b"\x0a\x1acontainerd.runc.v1.Options")

    answer = main._answer(about, modern=modern).decode()

    if limit:
        assert json.loads(answer) == {"version": 2, "address": about.address, "protocol": "ttrpc"}
    else:
        assert answer == about.address
    assert about.ttrpc_address == "/run/c.sock.ttrpc"
    assert served_at(str(bundle)) == about.socket_path


def test_group_comes_from_the_annotations(bundle: Path) -> None:
    pod = {"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}
    both = {"annotations": {"io.kubernetes.cri.sandbox-id": "pod", "io.containerd.runc.v2.group": "group"}}

    assert [address.group_of(spec, "c") for spec in ({}, {"annotations": None}, pod, both)] == [
        "c",
        "c",
        "pod",
        "group",
    ]


def test_living_socket_is_joined_and_a_dead_one_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    first = address.listen(path)
    assert first is not None
    assert os.stat(path).st_mode & 0o777 == 0o600  # noqa: PTH116
    assert address.listen(path) is None
    address.drop_dead(path)
    assert Path(path).exists()
    first.close()
    second = address.listen(path)
    assert second is not None
    second.close()
    address.drop_dead(path)
    assert not Path(path).exists()


def test_busy_socket_counts_as_living(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(path)
        busy.listen(0)
        waiting.connect(path)
        assert address.listen(path) is None


def test_options_are_kept_without_zero_values(tmp_path: Path) -> None:
    write_options(str(tmp_path), Options(binary_name="crun", io_uid=5))

    assert json.loads((tmp_path / "options.json").read_text()) == {"binary_name": "crun", "io_uid": 5}
    assert (tmp_path / "options.json").stat().st_mode & 0o777 == 0o600
    assert read_options(str(tmp_path)) == Options(binary_name="crun", io_uid=5)
    assert (tmp_path / "runtime").read_text() == "crun"


def test_last_error_is_the_newest_of_the_call(tmp_path: Path) -> None:
    old = '{"level":"error","msg":"old"}\n'
    (tmp_path / "log.json").write_text(
        old + '{"level":"error","msg":" new "}\nno json\n{"level":"warning","msg":"x"}\n'
    )

    assert last_error(str(tmp_path), len(old)) == "new"
    assert last_error(str(tmp_path), 10_000) == ""


@pytest.mark.parametrize(
    ("namespaces", "wanted"),
    [([{"type": "pid"}], True), ([{"type": "pid", "path": "/proc/1/ns/pid"}], False), ([{"type": "ipc"}], False)],
)
def test_only_own_pids_end_with_init(tmp_path: Path, namespaces: list[dict[str, str]], wanted: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"linux": {"namespaces": namespaces}}))

    assert has_private_pids(str(tmp_path)) is wanted
