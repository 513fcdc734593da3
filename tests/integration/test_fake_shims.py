"""The shim manager against shims that answer in every form, and against those that misbehave in every way."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from harness import on_loop
from moored.kernel.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidArgument,
    MooredError,
    NotFound,
    Unimplemented,
    Unknown,
)
from moored.kernel.hooks import hookimpl
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.tasks import NewTask, SandboxEndpoint, Status
from moored.plugins.runtime.manager.logs import LINES_A_SECOND
from moored.plugins.runtime.manager.shim import Deadlines
from shims import NEW_SHIM, OWN, SHIMS, SPEC, Place, calls_of, fake, place, shim_pid

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to unmount")
QUICK = Deadlines(state=0.2, cleanup=2, shutdown=0.5, create=0.5, other=0.5, delete=0.5, start=5, load=0.5)


@pytest.fixture
def here() -> Generator[Place]:
    with tempfile.TemporaryDirectory(prefix="mb") as folder, place(Path(folder)) as one:
        yield one


def new(runtime: str, **more: object) -> NewTask:
    return NewTask(runtime=runtime, spec=TypedBytes(SPEC, b"{}"), **more)  # type: ignore[arg-type]


async def lives(here: Place, runtime: str) -> None:
    """Make a task with the shim, use it, find it again, and delete it."""
    async with here.world() as world:
        task = await world.runtime.create("c", new(runtime))
        assert (await task.state()).status is Status.CREATED
        await task.start()
    async with here.world() as world:
        task = world.runtime.get("c")
        assert (await task.state()).status is Status.RUNNING
        await task.kill(9)
        assert (await task.wait()).status == 137
        assert (await task.delete()).status == 137


@pytest.mark.parametrize(
    ("answer", "version", "speaks"),
    [("message", "2.3.0", [3]), ("message", "v2.4.0-beta", [3]), ("json", "2.1.0", [3, 2]), ("bare", "1.7.1", [2])],
)
def test_every_form_of_start_is_understood(here: Place, answer: str, version: str, speaks: list[int]) -> None:
    shim = fake(here.folder, answer=answer, version=version, speaks=speaks)
    on_loop(lambda: lives(here, shim))()


def test_shim_without_version_3_is_asked_by_version_2(here: Place) -> None:
    shim = fake(here.folder, answer="json", speaks=[2])
    on_loop(lambda: lives(here, shim))()
    assert calls_of(shim).count("Create") == 1


def test_shim_is_called_as_containerd_calls_it(here: Place) -> None:
    shim = fake(here.folder, answer="bare", speaks=[2])
    on_loop(lambda: lives(here, shim))()
    daemon = here.daemon
    common = f"-namespace {here.namespace} -address {daemon.grpc} -publish-binary {daemon.binary} -id c"
    bundle = here.folders.state / here.namespace / "c"
    programs = [call for call in calls_of(shim) if " " in call]
    assert programs == ["-v -v", f"start {common} start", f"delete {common} -bundle {bundle} delete"]


def test_shim_that_only_looks_new_gets_the_old_form(here: Place) -> None:
    path = fake(here.folder, answer="json", version="9.9.9")
    script = Path(path)
    # fails on parameters, as shims before 2.3 may do
    refuses = f'case "$*" in *start) head -c 9 > {path}.in; grep -q c {path}.in && exit 1 ;; esac < /dev/stdin\n'
    script.write_text(script.read_text().replace("PYTHONPATH", f"{refuses}PYTHONPATH", 1))

    @on_loop
    async def main() -> None:
        async with here.world() as world:
            task = await world.runtime.create("c", new(path))
            await task.delete()

    main()


def test_bundle_has_what_the_contract_names(here: Place) -> None:
    shim = fake(here.folder, answer="json")

    @on_loop
    async def main() -> None:
        async with here.world() as world:
            task = await world.runtime.create("c", new(shim))
            bundle = here.folders.state / here.namespace / "c"
            modes = {path.name: oct(path.lstat().st_mode & 0o7777) for path in bundle.iterdir()}
            assert modes == {
                "rootfs": "0o711",
                "work": "0o777",
                "config.json": oct(0o666 & ~_umask()),
                "log": "0o700",
                "shim-binary-path": "0o600",
                "bootstrap.json": "0o644",
                "init.pid": modes["init.pid"],
            }
            assert oct(bundle.stat().st_mode & 0o7777) == "0o700"
            assert oct(bundle.parent.stat().st_mode & 0o7777) == "0o711"
            assert (bundle / "work").readlink() == here.folders.root / here.namespace / "c"
            assert (bundle / "shim-binary-path").read_text() == shim
            assert (bundle / "config.json").read_bytes() == b"{}"
            await task.delete()

    main()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_bundle_with_user_namespaces_belongs_to_their_group(here: Place) -> None:
    shim = fake(here.folder, answer="json")
    spec = b'{"linux": {"gidMappings": [{"containerID": 0, "hostID": 4711, "size": 1}]}}'

    @on_loop
    async def main() -> None:
        async with here.world() as world:
            task = await world.runtime.create("c", NewTask(runtime=shim, spec=TypedBytes(SPEC, spec)))
            status = (here.folders.state / here.namespace / "c").stat()
            assert (status.st_gid, oct(status.st_mode & 0o7777)) == (4711, "0o710")
            await task.delete()

    main()


def test_hooks_adjust_the_spec_that_the_shim_gets(here: Place) -> None:
    shim = fake(here.folder, answer="json")

    class Labels:
        @hookimpl
        def moored_adjust_spec(self, container_id: str, spec: dict[str, object]) -> None:
            spec["hostname"] = container_id

    class Broken:
        @hookimpl
        def moored_adjust_spec(self, spec: dict[str, object]) -> None:
            raise KeyError("lost")

    here.hooks.register(Labels(), name="labels")

    @on_loop
    async def main() -> None:
        async with here.world() as world:
            task = await world.runtime.create("c", new(shim))
            assert (here.folders.state / here.namespace / "c/config.json").read_bytes() == b'{"hostname":"c"}'
            await task.delete()
            here.hooks.register(Broken(), name="broken")
            with pytest.raises(Unknown, match="plugin 'broken' failed to adjust the spec: 'lost'"):
                await world.runtime.create("c", new(shim))

    main()


@pytest.mark.parametrize(
    ("behaviour", "text"),
    [
        ({"answer": "no address at all"}, "wanted an address"),
        ({"answer": ""}, "wanted an address"),
        ({"answer": '{"version": 4, "address": "unix:///x", "protocol": "ttrpc"}'}, "unsupported shim version .4."),
        ({"answer": '{"version": 3, "address": "unix:///x", "protocol": "carrier pigeon"}'}, "unexpected protocol"),
        ({"answer": "unix:///nobody/listens"}, "No such file|ttrpc: dial"),
        ({"answer": "json", "stderr": "a word on stderr"}, "wanted an address"),
        ({"status": 3, "stderr": "it does not work"}, "it does not work: exit status 3"),
    ],
    ids=["text", "nothing", "version 4", "protocol", "nobody", "stderr", "fails"],
)
def test_bad_start_fails_the_create_and_leaves_nothing(here: Place, behaviour: dict[str, object], text: str) -> None:
    shim = fake(here.folder, **behaviour)

    @on_loop
    async def main() -> None:
        async with here.world(QUICK) as world:
            with pytest.raises(MooredError, match=text):
                await world.runtime.create("c", new(shim))
            assert world.runtime.list() == []
        here.assert_clean()

    main()


@pytest.mark.parametrize(
    ("runtime", "kind", "text"),
    [
        ("", InvalidArgument, "no runtime name"),
        ("/nowhere/shim", NotFound, "invalid custom binary path '/nowhere/shim'"),
        ("some/shim", InvalidArgument, "invalid runtime name some/shim"),
        ("nonsense", InvalidArgument, "invalid runtime name nonsense"),
        (".v2", InvalidArgument, "invalid runtime name .v2"),
        ("../../bin/sh", InvalidArgument, "invalid runtime name"),
        ("io.example.absent.v9", NotFound, 'binary not installed "containerd-shim-absent-v9": file does not exist'),
    ],
)
def test_missing_shim_is_told_before_anything_is_made(
    here: Place, runtime: str, kind: type[MooredError], text: str
) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            with pytest.raises(kind, match=text):
                await world.runtime.create("c", new(runtime))

    main()


def test_bad_id_is_refused(here: Place) -> None:
    shim = fake(here.folder)

    @on_loop
    async def main() -> None:
        async with here.world() as world:
            for id_ in ("", "..", "a/b", ".hidden", "x" * 77):
                with pytest.raises(InvalidArgument, match="invalid task id"):
                    await world.runtime.create(id_, new(shim))

    main()


def test_start_that_hangs_is_ended(here: Place) -> None:
    shim = fake(here.folder, sleep=60)

    @on_loop
    async def main() -> None:
        async with here.world(Deadlines(start=0.5)) as world:
            with pytest.raises(DeadlineExceeded, match=r"'fake' did not end within 0.5 seconds"):
                await world.runtime.create("c", new(shim))
        here.assert_clean()

    main()


def test_slow_start_delays_no_other_create(here: Place) -> None:
    slow, quick = fake(here.folder, "slow", sleep=1.5), fake(here.folder, "quick")

    @on_loop
    async def main() -> None:
        async with here.world() as world:
            late = asyncio.create_task(world.runtime.create("c", new(slow)))
            other = await world.runtime.create("c1", new(quick))
            assert not late.done()
            await other.delete()
            await (await late).delete()

    main()


def test_shim_that_speaks_garbage_fails_the_create(here: Place) -> None:
    shim = fake(here.folder, service="garbage")

    @on_loop
    async def main() -> None:
        async with here.world(QUICK) as world:
            with pytest.raises(DeadlineExceeded, match=r"shim of 'c' did not answer Create within 0.5 seconds"):
                await world.runtime.create("c", new(shim))
        here.assert_clean()

    main()


def test_create_that_hangs_leaves_nothing(here: Place) -> None:
    shim = fake(here.folder, hangs=["Create", "Delete", "Shutdown"])

    @on_loop
    async def main() -> None:
        async with here.world(Deadlines(create=0.3, cleanup=2, shutdown=0.3)) as world:
            with pytest.raises(DeadlineExceeded, match="did not answer Create"):
                await world.runtime.create("c", new(shim))
        here.assert_clean()

    main()


def test_silent_shim_is_named_and_kept(here: Place) -> None:
    shim = fake(here.folder, hangs=["Kill", "State"])

    @on_loop
    async def main() -> None:
        async with here.world(QUICK) as world:
            task = await world.runtime.create("c", new(shim))
            with pytest.raises(DeadlineExceeded, match=r"shim of 'c' did not answer Kill within 0.5 seconds"):
                await task.kill(9)
            assert (await task.state()).status is Status.UNKNOWN
            assert world.runtime.list() == [task]
            await task.delete()

    main()


def test_shutdown_that_hangs_does_not_hold_up_the_delete(here: Place) -> None:
    shim = fake(here.folder, hangs=["Shutdown"])

    @on_loop
    async def main() -> None:
        async with here.world(QUICK) as world:
            task = await world.runtime.create("c", new(shim))
            pid = shim_pid(here)
            await task.delete()
            os.kill(pid, signal.SIGKILL)

    main()


def test_many_silent_shims_do_not_hold_up_the_start(here: Place) -> None:
    shim = fake(here.folder, hangs=["Connect", "State"])
    ids = ("c", "c1", "c2")

    @on_loop
    async def main() -> None:
        async with here.world() as world:
            for id_ in ids:
                await world.runtime.create(id_, new(shim))
        began = asyncio.get_running_loop().time()
        async with here.world(QUICK) as world:
            assert asyncio.get_running_loop().time() - began < 1
            assert {task.id for task in world.runtime.list()} == set(ids)
            assert {task.pid for task in world.runtime.list()} == {shim_pid(here, id_) for id_ in ids}
            for task in world.runtime.list():
                assert (await task.state()).status is Status.UNKNOWN
                with pytest.raises(AlreadyExists):
                    await world.runtime.create(task.id, new(shim))
                await task.delete()

    main()


def test_shim_that_closes_its_connection_only_is_reached_again(here: Place) -> None:
    shim = fake(here.folder)

    @on_loop
    async def main() -> None:
        async with here.world() as world:
            task = await world.runtime.create("c", new(shim))
            connection = world.runtime.get("c").shim._connection  # type: ignore[attr-defined]
            await connection.close()
            async with asyncio.timeout(10):
                while (await task.state()).status is not Status.CREATED:
                    await asyncio.sleep(0)
            assert world.told("/tasks/exit") == []
            await task.delete()

    main()


def test_what_a_shim_logs_is_in_the_log_within_bounds(here: Place) -> None:
    logs = ['time="x" level=error msg="it broke"', "x" * 20_000, *(f"line {number}" for number in range(1000))]
    shim = fake(here.folder, logs=logs)

    @on_loop
    async def main() -> None:
        async with here.world() as world:
            task = await world.runtime.create("c", new(shim))
            await task.delete()
            lines = [call for call in world.logged if call.args == ("shim",) or call.kwargs.get("event") == "shim"]
            assert lines[0].method_name == "error"
            assert lines[0].kwargs["line"] == logs[0]
            assert lines[0].kwargs["id"] == "c"
            assert len(lines[1].kwargs["line"]) == 8192
            assert len(lines) <= 3 * LINES_A_SECOND
            assert "dropped_lines" in world.log_text()

    main()


def test_task_in_a_sandbox_joins_its_endpoint_and_leaves_it(here: Place) -> None:
    shim = fake(here.folder)

    @on_loop
    async def main() -> None:
        async with here.world() as world:
            first = await world.runtime.create("c1", new(shim))
            address = first.shim.endpoint.address  # type: ignore[attr-defined]
            endpoint = SandboxEndpoint(address=f"ttrpc+{address}", version=3)
            joined = await world.runtime.create("c", new("io.example.absent.v9", sandbox="c1", endpoint=endpoint))
            bundle = here.folders.state / here.namespace / "c"
            assert (bundle / "sandbox").read_text() == "c1"
            assert not (bundle / "shim-binary-path").exists()
            await joined.delete()
            assert "Shutdown" not in calls_of(shim)
            assert not bundle.exists()
            assert (await first.state()).pid == shim_pid(here, "c1")
            await first.delete()

    main()


def test_runtime_tells_about_itself(here: Place) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            if NEW_SHIM in SHIMS:
                info = await world.manager.info(NEW_SHIM)
                assert info.name == "io.containerd.runc.v2"
                assert info.version
                assert info.features is None or b"ociVersion" in info.features.value
                options = TypedBytes("containerd.runc.v1.Options", b"")
                assert (await world.runtime.info(NEW_SHIM, options)).options == options
            ours = await world.runtime.info(OWN)
            assert ours.name == OWN
            assert ours.version
            with pytest.raises(NotFound):
                await world.manager.info("io.example.absent.v9")
            with pytest.raises(Unknown, match="exit status 1"):
                await world.manager.info("/bin/false")

    main()


def test_mapped_mounts_need_a_runtime_that_maps_them(here: Place) -> None:
    spec = b'{"mounts": [{"uidMappings": [{"hostID": 1}]}]}'

    @on_loop
    async def main() -> None:
        async with here.world() as world:
            for said, text in (
                (b"", ""),
                (b"{}", "idmap mounts not supported"),
                (None, "runtime info: .*exit status 1"),
            ):
                shim = fake(here.folder, features=None if said is None else said.decode())
                task = NewTask(runtime=shim, spec=TypedBytes(SPEC, spec))
                if text:
                    with pytest.raises(Unimplemented, match=text):
                        await world.runtime.create("c", task)
                else:
                    await (await world.runtime.create("c", task)).delete()

    main()
