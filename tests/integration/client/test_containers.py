"""Containers, tasks and their streams, against real daemons and a real runtime."""

from __future__ import annotations

import asyncio
import shutil
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from e2e.test_checkpoint import criu_works
from harness import on_loop
from integration.client.conftest import NAME
from moored.api.client import Options
from moored.api.client.containers import STOP_SIGNAL
from moored.api.client.spec import Device, Mount, Resources
from moored.api.client.stdio import NULL, PIPES, PIPES_AND_STDIN, TERMINAL, log_to
from moored.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, MooredError, NotFound, Unknown
from moored.kernel.ports.tasks import Status


@asynccontextmanager
async def container(peer, *args, **given):
    """A container of the image, gone at the end with all that is in it."""
    create = {name: given.pop(name) for name in ("labels", "runtime", "rootfs", "spec") if name in given}
    async with peer.client() as client:
        made = await client.containers.create(
            peer.new(), NAME, Options(args=args or ("sleep", "600"), **given), **create
        )
        try:
            yield made
        finally:
            await made.delete(force=True)


@on_loop
async def test_a_container_runs_and_tells_how_it_ended(peer):
    async with container(peer, "sh", "-c", "echo out; echo err >&2; cat; exit 3") as made:
        result = await made.run(stdin=b"in\n")

        assert (result.stdout, result.stderr, result.exit.status) == (b"out\nin\n", b"err\n", 3)
        assert result.exit.exited_at is not None
        with pytest.raises(NotFound):
            await made.task()


@on_loop
async def test_much_output_comes_whole(peer):
    async with container(peer, "sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done") as made:
        result = await made.run()

    assert result.stdout.splitlines()[-1] == b"line 19999"
    assert len(result.stdout.splitlines()) == 20000


@on_loop
async def test_much_input_comes_whole(peer):
    async with container(peer, "wc", "-c") as made:
        result = await made.run(stdin=bytes(1 << 20))

    assert result.stdout.split() == [b"1048576"]


@on_loop
async def test_a_conversation_line_by_line(peer):
    script = "while read x; do echo got $x; done"
    async with container(peer, "sh", "-c", script) as made, await made.create_task(PIPES_AND_STDIN) as task:
        await task.start()
        for word in (b"one", b"two"):
            await task.stdin.write(word + b"\n")
            assert await task.stdout.readline() == b"got " + word + b"\n"
        await task.stdin.close()

        assert (await task.wait()).status == 0


@on_loop
async def test_a_terminal_has_a_size_that_can_be_changed(peer):
    async with container(peer, "sh", terminal=True) as made, await made.create_task(TERMINAL) as task:
        await task.start()
        await task.resize(101, 33)
        await task.stdin.write(b"stty size; exit 4\n")

        assert b"33 101" in await task.stdout.read()
        assert (await task.wait()).status == 4
        assert task.stderr is None


@on_loop
async def test_streams_must_suit_the_process(peer):
    async with container(peer, terminal=True) as made:
        with pytest.raises(InvalidArgument, match="terminal=True"):
            await made.create_task(PIPES)


@on_loop
async def test_execs_have_streams_environment_user_and_exit_of_their_own(peer):
    async with container(peer, env={"A": "1"}) as made, await made.create_task(NULL) as task:
        await task.start()
        script = "read x; echo $x $A $B $(id -u):$(id -g) $(pwd); exit 7"
        process = await task.exec(
            ["sh", "-c", script], PIPES_AND_STDIN, env={"B": "2"}, cwd="/tmp", user="anna", exec_id="e1"
        )
        async with process:
            await process.start()
            await process.stdin.write(b"in\n")
            assert await process.stdout.read() == b"in 1 2 1000:1001 /tmp\n"
            assert (await process.wait()).status == 7
            assert (await process.state()).status is Status.STOPPED
        with pytest.raises(NotFound):
            await task.process("e1")


@on_loop
async def test_a_terminal_for_an_exec(peer):
    async with container(peer) as made, await made.create_task(NULL) as task:
        await task.start()
        async with await task.exec(["tty"], TERMINAL) as process:
            await process.start()
            assert b"/dev/pts/" in await process.stdout.read()


@on_loop
async def test_signals_end_tasks_and_are_told_apart(peer):
    async with container(peer) as made, await made.create_task(NULL) as task:
        await task.start()
        waiting = [asyncio.ensure_future(task.wait()) for _ in range(3)]
        await task.kill("SIGKILL")

        assert {exit_.status for exit_ in await asyncio.gather(*waiting)} == {128 + signal.SIGKILL}
        with pytest.raises(NotFound, match="already finished"):
            await task.kill()


@on_loop
async def test_a_task_is_seen_through_its_life(peer):
    async with container(peer) as made:
        task = await made.create_task(NULL)
        assert (await task.state()).status is Status.CREATED
        with pytest.raises(AlreadyExists):
            await made.create_task(NULL)
        await task.start()
        assert (await task.state()).pid == task.pid == (await made.task()).pid
        await task.pause()
        assert (await task.state()).status is Status.PAUSED
        await task.resume()
        assert [one.pid for one in await task.pids()] == [task.pid]
        assert (await task.metrics()).data.type_url.startswith("io.containerd.cgroups.")
        with pytest.raises(MooredError):
            await task.delete()
        with pytest.raises(FailedPrecondition, match="has a task"):
            await made.delete()
        assert (await task.delete(force=True)).status == 137


@on_loop
async def test_limits_are_set_and_changed(peer):
    def limit() -> int:
        return int(Path(f"/sys/fs/cgroup/memory/{peer.place.namespace}/{made.id}/memory.limit_in_bytes").read_text())

    resources = Resources(memory=64 << 20, pids=50, cpu_shares=512)
    async with container(peer, resources=resources) as made, await made.create_task(NULL) as task:
        await task.start()
        assert limit() == 64 << 20

        await task.update(Resources(memory=32 << 20))

        assert limit() == 32 << 20


@on_loop
async def test_a_task_can_be_attached_to_from_another_client(peer):
    async with container(peer, "sh", "-c", "while read x; do echo got $x; done") as made:
        task = await made.create_task(PIPES_AND_STDIN)
        await task.start()
        async with peer.client() as other:
            attached = await (await other.containers.get(made.id)).task(attach=True)
            await attached.stdin.write(b"hello\n")
            assert await attached.stdout.readline() == b"got hello\n"
        await task.delete(force=True)


@on_loop
async def test_logs_can_go_to_a_file(peer):
    log = peer.place.folder / f"{peer.new('log')}.log"
    io = log_to(f"file://{log}")
    async with container(peer, "sh", "-c", "echo out; echo err >&2") as made, await made.create_task(io) as task:
        await task.start()
        await task.wait()

    assert sorted(log.read_text().split()) == ["err", "out"]


@on_loop
async def test_logs_can_go_to_a_program(peer):
    program, log = peer.place.folder / peer.new("logger"), peer.place.folder / peer.new("log")
    # Older shims end the program as soon as the task is gone.
    steps = ["#!/bin/sh", "trap '' TERM", "exec 5>&-", f"cat <&3 > {log}.part"]
    steps += [f"echo $CONTAINER_ID >> {log}.part", f"mv {log}.part {log}"]
    program.write_text("\n".join(steps))
    program.chmod(0o755)
    async with container(peer, "echo", "logged") as made:
        async with await made.create_task(log_to(f"binary://{program}")) as task:
            await task.start()
            await task.wait()
        async with asyncio.timeout(20):
            while not log.exists():
                await asyncio.sleep(0.02)

    assert log.read_text().split() == ["logged", made.id]


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ("", "uid=0(root) gid=0(root) groups=0(root)"),
        ("anna", "uid=1000(anna) gid=1001(anna) groups=1001(anna)"),
        ("7:8", "uid=7 gid=8 groups=8"),
    ],
)
def test_users_are_found_in_the_image(peer, user, said):
    @on_loop
    async def run():
        async with container(peer, "id", user=user) as made:
            assert (await made.run()).stdout.decode().strip() == said

    run()


@on_loop
async def test_a_user_that_the_image_lacks_leaves_nothing_behind(peer):
    async with peer.client() as client:
        id_ = peer.new()
        with pytest.raises(NotFound, match="'bob'"):
            await client.containers.create(id_, NAME, Options(args=("true",), user="bob"))

        assert not await client.snapshots().exists(id_)
        with pytest.raises(NotFound):
            await client.containers.get(id_)
        assert await client.leases.list() == []


@on_loop
async def test_confinement_holds(peer):
    script = (
        "mount -t tmpfs none /mnt 2>&1; touch /x; grep -E 'Seccomp:|NoNewPrivs|CapInh' /proc/self/status; ls /dev/null"
    )
    async with container(peer, "sh", "-c", script, read_only=True) as made:
        result = await made.run()

    said = result.stdout.decode().split()
    assert said[said.index("Seccomp:") + 1] == "2"
    assert said[said.index("NoNewPrivs:") + 1] == "1"
    assert said[said.index("CapInh:") + 1] == "0" * 16
    assert b"Read-only" in result.stderr


@on_loop
async def test_mounts_devices_tmpfs_and_hostname(peer):
    shared = peer.place.folder / peer.new("shared")
    shared.mkdir()
    (shared / "file").write_text("from the host")
    script = "cat /in/file; hostname; ls -l /dev/nothing; touch /in/new; mount | grep ' /scratch '"
    options = {
        "mounts": (Mount(destination="/in", source=str(shared), options=("rbind", "ro")),),
        "tmpfs": {"/scratch": "size=64k"},
        "devices": (Device("/dev/null", "/dev/nothing"),),
        "hostname": "ship",
    }
    async with container(peer, "sh", "-c", script, **options) as made:
        result = await made.run()

    assert result.stdout.startswith(b"from the hostship\nc")
    assert b"tmpfs" in result.stdout
    assert b"Read-only" in result.stderr


@on_loop
async def test_a_folder_of_the_host_can_be_the_root(peer):
    root = peer.place.folder / peer.new("root")
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    async with peer.client() as client:
        made = await client.containers.create(
            peer.new(), options=Options(args=("/bin/busybox", "echo", "here")), rootfs=root
        )
        assert (await made.run()).stdout == b"here\n"
        await made.delete()


@on_loop
async def test_records_keep_labels_spec_and_image(peer):
    async with container(peer, labels={"who": "test"}) as made:
        assert made.record.labels == {"who": "test", STOP_SIGNAL: "SIGTERM"}
        await made.label({"who": "", "more": "x"})
        assert (await made.refresh()).labels == {"more": "x", STOP_SIGNAL: "SIGTERM"}
        assert (await made.image()).name == NAME
        assert (await made.spec())["process"]["args"] == ["sleep", "600"]
        async with peer.client() as client:
            assert [one.id for one in await client.containers.list(f"id=={made.id}")] == [made.id]


@on_loop
async def test_a_program_that_is_not_there_is_said_and_leaves_nothing(peer):
    async with container(peer, "/no/such/program") as made:
        with pytest.raises(Unknown, match="no such file"):
            await made.run()
        with pytest.raises(NotFound):
            await made.task()


@on_loop
async def test_a_cancelled_run_leaves_nothing_running(peer):
    async with container(peer, "sh", "-c", "echo up; sleep 600") as made:
        running = asyncio.ensure_future(made.run())
        async with asyncio.timeout(20):
            while True:
                try:
                    if (await (await made.task()).state()).status is Status.RUNNING:
                        break
                except NotFound:
                    await asyncio.sleep(0.02)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(NotFound):
            await made.task()


@pytest.mark.skipif(not criu_works(), reason="needs a CRIU that works on this kernel")
@on_loop
async def test_a_task_is_written_to_disk_and_brought_back(peer):
    token = peer.place.folder / peer.new("token")
    script = "x=$(cat /proc/sys/kernel/random/uuid); while :; do echo $x > /host/token; sleep 0.05; done"
    token.mkdir()
    mount = Mount(destination="/host", source=str(token))
    async with peer.client() as client, client.lease() as held:
        made = await held.containers.create(
            peer.new(), NAME, Options(args=("sh", "-c", script), mounts=(mount,), seccomp="unconfined")
        )
        async with await made.create_task(NULL) as task:
            await task.start()
            before = await _written(token / "token")
            saved = await task.checkpoint(exit=True)
            await task.wait()
        (token / "token").unlink()
        async with await made.create_task(NULL, checkpoint=saved[0]) as task:
            await task.start()
            assert await _written(token / "token") == before
        await made.delete()


async def _written(path: Path) -> str:
    async with asyncio.timeout(20):
        while not (text := _text(path)).endswith("\n"):
            await asyncio.sleep(0.02)
    return text


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
