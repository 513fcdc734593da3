"""OCI runtimes that are missing, fail or hang below our shim, and shims that die in the middle of calling one."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Generator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import on_loop
from moored.api.types.runc.options.oci_pb2 import Options
from moored.kernel.errors import DeadlineExceeded, MooredError, NotFound, Unknown
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.tasks import NewTask, Status, Stdio
from moored.plugins.runtime.manager.shim import Deadlines
from shims import OWN, SPEC, Place, needs_runc, place, wait_for_end

pytestmark = needs_runc
PROCESS = TypedBytes(
    "types.containerd.io/opencontainers/runtime-spec/1/Process",
    json.dumps({"user": {"uid": 0, "gid": 0}, "args": ["true"], "env": ["PATH=/bin"], "cwd": "/"}).encode(),
)
QUICK = Deadlines(state=0.5, create=1, run=1, delete=2, other=1, cleanup=5, shutdown=1)
SCRIPT = """#!/bin/sh
[ "$1" = --root ] || exec {runc} "$@"
for verb; do case $verb in create|start|exec|kill|delete) break;; esac; done
[ ! -e {folder}/fails-$verb ] || {{ cat {folder}/fails-$verb >> "$4"; echo it does not work >&2; exit 1; }}
[ ! -e {folder}/hangs-$verb ] || read -r forever < {folder}/never
exec {runc} "$@"
"""


class Moody:
    """A runtime that is runc, unless it is told to fail or hang in some of its verbs."""

    def __init__(self, here: Place) -> None:
        self.here = here
        self.folder = here.folder / "moody"
        self.folder.mkdir()
        os.mkfifo(self.folder / "never")
        self.binary = self.folder / "runtime"
        self.install()

    def install(self) -> None:
        """Make the program."""
        self.binary.write_text(SCRIPT.format(folder=self.folder, runc=shutil.which("runc")))
        self.binary.chmod(0o755)

    def fails(self, verb: str) -> None:
        """Let a verb fail from now on."""
        (self.folder / f"fails-{verb}").write_text('{"level":"error","msg":"it does not work"}')

    def hangs(self, verb: str) -> None:
        """Let a verb hang from now on."""
        (self.folder / f"hangs-{verb}").touch()

    def works(self) -> None:
        """Let every verb work again."""
        for path in (*self.folder.glob("fails-*"), *self.folder.glob("hangs-*")):
            path.unlink()

    def new(self, *args: str, id_: str = "c") -> NewTask:
        """A task of it."""
        options = Options(binary_name=str(self.binary))
        packed = TypedBytes("containerd.runc.v1.Options", options.SerializeToString())
        return self.here.new(OWN, *args, id_=id_, options=packed)

    def calls(self) -> list[int]:
        """The processes of its calls that hang."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if str(self.binary).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    async def hanging(self) -> int:
        """Wait for a call that hangs; its pid."""
        async with asyncio.timeout(20):
            while not (pids := self.calls()):
                await asyncio.sleep(0.01)
        return pids[0]


@pytest.fixture
def here() -> Generator[Place]:
    with tempfile.TemporaryDirectory(prefix="mb") as folder, place(Path(folder)) as one:
        yield one


@pytest.fixture
def moody(here: Place) -> Moody:
    return Moody(here)


async def ended(task: Any) -> None:
    """Kill, wait and delete."""
    await task.kill(9)
    await task.wait()
    await task.delete()


def test_missing_runtime_is_told_before_anything_is_made(here: Place, moody: Moody) -> None:
    moody.binary.unlink()

    @on_loop
    async def main() -> None:
        async with here.world() as world:
            with pytest.raises(NotFound, match=f'runtime "{moody.binary}" is not installed'):
                await world.runtime.create("c", moody.new("true"))
            assert world.runtime.list() == []
        here.assert_clean()

    main()


def test_runtime_that_vanishes_is_told_and_tasks_go_on_once_it_is_back(here: Place, moody: Moody) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            task = await world.runtime.create("c", moody.new("sleep", "60"))
            for calls in ((task.start, task.delete), (lambda: task.kill(15),)):
                before = (await task.state()).status
                moody.binary.unlink()
                for call in calls:
                    with pytest.raises(Unknown, match=f"cannot run '{moody.binary}': no such file"):
                        await call()
                assert (await task.state()).status is before
                moody.install()
                if before is Status.CREATED:
                    await task.start()
            await ended(task)

    main()


def test_failed_create_says_why_and_leaves_nothing(here: Place, moody: Moody) -> None:
    moody.fails("create")

    @on_loop
    async def main() -> None:
        async with here.world() as world:
            with pytest.raises(Unknown, match="OCI runtime create failed: it does not work"):
                await world.runtime.create("c", moody.new("true"))
            assert world.events == []
            here.assert_clean()
            moody.works()
            await (await world.runtime.create("c", moody.new("true"))).delete()

    main()


@pytest.mark.parametrize(
    ("verb", "text"),
    [
        ("start", "OCI runtime start failed: .*it does not work"),
        # told in the log and on standard error, as runc does
        ("kill", "unknown error after kill: .*exit status 1: it does not work(?!.*work)"),
        ("delete", "failed to delete task: .*it does not work"),
    ],
)
def test_failed_call_says_why_and_can_be_made_again(here: Place, moody: Moody, verb: str, text: str) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            task = await world.runtime.create("c", moody.new("sleep", "60"))

            async def call() -> None:
                await {"start": task.start, "delete": task.delete, "kill": lambda: task.kill(15)}[verb]()

            if verb == "kill":
                await task.start()
            before = (await task.state()).status
            moody.fails(verb)
            with pytest.raises(Unknown, match=text):
                await call()
            assert (await task.state()).status is before
            moody.works()
            await call()
            if verb != "delete":
                await ended(task)

    main()


def test_failed_exec_leaves_its_container_alone(here: Place, moody: Moody) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            task = await world.runtime.create("c", moody.new("sleep", "60"))
            await task.start()
            moody.fails("exec")
            await task.exec("e", PROCESS, Stdio())
            with pytest.raises(Unknown, match="OCI runtime exec failed: it does not work"):
                await task.start("e")
            await task.delete("e")
            assert (await task.state()).status is Status.RUNNING
            await ended(task)

    main()


def test_create_that_hangs_is_given_up_and_undone(here: Place, moody: Moody) -> None:
    moody.hangs("create")

    @on_loop
    async def main() -> None:
        async with here.world(QUICK) as world:
            with pytest.raises(DeadlineExceeded, match="shim of 'c' did not answer Create within 1 seconds"):
                await world.runtime.create("c", moody.new("true"))
            assert moody.calls() == []
            here.assert_clean()
            moody.works()
            await (await world.runtime.create("c", moody.new("true"))).delete()

    main()


@pytest.mark.parametrize("verb", ["start", "exec", "delete"])
def test_call_that_hangs_holds_up_no_other_and_ends_with_its_process(here: Place, moody: Moody, verb: str) -> None:
    @on_loop
    async def main() -> None:
        async with here.world(QUICK) as world:
            task = await world.runtime.create("c", moody.new("sleep", "60"))
            other = await world.runtime.create("c1", moody.new("sleep", "60", id_="c1"))
            if verb == "exec":
                await task.start()
                await task.exec("e", PROCESS, Stdio())
            before = (await task.state()).status
            moody.hangs(verb)
            with pytest.raises(DeadlineExceeded, match="did not answer"):
                await (task.delete() if verb == "delete" else task.start("e" if verb == "exec" else ""))
            moody.works()
            assert (await task.state()).status is before
            await other.start()
            await ended(other)
            hanging = await moody.hanging()
            os.kill(hanging, signal.SIGKILL)  # as an operator would
            wait_for_end(hanging)
            if verb == "start":
                await task.start()
            if verb != "delete":
                await ended(task)
            else:
                await task.delete()

    main()


@pytest.mark.parametrize("verb", ["create", "start", "exec"])
def test_shim_killed_in_the_middle_of_a_call_leaves_no_call_behind(here: Place, moody: Moody, verb: str) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            if verb == "create":
                moody.hangs(verb)
                call = asyncio.ensure_future(world.runtime.create("c", moody.new("true")))
            else:
                task = await world.runtime.create("c", moody.new("sleep", "60"))
                if verb == "exec":
                    await task.start()
                    await task.exec("e", PROCESS, Stdio())
                moody.hangs(verb)
                call = asyncio.ensure_future(task.start("e" if verb == "exec" else ""))  # type: ignore[arg-type]
            hanging = await moody.hanging()
            os.kill(serving(here), signal.SIGKILL)
            with pytest.raises(MooredError):
                await call
            async with asyncio.timeout(20):
                while world.runtime.list() or hanging in moody.calls():
                    await asyncio.sleep(0.01)
            here.assert_clean()

    main()


def serving(here: Place) -> int:
    """The shim of `c`, apart from what it calls."""
    bundle = str(here.folders.state / here.namespace / "c")
    for pid in here.processes():
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if words.startswith(b"moored-shim") and str(Path(f"/proc/{pid}/cwd").readlink()) == bundle:
                return pid
    raise AssertionError("there is no shim")


def test_rootfs_that_cannot_be_mounted_is_told_and_leaves_nothing(here: Place) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            missing = (Mount(type="bind", source="/no/such/place", options=("rbind",)),)
            with pytest.raises(
                Unknown, match="failed to create shim task: failed to mount rootfs component: No such file"
            ):
                await world.runtime.create("c", here.new(OWN, "true", rootfs=missing))
        here.assert_clean()

    main()


def test_rootfs_in_use_goes_with_its_task_and_ends_with_its_use(here: Place) -> None:
    @on_loop
    async def main() -> None:
        rootfs = (Mount(type="bind", source=str(here.rootfs), options=("rbind", "rw")),)
        async with here.world() as world:
            new = here.new(OWN, "true", rootfs=rootfs)
            spec = {**json.loads(new.spec.value), "root": {"path": "rootfs"}}
            task = await world.runtime.create("c", replace(new, spec=TypedBytes(SPEC, json.dumps(spec).encode())))
            inside = os.open(here.folders.state / here.namespace / "c/rootfs/bin", os.O_RDONLY)
            try:
                await task.start()
                await task.wait()
                await task.delete()
                here.assert_clean()
            finally:
                os.close(inside)

    main()
