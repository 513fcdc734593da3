"""Tasks as real clients see them: ctr of both lines on a real daemon, beside the containerd that it comes with."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.busybox import NAME
from e2e.clients import (
    EXTERNAL_SHIM,
    OWN_SHIM,
    PATIENCE,
    Client,
    containerd_of,
    daemon_of,
    every_ctr,
    import_image,
    moored,
    namespace,
    needs_ctr_and_runc,
    peer_of,
    processes_in,
    short_folder,
)

pytestmark = needs_ctr_and_runc
SIZE = 'tty; until [ "$(stty size 2>/dev/null)" ]; do sleep 0.02; done; stty size'
"""Shows the terminal and its size, which clients set a moment after the start."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


# --- what ctr does ----------------------------------------------------------------------------------------------------


def live(client: Client) -> None:
    """A life of tasks, with everything that can be asked of them and much that they refuse."""
    run = client.run
    run("run", "--rm", NAME, "r1", "sh", "-c", "echo out; echo err >&2; exit 3")
    run("run", "--rm", NAME, "r2", "head", "-n", "1", data="given\nlines\n")
    run("run", "--rm", "--env", "A=b", "--cwd", "/tmp", NAME, "r3", "sh", "-c", "echo $A $GREETING; pwd; id -u")
    run("run", "--rm", "--null-io", NAME, "r4", "echo", "unheard")
    run("run", "--rm", NAME, "r5", "/no/such/program")
    run("run", "--rm", "docker.io/test/none:latest", "r6")
    run("run", "--rm", "--runtime", "io.example.none.v1", NAME, "r7", "true")
    client.in_terminal("run", "--rm", "-t", NAME, "r8", "sh", "-c", f"{SIZE}; exit 5")
    run("tasks", "ls")
    run("containers", "ls", "-q")
    run("run", "-d", *client.fifos, NAME, "c1", "sleep", "1000")
    run("run", "-d", *client.fifos, NAME, "c1", "sleep", "1000")
    run("tasks", "ls")
    run("containers", "ls")
    run("containers", "info", "c1")
    run("tasks", "ps", "c1")
    run("tasks", "exec", "--exec-id", "e1", "c1", "sh", "-c", "echo out; echo err >&2; exit 5")
    run("tasks", "exec", "--exec-id", "e2", "c1", "cat", data="given")
    run("tasks", "exec", "--exec-id", "e3", "c1", "/no/such/program")
    run("tasks", "exec", "--exec-id", "e 4", "c1", "true")
    client.in_terminal("tasks", "exec", "-t", "--exec-id", "e5", "c1", "sh", "-c", SIZE)
    run("tasks", "pause", "c1")
    run("tasks", "ls")
    run("tasks", "pause", "c1")
    run("tasks", "exec", "--exec-id", "e6", "c1", "true")
    run("tasks", "resume", "c1")
    run("tasks", "resume", "c1")
    run("tasks", "start", "c1")
    run("tasks", "rm", "c1")
    run("containers", "rm", "c1")
    for words in ("ps", "kill", "pause", "resume", "metrics", "rm", "attach", "start"):
        run("tasks", words, "c2")
    run("tasks", "exec", "--exec-id", "e1", "c2", "true")
    run("tasks", "kill", "-s", "SIGKILL", "c1")
    client.until("STOPPED", "tasks", "ls")
    run("tasks", "ls")
    run("tasks", "ps", "c1")
    run("tasks", "pause", "c1")
    run("tasks", "rm", "c1")
    run("tasks", "ls")
    run("tasks", "start", "-d", "--null-io", "c1")
    run("tasks", "rm", "-f", "c1")
    run("containers", "rm", "c1")
    run("containers", "rm", "c1")
    run("containers", "ls", "-q")
    run("snapshots", "ls")


@pytest.mark.parametrize("config", [pytest.param(OWN_SHIM, id="own"), pytest.param(EXTERNAL_SHIM, id="external")])
@every_ctr
def test_ctr_shows_the_same_of_containerd(folder: Path, ctr: str, config: str) -> None:
    peer_of(ctr)
    with moored(folder / "m", ctr, config) as client:
        live(client)
        ours = client.answers
    with containerd_of(folder / "c", ctr) as client:
        live(client)
        theirs = client.answers

    different = [f"ours   {our}\ntheirs {their}" for our, their in zip(ours, theirs, strict=True) if our != their]
    assert not different, "\n".join(different)


# --- events -----------------------------------------------------------------------------------------------------------


@contextmanager
def events(client: Client) -> Generator[list[str]]:
    """What `ctr events` shows during the block, without times, pids and paths; filled at its end."""
    lines: list[str] = []
    process = subprocess.Popen(
        client.command("events"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=client.environment
    )
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
    reader.start()
    try:
        # Nothing tells when the subscription stands: the first event that is seen does.
        deadline = time.monotonic() + PATIENCE
        while not lines:
            subprocess.run(client.command("namespaces", "label", client.namespace, "a=b"), check=True)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        lines.clear()
        yield lines
        client.run("containers", "create", "--rootfs", "/none", "last")
        client.run("containers", "rm", "last")
        while not any("/containers/delete" in line and "last" in line for line in lines):
            assert time.monotonic() < deadline + PATIENCE
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
        reader.join(PATIENCE)
        process.stdout.close()
    lines[:] = [str(client.normal(line)).strip() for line in lines if "/namespaces/" not in line]


def eventful(client: Client) -> list[str]:
    """Two tasks with all that is told of them."""
    with events(client) as seen:
        client.run("run", "--rm", NAME, "r1", "sh", "-c", "exit 3")
        client.run("run", "-d", "--null-io", NAME, "c1", "sleep", "1000")
        client.run("tasks", "exec", "--exec-id", "e1", "c1", "sh", "-c", "exit 5")
        client.run("tasks", "pause", "c1")
        client.run("tasks", "resume", "c1")
        client.run("tasks", "kill", "-s", "SIGKILL", "c1")
        client.until("STOPPED", "tasks", "ls")
        client.run("tasks", "rm", "c1")
        client.run("containers", "rm", "c1")
    return seen


@every_ctr
def test_subscribers_see_what_they_see_of_containerd(folder: Path, ctr: str) -> None:
    peer_of(ctr)
    with moored(folder / "m", ctr) as client:
        ours = eventful(client)
    with containerd_of(folder / "c", ctr) as client:
        theirs = eventful(client)

    def of(lines: list[str], *, tasks: bool) -> list[str]:
        # Shims of containerd may end before they have told of a delete.
        return [line for line in lines if ("/tasks/" in line) is tasks and "/tasks/delete" not in line]

    assert of(ours, tasks=True) == of(theirs, tasks=True)
    assert of(ours, tasks=False) == of(theirs, tasks=False)
    topics = [line.split()[2] for line in ours if "/tasks/" in line]
    one = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    exec_ = ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]
    assert topics == [*one, *one[:2], *exec_, "/tasks/paused", "/tasks/resumed", *one[2:]]


# --- attach, restart, metrics -----------------------------------------------------------------------------------------


@every_ctr
def test_attached_client_gets_output_and_exit(folder: Path, ctr: str) -> None:
    with moored(folder / "m", ctr) as client:
        client.run(
            "run", "-d", *client.fifos, NAME, "c1", "sh", "-c", "read line; echo got $line; echo err >&2; exit 4"
        )
        assert client.run("tasks", "attach", "c1", data="hello\n") == (4, "got hello\n", "err\n")
        client.run("containers", "rm", "c1")


@every_ctr
def test_tasks_live_on_over_a_restart_of_the_daemon(folder: Path, ctr: str) -> None:
    with namespace() as name:
        with daemon_of(folder / "m", ctr) as daemon:
            client = Client(ctr, daemon.socket, name)
            import_image(client, folder / "m")
            for number in range(2):
                client.run("run", "-d", "--null-io", NAME, f"c{number}", "sleep", "1000")
            before = client.run("tasks", "ls")[1]
            victim = next(line.split()[1] for line in before.splitlines() if line.startswith("c1"))
        os.kill(int(victim), signal.SIGKILL)
        daemon.log.unlink()
        with daemon:
            after = client.run("tasks", "ls")[1]
            assert after.splitlines()[:2] == before.splitlines()[:2]
            assert [line.split() for line in after.splitlines()[2:]] == [["c1", victim, "STOPPED"]]
            assert "137" in "".join(map(str, client.run("tasks", "rm", "c1")))
            client.run("tasks", "rm", "-f", "c0")
            for number in range(2):
                assert client.run("containers", "rm", f"c{number}")[0] == 0
        assert processes_in(folder) == []


@every_ctr
def test_restart_monitor_keeps_a_task_running(folder: Path, ctr: str) -> None:
    config = OWN_SHIM + '[plugins."io.containerd.monitor.container.v1.restart"]\ninterval = "1s"\n'
    log = folder / "log"
    labels = {"status": "running", "policy": "always", "loguri": f"file://{log}"}
    words = [word for name, value in labels.items() for word in ("--label", f"containerd.io/restart.{name}={value}")]
    with moored(folder / "m", ctr, config) as client:
        client.run("run", "-d", "--null-io", *words, NAME, "c1", "sh", "-c", "echo begun; sleep 1000")

        def pid() -> str:
            rows = [line.split() for line in client.run("tasks", "ls")[1].splitlines()[1:]]
            return next((row[1] for row in rows if row[2] == "RUNNING"), "")

        def changed(before: str) -> str:
            deadline = time.monotonic() + PATIENCE
            while (now := pid()) in {"", before}:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            return now

        first = pid()
        os.kill(int(first), signal.SIGKILL)
        second = changed(first)
        os.kill(int(second), signal.SIGKILL)
        changed(second)
        assert '"containerd.io/restart.count": "2"' in client.run("containers", "info", "c1")[1]
        client.run("containers", "label", "c1", "containerd.io/restart.status=stopped")
        deadline = time.monotonic() + PATIENCE
        while len(client.run("tasks", "ls")[1].splitlines()) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        client.run("containers", "rm", "c1")
        assert log.read_text() == "begun\n" * 2


def shown(address: str) -> set[tuple[str, tuple[str, ...]]]:
    """Name and labels of every metric of containers."""
    with urllib.request.urlopen(f"http://{address}/v1/metrics", timeout=PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    found = [re.fullmatch(r"(container_\w+)\{(.*)\} \S+", line) for line in lines]
    return {(one[1], tuple(sorted(re.findall(r"(\w+)=", one[2])))) for one in found if one}


@every_ctr
def test_metrics_are_those_of_containerd(folder: Path, ctr: str) -> None:
    peer_of(ctr)
    listener = "io.containerd.server.v1.metrics"
    config = f'{OWN_SHIM}[plugins."{listener}"]\naddress = "127.0.0.1:0"\n'

    def measured(client: Client, address: str) -> set[tuple[str, tuple[str, ...]]]:
        client.run("run", "-d", "--null-io", NAME, "c1", "sleep", "1000")
        found = shown(address)
        client.run("tasks", "rm", "-f", "c1")
        assert shown(address) == set()
        client.run("containers", "rm", "c1")
        return found

    with daemon_of(folder / "m", ctr, config) as daemon, namespace() as name:
        client = Client(ctr, daemon.socket, name)
        import_image(client, folder / "m")
        ours = measured(client, daemon.plugins()[listener].exports["address"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with containerd_of(folder / "c", ctr, f'[metrics]\naddress = "{address}"\n') as client:
        theirs = measured(client, address)

    assert theirs
    assert theirs <= ours
    assert {name for name, _ in ours - theirs} <= {"container_memory_oom_total"}
