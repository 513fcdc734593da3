"""What real clients do with containers of runc, crun and gVisor, by our shim and by containerd's; nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from daemons import Daemon
from e2e.containers import World, eventually, imported, short_folder, terminal
from e2e.images import CTRS
from leftovers import Place, nothing_left
from peers import containerd, needs_containerd

pytestmark = [*needs_containerd, pytest.mark.skipif(not shutil.which("busybox"), reason="needs a static busybox")]

SHIM = "containerd-shim-moored-v2"
WORLDS = {
    "runc": ("moored", "runc", ()),
    "crun": ("moored", "crun", ("--runtime", "io.containerd.crun.v2")),
    "runsc": ("moored", "runsc", ("--runtime", "io.containerd.runsc.v1")),
    "crun-by-binary": ("moored", "crun", ("--runc-binary", "crun")),
    "containerds-shim": ("moored, shims apart", "runc", ()),
    "under-containerd": ("containerd", "runc", ("--runtime", "io.containerd.moored.v2")),
    "containerd": ("containerd", "runc", ()),
}
"""The last one tells whether the tests are right."""
FITS = "while [ \"$(stty size 2>&1)\" != '{}' ]; do sleep 0.05; done; echo 'now it fits'"
"""A script that waits for a terminal's size, which clients set once the process runs."""
SHIMS_APART = 'version = 4\n[plugins."io.containerd.runtime.v2.task".runtimes]\n"io.containerd.runc.v2" = "shim"\n'


def worlds() -> Iterator[object]:
    for binary in CTRS:
        for name, (server, kind, _) in WORLDS.items():
            newer = binary != CTRS[0]
            if newer and (server == "containerd" or name == "crun-by-binary"):
                continue  # a client newer than its daemon, and one more way to the same
            marks = [pytest.mark.skipif(not shutil.which(kind), reason=f"needs {kind}")]
            yield pytest.param((binary, name), marks=marks, id=f"{name}-{len(CTRS[: CTRS.index(binary)])}")


@pytest.fixture(scope="module", params=worlds())
def shared(request: pytest.FixtureRequest) -> Iterator[World]:
    binary, name = request.param
    server, kind, flags = WORLDS[name]
    with ExitStack() as stack:
        folder = stack.enter_context(short_folder())
        if server == "containerd":
            shim_on_path(stack, folder)
            address, log = stack.enter_context(containerd(folder / "d")), folder / "d/log"
        else:
            config = SHIMS_APART if server == "moored, shims apart" else "version = 4\n"
            daemon = stack.enter_context(Daemon(folder, config))
            address, log = daemon.socket, daemon.log
        place = Place(folder, f"test-{name}-{os.getpid()}", address)
        yield stack.enter_context(imported(World(binary, place, kind, flags, log)))


def shim_on_path(stack: ExitStack, folder: Path) -> None:
    """Our shim as an installed script, for daemons that look for it on PATH."""
    import sys

    (folder / "bin").mkdir()
    script = folder / "bin" / SHIM
    paths = json.dumps([path for path in sys.path if path])
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:0] = {paths}\n"
        "from moored.plugins.runtime.shim.main import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    before = shared.place.found()
    at = len(shared.used)
    yield shared
    try:
        nothing_left(shared.place, before, shared.used[at:])
        assert shared.does("task", "ls", "-q") == ""
        assert shared.does("c", "ls", "-q") == ""
        assert shared.does("snapshots", "ls").count("\n") == 2
    finally:
        for id_ in shared.ctr("c", "ls", "-q").out.split():
            shared.remove(id_)


# --- run --------------------------------------------------------------------------------------------------------------


def test_run_gives_output_and_status(world: World) -> None:
    done = world.run("sh", "-c", "echo out; echo err >&2; exit 3")

    assert (done.status, done.out, done.err) == (3, "out\n", "err\n")


def test_run_passes_its_input_on_until_it_ends(world: World) -> None:
    # more than pipes hold: a client that reads the end before the task has started never passes it on
    data = b"a line\n" * 200_000

    done = world.run("wc", "-c", data=data)

    assert (done.status, done.out.strip()) == (0, str(len(data)))


def test_run_passes_much_output_on(world: World) -> None:
    done = world.run("head", "-c", "3000000", "/dev/zero")

    assert (done.status, len(done.out)) == (0, 3_000_000)


def test_program_that_is_missing_is_told(world: World) -> None:
    done = world.run("no-such-program")
    # where that fails the start, not the creation, older clients leave the task
    world.remove(world.used[-1])

    assert done.status != 0
    assert "no-such-program" in done.err


def test_terminal(world: World) -> None:
    script = f"{FITS.format('24 80')}; [ -t 0 ] && echo on a terminal; read -r x; echo got $x; exit 5"
    words = world.words(world.new(), "sh", "-c", script, flags=("--rm", "-t"))
    with terminal(world.command(*words)) as screen:
        screen.expect("on a terminal")
        screen.type("hello\n")
        screen.expect("got hello")
        status = screen.end()

    assert status == 5


def test_terminal_follows_the_clients_size(world: World) -> None:
    script = FITS.format("50 132")
    with terminal(world.command(*world.words(world.new(), "sh", "-c", script, flags=("--rm", "-t")))) as screen:
        screen.resize(50, 132)
        screen.expect("now it fits")
        assert screen.end() == 0


def test_rootfs_of_ones_own(world: World, tmp_path: Path) -> None:
    for name in ("bin", "dev", "proc", "sys", "tmp"):
        (tmp_path / name).mkdir()
    shutil.copy(str(shutil.which("busybox")), tmp_path / "bin/sh")

    id_ = world.new()
    done = world.ctr(
        *world.words(
            id_, "/bin/sh", "-c", "echo mine > /made; echo ok", flags=("--rm", "--rootfs"), image=str(tmp_path)
        )
    )

    assert (done.status, done.out) == (0, "ok\n")
    assert (tmp_path / "made").read_text() == "mine\n"


def test_environment_folder_and_mounts(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("shared")
    mount = f"type=bind,src={tmp_path},dst=/mnt,options=rbind:ro"
    script = 'echo "$A $PWD"; cat /mnt/file; echo x > /mnt/new'

    done = world.run("sh", "-c", script, flags=("--env", "A=b c", "--cwd", "/tmp", "--mount", mount))

    assert done.out == "b c /tmp\nshared"
    assert done.status == 1
    assert not (tmp_path / "new").exists()


def test_user(world: World) -> None:
    if "--user" not in world.does("run", "--help"):
        pytest.skip("this client has no such flag")

    done = world.run("id", flags=("--user", "anna"))

    assert "uid=1000(anna) gid=1001(anna)" in done.out


def test_network_of_its_own_and_of_the_host(world: World) -> None:
    names = sorted(path.name for path in Path("/sys/class/net").iterdir())
    list_ = ("sh", "-c", "cat /proc/net/dev | grep : | cut -d: -f1 | tr -d ' '")

    own, hosts = world.run(*list_), world.run(*list_, flags=("--net-host",))

    assert own.out.split() in ([], ["lo"])
    assert set(names) >= set(hosts.out.split()) >= {"lo"}
    assert len(hosts.out.split()) > 1 or names == ["lo"]


def test_limits_reach_the_cgroup(world: World) -> None:
    with world.running(flags=("--memory-limit", str(64 << 20), "--cpus", "0.5")) as id_:
        if Path("/sys/fs/cgroup/memory").is_dir():
            memory = world.cgroup("memory", id_, "memory.limit_in_bytes")
            cpu = f"{world.cgroup('cpu', id_, 'cpu.cfs_quota_us')} {world.cgroup('cpu', id_, 'cpu.cfs_period_us')}"
        else:
            memory, cpu = world.cgroup("", id_, "memory.max"), world.cgroup("", id_, "cpu.max")

    assert (memory, cpu) == (str(64 << 20), "50000 100000")


def test_pid_file(world: World, tmp_path: Path) -> None:
    with world.running(flags=("--pid-file", tmp_path / "pid")) as id_:
        assert int((tmp_path / "pid").read_text()) == world.pid(id_)


def test_output_into_a_file(world: World, tmp_path: Path) -> None:
    log = tmp_path / "deep" / "log"

    with world.running("sh", "-c", "echo err >&2; echo out; exec sleep 600", flags=("--log-uri", f"file://{log}")):
        eventually(lambda: log.exists() and log.read_text().count("\n") == 2, log.read_text)

    assert sorted(log.read_text().split()) == ["err", "out"]


def test_output_into_a_program(world: World, tmp_path: Path) -> None:
    logger = tmp_path / "logger"
    logger.write_text(f'#!/bin/sh\nexec 5>&-\necho "$CONTAINER_ID $@" > {tmp_path}/args\ncat <&3 > {tmp_path}/out\n')
    logger.chmod(0o755)

    with world.running("echo", "hello", flags=("--log-uri", f"binary://{logger}?k=v")) as id_:
        world.becomes(id_, "STOPPED")
        eventually(lambda: (tmp_path / "out").exists() and bool((tmp_path / "out").read_text()), lambda: "no output")

    assert (tmp_path / "out").read_text() == "hello\n"
    assert (tmp_path / "args").read_text() == f"{id_} k v\n"


def test_no_output_at_all(world: World) -> None:
    done = world.run("echo", "hello", flags=("--null-io",))

    assert (done.status, done.out) == (0, "")


def test_privileged_has_more_capabilities(world: World) -> None:
    script = ("grep", "CapEff", "/proc/self/status")

    few, many = world.run(*script), world.run(*script, flags=("--privileged",))

    assert (few.status, many.status) == (0, 0), many.err
    assert int(few.out.split()[1], 16).bit_count() < int(many.out.split()[1], 16).bit_count()


def test_read_only_root(world: World) -> None:
    done = world.run("touch", "/x", flags=("--read-only",))

    assert done.status == 1
    assert "Read-only file system" in done.err


def test_cni_network(world: World, tmp_path: Path) -> None:
    if not Path("/usr/lib/cni/ptp").exists():
        pytest.skip("needs the CNI plugins")
    if world.kind == "runsc":
        pytest.skip("the client makes the network after the sandbox has read it")
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.213.7.0/29"}]], "dataDir": str(tmp_path / "ipam")}
    network = {"cniVersion": "0.4.0", "name": "t", "plugins": [{"type": "ptp", "ipam": ipam}]}
    (tmp_path / "net.d").mkdir()
    (tmp_path / "net.d/10-t.conflist").write_text(json.dumps(network))
    # the client looks in fixed places; in a mount namespace of its own they can be anything
    places = f"""
for one in etc opt; do mkdir -p {tmp_path}/$one/up {tmp_path}/$one/work
mount -t overlay -o lowerdir=/$one,upperdir={tmp_path}/$one/up,workdir={tmp_path}/$one/work overlay /$one; done
mkdir -p /etc/cni/net.d /opt/cni/bin; cp {tmp_path}/net.d/* /etc/cni/net.d/; mount --bind /usr/lib/cni /opt/cni/bin
exec "$@"
"""
    prefix = ["unshare", "-m", "--propagation", "slave", "sh", "-ec", places, "sh"]

    script = "until ip -4 addr show eth0 2>/dev/null | grep inet; do sleep 0.05; done"
    done = world.run("sh", "-c", script, flags=("--cni",), prefix=prefix)

    assert done.status == 0, done.err
    assert "inet 10.213.7." in done.out


def test_eight_at_once(world: World) -> None:
    results: list[tuple[int, str]] = []
    ids = [world.new() for _ in range(8)]

    def one(id_: str) -> None:
        done = world.ctr(*world.words(id_, "echo", id_, flags=("--rm",)))
        results.append((done.status, done.out.strip() or done.err))

    threads = [threading.Thread(target=one, args=(id_,)) for id_ in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(results) == sorted((0, id_) for id_ in ids)


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_background_task_is_listed_and_removed(world: World) -> None:
    with world.running() as id_:
        assert world.status(id_) == "RUNNING"
        assert Path(f"/proc/{world.pid(id_)}").exists()
        refused = world.ctr("task", "rm", id_)

        assert refused.status != 0 or "cannot delete a running process" in refused.err
        world.does("task", "kill", "-s", "SIGKILL", id_)
        world.becomes(id_, "STOPPED")
        world.does("task", "rm", id_)
        assert world.status(id_) == ""
        world.does("c", "rm", id_)


def test_container_without_task_is_started_later(world: World) -> None:
    if "--runc-binary" in world.flags:
        pytest.skip("the client has no such flag for this")
    id_ = world.new()
    world.does("c", "create", *world.words(id_, "ls", "/no-such-file")[1:])
    info = json.loads(world.does("c", "info", id_))
    listed = world.does("c", "ls")

    done = world.ctr("task", "start", id_)

    assert info["ID"] == id_
    assert id_ in listed
    assert (done.status, done.err) == (1, "ls: /no-such-file: No such file or directory\n")
    world.ctr("task", "rm", id_)
    world.does("c", "rm", id_)


def test_processes_are_listed(world: World) -> None:
    with world.running("sh", "-c", "sleep 600 & wait") as id_:
        pids = [int(line.split()[0]) for line in world.does("task", "ps", id_).splitlines()[1:]]

        assert world.pid(id_) in pids
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        assert len(pids) == (1 if world.kind == "runsc" else 2)


def test_exec_gives_output_and_status(world: World) -> None:
    with world.running() as id_:
        done = world.ctr("task", "exec", "--exec-id", "e", id_, "sh", "-c", "pwd; echo err >&2; exit 4")
        again = world.ctr("task", "exec", "--exec-id", "e", "--cwd", "/tmp", id_, "pwd")
        piped = world.ctr("task", "exec", "--exec-id", "e", id_, "cat", data=b"into it")
        as_user = world.ctr("task", "exec", "--exec-id", "e", "--user", "1000", id_, "id", "-u")

    assert (done.status, done.out, done.err) == (4, "/\n", "err\n")
    assert (again.status, again.out) == (0, "/tmp\n")
    assert (piped.status, piped.out) == (0, "into it")
    assert as_user.out == "1000\n", as_user.err


def test_exec_on_a_terminal(world: World) -> None:
    with world.running() as id_:
        script = f"{FITS.format('24 80')}; read x; echo got $x; exit 2"
        with terminal(world.command("task", "exec", "-t", "--exec-id", "e", id_, "sh", "-c", script)) as screen:
            screen.expect("now it fits")
            screen.type("it\n")
            screen.expect("got it")
            assert screen.end() == 2


def test_exec_of_a_missing_program_is_told(world: World) -> None:
    with world.running() as id_:
        done = world.ctr("task", "exec", "--exec-id", "e", id_, "no-such-program")

        assert done.status != 0
        assert "no-such-program" in done.err
        assert world.status(id_) == "RUNNING"


def test_exec_is_signalled_alone(world: World) -> None:
    with world.running() as id_:
        command = world.command("task", "exec", "--exec-id", "e", id_, "sh", "-c", "echo up; exec sleep 600")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
            assert process.stdout
            assert process.stdout.readline() == b"up\n"
            world.does("task", "kill", "-s", "SIGKILL", "--exec-id", "e", id_)
            status = process.wait(30)

        assert status == 137
        assert world.status(id_) == "RUNNING"


def test_signals_are_delivered(world: World) -> None:
    script = "trap 'echo caught; exit 9' TERM; echo ready; while true; do sleep 0.05; done"
    command = world.command(*world.words(id_ := world.new(), "sh", "-c", script, flags=("--rm",)))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        world.does("task", "kill", id_)
        said = process.stdout.read()
        status = process.wait(30)

    assert (status, said) == (9, b"caught\n")


def test_kill_of_all_processes(world: World) -> None:
    with world.running("sh", "-c", "sleep 600 & sleep 600") as id_:
        world.does("task", "kill", "--all", "-s", "SIGKILL", id_)
        world.becomes(id_, "STOPPED")


def test_pause_and_resume(world: World) -> None:
    with world.running() as id_:
        world.does("task", "pause", id_)
        paused = world.status(id_)
        world.does("task", "resume", id_)

        assert (paused, world.status(id_)) == ("PAUSED", "RUNNING")


def test_metrics(world: World) -> None:
    with world.running() as id_:
        printed = world.does("task", "metrics", id_)

    assert id_ in printed
    assert "memory.usage_in_bytes" in printed or "memory.usage" in printed


def test_attach(world: World) -> None:
    fifos = world.place.folder / "attached"
    id_ = world.new()
    # ctr opens its pipes side by side: one that ends at once may have closed its output before ctr reads there
    script = "read x; echo got $x; sleep 0.3; exit 8"
    command = world.command(*world.words(id_, "sh", "-c", script, flags=("--fifo-dir", fifos)))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        world.becomes(id_, "RUNNING")
        # a client that goes away leaves the task, and another takes its place
        first.kill()
        first.wait()
        done = world.ctr("task", "attach", id_, data=b"me\n")

    assert "got me" in done.out
    assert done.status == 8
    world.remove(id_)
    shutil.rmtree(fifos, ignore_errors=True)


def test_checkpoint_and_what_is_told_where_it_cannot_be_made(world: World, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with world.running(flags=("--null-io",)) as id_:
        done = world.ctr("task", "checkpoint", "--exit", "--image-path", image, id_)
        if world.kind != "runsc" and criu_works():
            world.becomes(id_, "STOPPED")
            assert done.status == 0, done.err
            assert any(image.glob("core-*.img"))
        else:
            assert done.status != 0
            assert "checkpoint" in done.err.lower() or "criu" in done.err.lower()
            assert world.status(id_) == "RUNNING"


def criu_works() -> bool:
    if not shutil.which("criu"):
        return False
    return subprocess.run(["criu", "check"], capture_output=True, check=False).returncode == 0


def test_removing_a_running_container_by_force(world: World) -> None:
    with world.running() as id_:
        world.does("task", "rm", "--force", id_)
        world.does("c", "rm", id_)


def test_container_needs_another_name(world: World) -> None:
    with world.running() as id_:
        again = world.ctr(*world.words(id_, "true", flags=("--rm",)))

    assert again.status != 0
    assert "already exists" in again.err
