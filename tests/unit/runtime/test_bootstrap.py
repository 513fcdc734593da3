"""Names, command lines, answers and bundles of shims, without any shim."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any

from moored.api.runtime.bootstrap.v1.bootstrap_pb2 import BootstrapParams, BootstrapResult
from moored.api.types.runc.options.oci_pb2 import Options
from moored.api.types.runtimeoptions.v1.api_pb2 import Options as GenericOptions
from moored.kernel.errors import AlreadyExists, InvalidArgument, MooredError, NotFound, Unimplemented, Unknown
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.oci import RuntimeOptions
from moored.kernel.ports.shims import Endpoint
from moored.kernel.ports.tasks import Exit
from moored.plugins.runtime.manager.binary import find, program_name
from moored.plugins.runtime.manager.bootstrap import (
    Daemon,
    command,
    encode_endpoint,
    environment,
    old_parameters,
    parameters,
    parse_answer,
    sandbox_endpoint,
)
from moored.plugins.runtime.manager.bundle import Bundle, Folders, host_root_gid, spec_of
from moored.plugins.runtime.manager.choice import Runtimes, read_options
from moored.plugins.runtime.manager.shim import stored_endpoint

DAEMON = Daemon(
    grpc="/run/m.sock",
    ttrpc="/run/m.sock.ttrpc",
    binary="/bin/moored",
    version="2.3.4",
    socket_dir=Path("/run/s"),
    environment=("A=b=c", "GOMAXPROCS=1"),
)
OPTIONS = TypedBytes("containerd.runc.v1.Options", Options(binary_name="crun").SerializeToString())


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(Folders(tmp_path / "state", tmp_path / "root"), "ns", "c")


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runtime", "name"),
    [
        ("io.containerd.runc.v2", "containerd-shim-runc-v2"),
        ("io.containerd.kata-qemu.v2", "containerd-shim-kata-qemu-v2"),
        ("a.b", "containerd-shim-a-b"),
    ],
)
def test_shim_is_named_by_the_last_two_parts(runtime: str, name: str) -> None:
    assert program_name(runtime) == name


def test_shim_is_found_on_path_and_by_its_own_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shim = tmp_path / "containerd-shim-x-v1"
    shim.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find("io.x.v1") == find(str(shim)) == shim
    shim.chmod(0o644)
    with pytest.raises(NotFound, match="file does not exist"):
        find("io.x.v1")
    with pytest.raises(NotFound, match="invalid custom binary path"):
        find(str(tmp_path))


# --- calling ----------------------------------------------------------------------------------------------------------


def test_command_lines_are_containerd_s(bundle: Bundle) -> None:
    common = ["/x", "-namespace", "ns", "-address", "/run/m.sock", "-publish-binary", "/bin/moored", "-id", "c"]
    assert command(Path("/x"), DAEMON, bundle, "start") == [*common, "start"]
    assert command(Path("/x"), DAEMON, bundle, "delete") == [*common, "-bundle", str(bundle.path), "delete"]


def test_environment_is_the_daemon_s_and_more() -> None:
    told = {"TTRPC_ADDRESS": "/run/m.sock.ttrpc", "GRPC_ADDRESS": "/run/m.sock", "NAMESPACE": "ns"}
    assert environment(DAEMON, "ns", {"HOME": "/"}, start=False) == {
        "HOME": "/",
        "GOMAXPROCS": "2",
        "MAX_SHIM_VERSION": "2",
        **told,
    }
    started = environment(DAEMON, "ns", {}, start=True)
    assert (started["A"], started["GOMAXPROCS"]) == ("b=c", "1")


def test_parameters_say_all_that_a_new_shim_needs() -> None:
    found = BootstrapParams.FromString(parameters(DAEMON, "ns", "c", OPTIONS))
    assert (found.instance_id, found.namespace, found.socket_dir) == ("c", "ns", "/run/s")
    assert (found.containerd_grpc_address, found.containerd_ttrpc_address) == ("/run/m.sock", "/run/m.sock.ttrpc")
    assert [one.value.type_url for one in found.extensions] == [OPTIONS.type_url]
    assert not BootstrapParams.FromString(parameters(DAEMON, "ns", "c", None)).extensions


def test_old_parameters_are_the_options_or_nothing() -> None:
    assert Any.FromString(old_parameters(OPTIONS)) == Any(type_url=OPTIONS.type_url, value=OPTIONS.value)
    assert old_parameters(None) == b""


# --- answers ----------------------------------------------------------------------------------------------------------

MESSAGE = BootstrapResult(version=3, address="unix:///s", protocol="ttrpc").SerializeToString()


@pytest.mark.parametrize(
    ("answer", "endpoint"),
    [
        (MESSAGE, Endpoint("unix:///s", 3)),
        (BootstrapResult(address="/s", protocol="GRPC").SerializeToString(), Endpoint("/s", 2, "grpc")),
        (b'{"version":3,"address":"unix:///s","protocol":"TTRPC"}\n', Endpoint("unix:///s", 3)),
        (b'{"version":2,"address":"/s","protocol":"grpc"}', Endpoint("/s", 2, "grpc")),
        (b"unix:///s", Endpoint("unix:///s", 2)),
        (b" /containerd-shim/x.sock@\n", Endpoint("/containerd-shim/x.sock@", 2)),
        (b"vsock://3:1024", Endpoint("vsock://3:1024", 2)),
    ],
)
def test_answer_is_read_in_every_form(answer: bytes, endpoint: Endpoint) -> None:
    assert parse_answer(answer) == endpoint


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", Unknown),
        (b"\n", Unknown),
        (b"two words", Unknown),
        (b"unix:///s\nwarning", Unknown),
        (b"\xff\xfe", Unknown),
        (MESSAGE + b"warning: x", Unknown),
        (b'{"version":1,"address":"unix:///s"}', Unknown),
        (b'{"version":3,"address":"unix:///s"}', Unknown),
        (b'{"version":4,"address":"unix:///s","protocol":"ttrpc"}', Unimplemented),
        (BootstrapResult(version=9, address="unix:///s", protocol="ttrpc").SerializeToString(), Unimplemented),
        (BootstrapResult(version=3, address="unix:///s", protocol="http").SerializeToString(), Unknown),
    ],
)
def test_bad_answer_is_refused(answer: bytes, kind: type[MooredError]) -> None:
    with pytest.raises(kind):
        parse_answer(answer)


def test_stored_endpoint_is_read_back(bundle: Bundle) -> None:
    bundle.make(None)
    with pytest.raises(NotFound, match="task 'c' has no shim address"):
        stored_endpoint(bundle)
    (bundle.path / "address").write_text("unix:///old\n")
    assert stored_endpoint(bundle) == Endpoint("unix:///old", 2)
    bundle.write("bootstrap.json", encode_endpoint(Endpoint("unix:///s", 3)))
    assert stored_endpoint(bundle) == Endpoint("unix:///s", 3)
    assert (bundle.path / "bootstrap.json").read_text() == '{"version": 3, "address": "unix:///s", "protocol": "ttrpc"}'


def test_sandbox_address_names_its_protocol() -> None:
    assert sandbox_endpoint("ttrpc+unix:///s", 3) == Endpoint("unix:///s", 3)
    assert sandbox_endpoint("grpc+vsock://1:2", 3) == Endpoint("vsock://1:2", 3, "grpc")
    with pytest.raises(InvalidArgument, match="wanted PROTOCOL"):
        sandbox_endpoint("unix:///s", 3)


# --- bundles ----------------------------------------------------------------------------------------------------------


def test_bundle_is_made_and_removed_whole(bundle: Bundle) -> None:
    bundle.make(b"{}")
    (bundle.work / "kept").touch()
    assert sorted(path.name for path in bundle.path.iterdir()) == ["config.json", "creating", "log", "rootfs", "work"]
    assert stat.S_ISFIFO((bundle.path / "log").stat().st_mode)
    with pytest.raises(AlreadyExists, match="task c"):
        bundle.make(b"{}")
    bundle.remove()
    bundle.remove()
    assert not bundle.path.exists()
    assert not bundle.work.exists()


def test_working_folder_of_an_earlier_boot_is_emptied(bundle: Bundle) -> None:
    (bundle.work / "old").mkdir(parents=True)
    bundle.make(b"{}")
    assert list((bundle.path / "work/").iterdir()) == []


@pytest.mark.parametrize("id_", ["", ".", "..", "a/b", "-a", "a..b", "x" * 77])
def test_bad_id_makes_no_bundle(tmp_path: Path, id_: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid task id"):
        Bundle(Folders(tmp_path / "s", tmp_path / "r"), "ns", id_).make(None)
    assert list(tmp_path.iterdir()) == []


def test_exit_is_noted_while_the_bundle_is_there(bundle: Bundle) -> None:
    ended = Exit(pid=7, status=137, exited_at=1795440598584477615)
    bundle.note_exit(ended)
    bundle.make(None)
    assert bundle.noted_exit() is None
    bundle.note_exit(ended)
    assert bundle.noted_exit() == ended
    bundle.write("exited", b"half")
    assert bundle.noted_exit() is None


def test_small_file_is_read_without_following_or_waiting(bundle: Bundle) -> None:
    bundle.make(None)
    assert bundle.read("nothing") is None
    assert bundle.read("log") == b""
    (bundle.path / "link").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        bundle.read("link")
    bundle.write("init.pid", b"123\n")
    assert bundle.init_pid() == 123
    bundle.write("init.pid", b"x")
    assert bundle.init_pid() == 0


def test_log_that_is_no_fifo_is_refused(bundle: Bundle) -> None:
    bundle.make(None)
    (bundle.path / "log").unlink()
    (bundle.path / "log").touch()
    with pytest.raises(FileExistsError, match="no FIFO"):
        bundle.open_log()
    (bundle.path / "log").unlink()
    os.close(bundle.open_log())


def test_leftovers_are_swept_and_bundles_are_kept(bundle: Bundle) -> None:
    bundle.make(None)
    folders = bundle.folders
    for leftover in (folders.state / "ns/.x", folders.root / "ns/.x", folders.root / "ns/lost"):
        (leftover / "deep").mkdir(parents=True)
    (folders.state / ".hidden/y").mkdir(parents=True)
    folders.sweep()
    assert list(folders.bundles()) == [bundle]
    assert sorted(path.name for path in (folders.root / "ns").iterdir()) == ["c"]
    assert sorted(path.name for path in (folders.state / "ns").iterdir()) == ["c"]


def test_spec_is_an_object() -> None:
    assert host_root_gid(spec_of(b'{"linux":{"gidMappings":[{"containerID":1,"hostID":5},{"hostID":7}]}}')) == 7
    assert host_root_gid({}) == host_root_gid({"linux": None}) == 0
    for data in (b"[]", b"", b"{"):
        with pytest.raises(InvalidArgument, match="spec is"):
            spec_of(data)


# --- options ----------------------------------------------------------------------------------------------------------


def test_options_of_both_kinds_are_read() -> None:
    assert read_options("r", OPTIONS) == RuntimeOptions(binary="crun")
    generic = GenericOptions(config_path="/c", config_body=b"x").SerializeToString()
    url = "type.googleapis.com/runtimeoptions.v1.Options"
    assert read_options("r", TypedBytes(url, generic)) == RuntimeOptions(config_path="/c", config_body=b"x")
    assert read_options("r", None) == read_options("r", TypedBytes("", b"")) == RuntimeOptions()


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        (TypedBytes("x.Y", b""), Unknown, "invalid task create option for r: type with url x.Y: not found"),
        (TypedBytes(OPTIONS.type_url, b"\xff"), InvalidArgument, "invalid task create option for r"),
    ],
)
def test_strange_options_are_refused(options: TypedBytes, kind: type[MooredError], text: str) -> None:
    with pytest.raises(kind, match=text):
        read_options("r", options)


def test_name_without_a_driver_has_a_shim_binary() -> None:
    assert not Runtimes({"a.b": "runc"}, {}).any_own
