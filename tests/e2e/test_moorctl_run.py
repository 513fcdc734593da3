"""`moorctl run` and what goes with it, on a real daemon: exit statuses, streams, what containers get, what is left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from e2e.containers import eventually
from e2e.moorctl import IMAGE, Moorctl, free_of, needs_moorctl

pytestmark = [*needs_moorctl, pytest.mark.usefixtures("nothing_of_moorctl_is_left")]
QUICK = ("run", "--rm", "--net", "none")


# --- exit statuses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("sh", "-c", "exit 7"), 7),
        (("nosuch",), 127),
        (("/no/such",), 127),
        (("/etc/passwd",), 126),
        (("/etc",), 126),
    ],
)
def test_the_exit_status_is_the_processs_or_tells_why_it_could_not_run(world, words, status):
    assert world.run(*QUICK, IMAGE, *words).status == status


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((*QUICK, "--pull", "never", "nosuch/image"), "there is no image 'nosuch/image'"),
        ((*QUICK, "-v", "a:b:c:d", IMAGE), "volume 'a:b:c:d' must look like"),
        ((*QUICK, "-p", "99999:1", IMAGE), "from 1 to 65535"),
        ((*QUICK, "--memory", "much", IMAGE), "size 'much' must be a number"),
        (("run", "--rm", "--net", "nosuch", IMAGE), "network 'nosuch' is not defined"),
        ((*QUICK, "-it", IMAGE), "standard input is no terminal, leave out -t"),
        ((*QUICK, "--restart", "always", IMAGE), "--rm and --restart exclude each other"),
        ((*QUICK, "--user", "nobody-here", IMAGE, "id"), "nobody-here"),
    ],
)
def test_an_error_of_moorctls_own_is_125_and_says_why(world, words, text):
    done = world.run(*words)

    assert done.status == 125
    assert text in done.err
    assert done.err.count("\n") == 1


def test_wrong_usage_is_2(world):
    assert world.run("run", "--no-such-option", IMAGE).status == 2


# --- streams ----------------------------------------------------------------------------------------------------------


def test_output_and_errors_stay_apart(world):
    done = world.run(*QUICK, IMAGE, "sh", "-c", "echo out; echo err >&2")

    assert (done.out, done.err) == ("out\n", "err\n")


def test_input_goes_through_whole(world):
    data = b"0123456789abcdef" * 65536

    done = world.run(*QUICK, "-i", IMAGE, "sh", "-c", "wc -c", data=data)

    assert done.out.strip() == str(len(data))


def test_all_output_comes_although_it_is_read_slowly(world):
    script = "i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done"
    with world.started(*QUICK, IMAGE, "sh", "-c", script) as process:
        size = 0
        while piece := process.stdout.read(4096):
            size += len(piece)

        assert (process.wait(30), size) == (0, 20000 * 11)


def test_without_i_there_is_no_input(world):
    assert world.run(*QUICK, IMAGE, "cat", data=b"x").out == ""


def test_who_writes_ends_with_who_reads(world):
    with world.started(*QUICK, IMAGE, "sh", "-c", "while echo y; do :; done") as process:
        process.stdout.read(10)
        process.stdout.close()

        assert process.wait(30) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""


def test_signals_are_passed_on(world):
    script = "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    with world.started(*QUICK, IMAGE, "sh", "-c", script) as process:
        assert process.stdout.readline() == b"ready\n"

        process.send_signal(signal.SIGTERM)

        out, _ = process.communicate(timeout=30)
        assert (process.returncode, out) == (9, b"got\n")


# --- what containers get ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words", "out"),
    [
        (("-e", "A=b", "-e", "MARK"), ("sh", "-c", "echo $A$MARK"), "bfrom here\n"),
        (("-w", "/tmp"), ("pwd",), "/tmp\n"),
        (("-u", "anna"), ("sh", "-c", "id -u; id -g"), "1000\n1001\n"),
        (("-u", "7:8"), ("sh", "-c", "id -u; id -g"), "7\n8\n"),
        (("--hostname", "ship"), ("hostname",), "ship\n"),
        (("--entrypoint", "echo"), ("a", "b"), "a b\n"),
        (("--tmpfs", "/t:size=64k"), ("sh", "-c", "mount | grep ' /t ' | cut -d' ' -f1"), "tmpfs\n"),
        (("--ulimit", "nofile=100:200"), ("sh", "-c", "ulimit -n; ulimit -Hn"), "100\n200\n"),
        (("--cap-drop", "ALL"), ("grep", "CapEff", "/proc/self/status"), "CapEff:\t0000000000000000\n"),
        (("--add-host", "buoy:10.9.8.7"), ("grep", "buoy", "/etc/hosts"), "10.9.8.7\tbuoy\n"),
        (("--dns", "10.1.1.1"), ("grep", "nameserver", "/etc/resolv.conf"), "nameserver 10.1.1.1\n"),
        (("--security-opt", "no-new-privileges"), ("grep", "NoNewPrivs", "/proc/self/status"), "NoNewPrivs:\t1\n"),
        (("--shm-size", "1m"), ("sh", "-c", "mount | grep -c 'shm.*size=1024k'"), "1\n"),
    ],
)
def test_a_container_gets_what_was_asked_for(world, flags, words, out):
    done = world.run(*QUICK, *flags, IMAGE, *words, MARK="from here")

    assert (done.out, done.status) == (out, 0)


def test_a_read_only_root_cannot_be_written_to(world):
    assert "Read-only" in world.run(*QUICK, "--read-only", IMAGE, "touch", "/x").err


def test_limits_reach_the_cgroup(world):
    flags = ("--memory", "64m", "--cpus", "0.5", "--pids-limit", "50")
    with world.running(flags=flags) as name:
        resources = world.json("inspect", name)[0]["spec"]["linux"]["resources"]
        id_ = world.json("inspect", name)[0]["id"]

        assert resources["memory"]["limit"] == 64 << 20
        assert resources["pids"]["limit"] == 50
        assert cgroup_file(world, id_, "memory", ("memory.limit_in_bytes", "memory.max")) == str(64 << 20)


def cgroup_file(world: Moorctl, id_: str, controller: str, names: tuple[str, ...]) -> str:
    base = Path("/sys/fs/cgroup")
    folder = base / controller if (base / controller).is_dir() else base
    found = [folder / world.place.namespace / id_ / name for name in names]
    return next(path for path in found if path.exists()).read_text().strip()


def test_a_bind_shows_the_hosts_files_and_ro_keeps_them(world):
    folder = world.place.folder / "shared"
    folder.mkdir(exist_ok=True)
    (folder / "file").write_text("here\n")

    read = world.run(*QUICK, "-v", f"{folder}:/s:ro", IMAGE, "sh", "-c", "cat /s/file; touch /s/new")

    assert read.out == "here\n"
    assert "Read-only" in read.err
    assert world.does(*QUICK, "-v", f"{folder}:/s", IMAGE, "touch", "/s/new") == ""
    assert (folder / "new").exists()


def test_a_named_volume_outlives_its_containers_and_a_nameless_one_does_not(world):
    volumes = world.place.folder / "own"

    world.does(*QUICK, "-v", "data:/d", "-v", "/other", IMAGE, "sh", "-c", "echo kept > /d/f; echo x > /other/f")

    assert world.does(*QUICK, "-v", "data:/d", IMAGE, "cat", "/d/f") == "kept\n"
    assert [path.name for path in volumes.glob("*/*/volumes/*")] == ["data"]


# --- in the background ------------------------------------------------------------------------------------------------


def test_a_detached_container_is_listed_logged_stopped_and_removed(world):
    with world.running("sh", "-c", "trap 'exit 3' TERM; echo out; echo err >&2; while :; do sleep 0.1; done") as name:
        world.log_has(name, "out")
        logs = world.run("logs", name)
        listed = world.json("ps")["containers"]

        assert (logs.out, logs.err) == ("out\n", "err\n")
        assert [(one["name"], one["status"], one["image"]) for one in listed] == [(name, "running", IMAGE)]
        assert world.does("stop", "-t", "20s", name) == f"{name}\n"
        assert world.json("ps", "-a")["containers"][0]["exit_code"] == 3
        assert world.does("wait", name) == "3\n"
        assert world.does("start", name) == f"{name}\n"
        assert world.status(name) == "running"


def test_what_does_not_end_by_itself_is_killed(world):
    with world.running() as name:
        world.does("stop", "-t", "0.2s", name)

        assert world.json("ps", "-a")["containers"][0]["exit_code"] == 137


def test_a_detached_container_with_rm_goes_when_it_ends(world):
    id_ = world.does("run", "-d", "--rm", "--net", "none", IMAGE, "echo", "bye").strip()

    eventually(lambda: world.status(id_) == "", lambda: f"{id_} is still {world.status(id_)}")
    eventually(lambda: free_of(world) == [], lambda: f"left: {free_of(world)}")


def test_an_attached_container_keeps_its_exit_status_and_can_be_started_again(world):
    try:
        assert world.run("run", "--name", "again", "--net", "none", IMAGE, "sh", "-c", "echo hi; exit 4").status == 4
        first = world.json("ps", "-a")["containers"][0]

        done = world.run("start", "-a", "again")

        assert (first["status"], first["exit_code"]) == ("exited", 4)
        assert (done.status, done.out) == (4, "hi\n")
    finally:
        world.run("rm", "again")


def test_logs_can_be_cut_by_time_and_number_and_followed(world):
    script = "i=0; while [ $i -lt 5 ]; do echo line$i; i=$((i+1)); done; sleep 1; echo last"
    with world.running("sh", "-c", script) as name:
        world.log_has(name, "line4")

        assert world.does("logs", "-f", name).splitlines() == [f"line{i}" for i in range(5)] + ["last"]
        assert world.does("logs", "--tail", "2", name) == "line4\nlast\n"
        assert world.does("logs", "--since", "1h", name).count("\n") == 6
        assert world.does("logs", "--since", "2999-01-01T00:00:00Z", name) == ""
        assert world.does("logs", "--until", "1h", name) == ""
        stamped = world.does("logs", "-t", "--tail", "1", name)
        assert stamped.endswith("Z last\n")
        assert len(stamped.split()) == 2


def test_logs_are_rotated_by_size_and_read_in_order(world):
    script = "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done"
    flags = ("--log-opt", "max-size=20k", "--log-opt", "max-file=20")
    with world.running("sh", "-c", script, flags=flags) as name:
        world.log_has(name, "\n2999\n")
        world.becomes(name, "exited")

        files = sorted((world.place.folder / "own").glob("*/*/containers/*/log.json*"))
        assert len(files) > 3
        assert world.does("logs", name).splitlines() == [str(number) for number in range(3000)]
        assert world.does("logs", "--tail", "1500", name).splitlines() == [str(n) for n in range(1500, 3000)]


def test_old_logs_go(world):
    script = "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done"
    with world.running("sh", "-c", script, flags=("--log-opt", "max-size=20k", "--log-opt", "max-file=2")) as name:
        world.log_has(name, "\n2999\n")
        world.becomes(name, "exited")

        files = list((world.place.folder / "own").glob("*/*/containers/*/log.json*"))
        assert len(files) == 2
        assert sum(file.stat().st_size for file in files) < 3 * 20 * 1024 + 2 * (1 << 17)


def test_a_plain_log_has_the_bytes_as_they_came(world):
    with world.running("sh", "-c", "echo one; echo two", flags=("--log-driver", "plain")) as name:
        world.log_has(name, "two")

        assert world.does("logs", "--tail", "1", name) == "two\n"
        assert "plain and has no times" in world.run("logs", "-t", name).err


def test_restart_always_brings_it_back_and_stop_does_not(world):
    with world.running("sh", "-c", "echo begun; sleep 600", flags=("--restart", "always")) as name:
        first = world.json("inspect", name)[0]["pid"]

        os.kill(first, signal.SIGKILL)

        eventually(lambda: pid_of(world, name) not in (None, first), lambda: f"{name} was not started again")
        eventually(lambda: world.does("logs", name) == "begun\nbegun\n", lambda: world.does("logs", name))
        world.does("stop", "-t", "0", name)
        labels = world.json("inspect", name)[0]["labels"]
        assert labels["containerd.io/restart.status"] == "stopped"
        assert world.status(name) == "exited"


def pid_of(world: Moorctl, name: str) -> int | None:
    found = world.json("inspect", name)[0]["pid"]
    return int(found) if found else None


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_container_is_found_by_name_id_and_the_beginning_of_its_id(world):
    with world.running() as name:
        id_ = world.json("ps")["containers"][0]["id"]

        assert {world.json("inspect", text)[0]["id"] for text in (name, id_, id_[:7])} == {id_}
        assert "there is no container 'nosuch'" in world.run("stop", "nosuch").err


def test_a_name_is_one_containers_only(world):
    with world.running() as name:
        done = world.run("run", "-d", "--net", "none", "--name", name, IMAGE)

        assert done.status == 125
        assert f"name {name!r} is that of container" in done.err


def test_rm_refuses_what_runs_unless_forced(world):
    with world.running() as name:
        done = world.run("rm", name)

        assert done.status == 1
        assert "use rm -f" in done.err
        assert world.does("rm", "-f", name) == f"{name}\n"


def test_some_that_fail_do_not_keep_the_others(world):
    with world.running() as name:
        done = world.run("rm", "-f", "nosuch", name)

        assert done.status == 1
        assert done.out == f"{name}\n"
        assert "nosuch" in done.err


def test_of_two_that_ask_for_a_name_at_one_time_one_gets_it(world):
    words = ("create", "--name", "both", "--net", "none", IMAGE, "ls")
    try:
        with world.started(*words) as one, world.started(*words) as other:
            done = [process.communicate(timeout=60) for process in (one, other)]

        assert sorted(process.returncode for process in (one, other)) == [0, 1]
        assert b"name 'both'" in b"".join(err for _, err in done)
        assert len(world.json("ps", "-a")["containers"]) == 1
    finally:
        world.run("rm", "both")
