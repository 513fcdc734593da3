"""What operators and clients tell a daemon about its runtimes: folders of programs, debugging, mounts, classes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from daemons import Daemon
from e2e.containers import IMAGE, SECONDS, World, eventually, imported, short_folder
from e2e.images import CTRS
from e2e.test_run import shim_on_path
from leftovers import Place, nothing_left
from moored.api.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc
from moored.api.types.mount_pb2 import Mount
from peers import containerd, needs_containerd
from shims import DEBIAN_SHIM

pytestmark = [
    *needs_containerd,
    pytest.mark.skipif(not shutil.which("busybox") or not shutil.which("runc"), reason="needs busybox and runc"),
]
CONFIG = 'version = 4\n[debug]\nlevel = "debug"\n[plugins."io.containerd.internal.v1.opt"]\npath = "{folder}/opt"\n'
HELP = subprocess.run([CTRS[-1], "shim", "--help"], capture_output=True, text=True, check=False).stdout if CTRS else ""
ALLOWING = """#!{python}
import os, sys
sys.path[:0] = {path}
if "-info" in sys.argv:
    from moored.api.types.introspection_pb2 import RuntimeInfo
    info = RuntimeInfo(name="here", annotations={{"containerd.io/runtime-allow-mounts": "format/*"}})
    sys.stdout.buffer.write(info.SerializeToString())
else:
    os.execv("{shim}", sys.argv)
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with short_folder() as made:
        yield made


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[World]:
    """A daemon that logs everything, with programs of its own beside the system's."""
    programs = folder / "opt/bin"
    programs.mkdir(parents=True)
    (programs / "runc-here").symlink_to(str(shutil.which("runc")))
    (programs / "containerd-shim-here-v2").symlink_to(DEBIAN_SHIM)
    allowing = programs / "containerd-shim-allowing-v2"
    allowing.write_text(ALLOWING.format(python=sys.executable, path=json.dumps(sys.path), shim=DEBIAN_SHIM))
    allowing.chmod(0o755)
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(folder, CONFIG.format(folder=folder)))
        place = Place(folder, f"test-opt-{os.getpid()}", daemon.socket)
        yield stack.enter_context(imported(World(CTRS[-1], place, "runc", (), daemon.log)))


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    before = shared.place.found()
    at = len(shared.used)
    yield shared
    nothing_left(shared.place, before, shared.used[at:])


def test_programs_of_the_opt_folder_are_found(world: World) -> None:
    for flags in (("--runtime", "io.containerd.here.v2"), ("--runc-binary", "runc-here")):
        assert world.run("echo", "hello", flags=flags).out == "hello\n"
    done = world.run("true", flags=("--runtime", "io.containerd.nowhere.v2"))
    assert "not installed" in done.err


def test_opt_folder_is_told_and_inherited(world: World, folder: Path) -> None:
    with world.running() as id_:
        (shim,) = shims(world, id_)
        variables = Path(f"/proc/{shim}/environ").read_bytes().split(b"\0")
    assert f"PATH={folder}/opt/bin:{os.environ['PATH']}".encode() in variables
    assert any(one.startswith(f"LD_LIBRARY_PATH={folder}/opt/lib".encode()) for one in variables)
    assert "io.containerd.internal.v1" in world.does("plugins", "ls", "-d", "id==opt")


# --- debugging --------------------------------------------------------------------------------------------------------


def shims(world: World, id_: str) -> list[int]:
    """The shims that were forked for a container."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        words = read(entry / "cmdline").split("\0")
        if words[0] == "moored-shim" and id_ in words and str(world.place.address) in words:
            found.append(int(entry.name))
    return found


def read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def debug_sockets(folder: Path) -> set[Path]:
    """The sockets of shims, debug ones and others."""
    return {path for path in (folder / "state/s").iterdir() if stat.S_ISSOCK(path.lstat().st_mode)}


def test_shim_shows_what_it_does_on_its_debug_socket(world: World, folder: Path) -> None:
    with world.running() as id_:
        bundle = folder / f"state/io.containerd.runtime.v2.task/{world.place.namespace}/{id_}"
        path = (bundle / "debug-address").read_text()
        assert len(debug_sockets(folder)) == 2
        assert stat.S_IMODE(Path(path).lstat().st_mode) == 0o600
        shown = world.does("pprof", "--debug-socket", path, "goroutines")
        assert f"containers: {id_}\n" in shown
        assert "Container._watch_init" in shown
        assert "plugins/runtime/shim/container.py:" in shown
        assert "tracked objects:" in world.does("pprof", "--debug-socket", path, "heap")
        assert world.ctr("pprof", "--debug-socket", path, "block").status != 0
        # the task API does not mind
        assert world.does("task", "exec", "--exec-id", "e", id_, "echo", "hello") == "hello\n"
    eventually(lambda: not debug_sockets(folder), lambda: f"{debug_sockets(folder)}")


def test_killed_shim_leaves_no_debug_socket(world: World, folder: Path) -> None:
    with world.running() as id_:
        (shim,) = shims(world, id_)
        os.kill(shim, signal.SIGKILL)
        eventually(lambda: not debug_sockets(folder), lambda: f"{debug_sockets(folder)}")


def test_signal_has_a_shim_log_what_it_does(world: World) -> None:
    with world.running() as id_:
        (shim,) = shims(world, id_)
        os.kill(shim, signal.SIGUSR1)
        eventually(lambda: f"containers: {id_}" in world.log.read_text(), world.log.read_text)
        assert "Container._watch_init" in world.log.read_text()


@pytest.mark.skipif("pprof" not in HELP, reason="ctr asks shims since 2.0")
def test_shim_under_containerd_is_found_by_its_debug_address() -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(short_folder())
        shim_on_path(stack, folder)
        address = stack.enter_context(containerd(folder / "d", config='[debug]\nlevel = "debug"\n'))
        place = Place(folder, f"test-debug-{os.getpid()}", address)
        flags = ("--runtime", "io.containerd.moored.v2")
        world = stack.enter_context(imported(World(CTRS[0], place, "runc", flags, folder / "d/log")))
        with world.running() as id_:
            # the client computes the address from that of the daemon
            shown = replace(world, binary=CTRS[-1]).does("shim", "--id", id_, "pprof", "goroutines")
            assert f"containers: {id_}\n" in shown


# --- mounts -----------------------------------------------------------------------------------------------------------


def prefixed(folder: Path) -> list[Mount]:
    """An overlay that names the mount before it, which only the mount manager understands."""
    for name in ("lower", "upper", "work"):
        (folder / name).mkdir()
    for name in ("bin", "proc", "dev", "sys", "run", "etc", "tmp"):
        (folder / "lower" / name).mkdir()
    shutil.copy(str(shutil.which("busybox")), folder / "lower/bin/busybox")
    for name in ("sleep", "cat"):
        (folder / "lower/bin" / name).symlink_to("busybox")
    options = ["lowerdir={{ mount 0 }}", f"upperdir={folder}/upper", f"workdir={folder}/work"]
    return [
        Mount(type="bind", source=f"{folder}/lower", options=["rbind", "ro"]),
        Mount(type="format/overlay", source="overlay", options=options),
    ]


@pytest.mark.parametrize("runtime", ["io.containerd.runc.v2", "io.containerd.here.v2"])
def test_mounts_that_need_the_manager_are_a_containers_root(world: World, folder: Path, runtime: str) -> None:
    id_ = world.new()
    place = folder / f"mounts-{id_}"
    place.mkdir()
    rootfs = prefixed(place)
    world.does("c", "create", "--runtime", runtime, IMAGE, id_, "sleep", "600")
    metadata = (("containerd-namespace", world.place.namespace),)
    with grpc.insecure_channel(f"unix:{world.place.address}") as channel:
        tasks = tasks_pb2_grpc.TasksStub(channel)
        request = tasks_pb2.CreateTaskRequest(container_id=id_, rootfs=rootfs)
        tasks.Create(request, metadata=metadata, timeout=SECONDS)
        tasks.Start(tasks_pb2.StartRequest(container_id=id_), metadata=metadata, timeout=SECONDS)
    mounted = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{folder}/state" in line]
    assert [line.split()[4] for line in mounted if "mount-manager" in line]
    assert world.does("task", "exec", "--exec-id", "e", id_, "cat", "/proc/1/comm") == "sleep\n"
    world.remove(id_)
    shutil.rmtree(place)


def test_mounts_that_a_shim_allows_are_left_to_it(world: World, folder: Path) -> None:
    id_ = world.new()
    place = folder / f"mounts-{id_}"
    place.mkdir()
    world.does("c", "create", "--runtime", "io.containerd.allowing.v2", IMAGE, id_, "sleep", "600")
    metadata = (("containerd-namespace", world.place.namespace),)
    with grpc.insecure_channel(f"unix:{world.place.address}") as channel:
        request = tasks_pb2.CreateTaskRequest(container_id=id_, rootfs=prefixed(place))
        with pytest.raises(grpc.RpcError) as caught:
            tasks_pb2_grpc.TasksStub(channel).Create(request, metadata=metadata, timeout=SECONDS)
    # said by the shim, which in truth knows no more than any other
    assert "failed to mount rootfs component" in str(caught.value)
    assert "/state/io.containerd.mount-manager" not in Path("/proc/self/mountinfo").read_text()
    world.remove(id_)
    shutil.rmtree(place)


# --- classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(Path("/sys/fs/resctrl/schemata").exists(), reason="this host has classes of cache and memory")
def test_classes_reach_the_runtime_which_does_on_a_host_without_what_it_does_under_containerd(
    world: World, folder: Path
) -> None:
    flags = ("--rdt-class", "gold")
    with world.running(flags=flags) as id_:
        bundle = folder / f"state/io.containerd.runtime.v2.task/{world.place.namespace}/{id_}"
        assert json.loads((bundle / "config.json").read_bytes())["linux"]["intelRdt"] == {"closID": "gold"}
    with ExitStack() as stack:
        other = stack.enter_context(short_folder())
        address = stack.enter_context(containerd(other / "d"))
        place = Place(other, f"test-rdt-{os.getpid()}", address)
        peer = stack.enter_context(imported(World(CTRS[0], place, "runc", (), other / "d/log")))
        theirs = peer.run("pwd", flags=flags)
    assert replace(world, binary=CTRS[0]).run("pwd", flags=flags) == theirs
