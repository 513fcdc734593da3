"""Processes that are kept for more work: where they are meanwhile, when they end, and which are not kept."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
import structlog

from moored.kernel.conformance import fails_with
from moored.kernel.conformance.diff import bind
from moored.kernel.errors import Unknown
from moored.kernel.payloads import ContentCreate
from moored.kernel.ports.mounts import Mount
from moored.plugins.diff import worker
from moored.plugins.diff.plugin import expecting
from moored.plugins.diff.spares import MOST
from moored.plugins.diff.walking import APPLY_MODULE
from moored.plugins.diff.worker import Crew
from moored.plugins.events.exchange.exchange import Bounds, LocalExchange
from unit.diff.test_zygote import HOLD, descriptors, unpacks, working
from unit.diff.world import END, all_children, as_root, block, children, done, file, names, staged, until

pytestmark = as_root


def kept_by(crew: Crew) -> list[int]:
    """The processes that wait for work."""
    return [int(pid) for pid in all_children() if int(pid) != crew.zygote.pid and int(pid) not in children()]


def folder_of(pid: int, which: str) -> Path:
    return Path(f"/proc/{pid}/{which}").readlink()


def folder(path: Path, name: str) -> Path:
    made = path / name
    made.mkdir()
    return made


def test_process_that_is_done_does_the_next_work_in_another_folder(tmp_path: Path) -> None:
    async def go() -> None:
        first, second = folder(tmp_path, "first"), folder(tmp_path, "second")
        async with Crew(linger=HOLD) as crew:
            async with working(crew, first, again=True) as one:
                await unpacks(one)
                before = one.pid
            async with working(crew, second, again=True) as one:
                assert one.pid == before
                await unpacks(one)
        assert (names(first), names(second)) == (["f"], ["f"])
        assert all_children() == []

    done(go())


def test_kept_process_is_in_no_folder_of_a_layer(tmp_path: Path) -> None:
    async def go() -> None:
        async with Crew(linger=HOLD) as crew:
            async with working(crew, tmp_path, again=True) as one:
                await unpacks(one)
                pid = one.pid
            await until(lambda: kept_by(crew) == [pid])
            assert [folder_of(pid, which) for which in ("root", "cwd")] == [Path("/")] * 2
            assert len(descriptors(pid)) == 4  # 0, 1, 2 and the reports

    done(go())


def test_process_that_was_not_asked_to_stay_is_gone(tmp_path: Path) -> None:
    async def go() -> None:
        async with Crew(linger=HOLD) as crew:
            async with working(crew, tmp_path) as one:
                await unpacks(one)
            assert all_children() == [str(crew.zygote.pid)]

    done(go())


def test_crew_without_linger_keeps_no_process(tmp_path: Path) -> None:
    async def go() -> None:
        crew = Crew()
        crew.expect(APPLY_MODULE)
        async with working(crew, tmp_path, again=True) as one:
            await unpacks(one)
        assert all_children() == []

    done(go())


def test_process_of_a_bad_layer_is_not_kept(tmp_path: Path) -> None:
    async def go() -> None:
        async with Crew(linger=HOLD) as crew, staged(tmp_path, crew=crew) as stage:
            cut = await stage.put(file(b"f", bytes(5000))[:2000])
            await fails_with(Unknown, stage.differ.apply(cut, bind(stage.new_folder("root"))))
            assert all_children() == [str(crew.zygote.pid)]

    done(go())


def test_process_of_a_large_layer_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MANY", 0)

    async def go() -> None:
        async with Crew(linger=HOLD) as crew:
            async with working(crew, tmp_path, again=True) as one:
                await unpacks(one)
            assert all_children() == [str(crew.zygote.pid)]

    done(go())


def test_further_layers_are_unpacked_by_one_process_and_know_nothing_of_each_other(tmp_path: Path) -> None:
    async def go() -> None:
        async with Crew(linger=HOLD) as crew, staged(tmp_path, crew=crew) as stage:
            removing = await stage.put(block(b"d/.wh.f") + END)
            filling = await stage.put(file(b"d/f", b"x" * 3000) + END)
            below, above = stage.new_folder("below"), stage.new_folder("above")
            plain = stage.new_folder("plain")
            await stage.differ.apply(filling, bind(below))
            await until(lambda: len(kept_by(crew)) == 1)
            (pid,) = kept_by(crew)
            options = (f"lowerdir={below}", f"upperdir={above}", "workdir=unused")
            await stage.differ.apply(removing, [Mount(type="overlay", source="overlay", options=options)])
            await stage.differ.apply(filling, bind(plain))
            await until(lambda: kept_by(crew) == [pid])
            assert (names(below), names(above), names(plain)) == (["d", "d/f"], ["d", "d/f"], ["d", "d/f"])
            assert (above / "d" / "f").is_char_device()

    done(go())


def test_process_that_is_expected_is_ready_for_the_next_work(tmp_path: Path) -> None:
    async def go() -> None:
        async with Crew(linger=HOLD) as crew:
            crew.expect(APPLY_MODULE)
            crew.expect(APPLY_MODULE)
            await until(lambda: crew.zygote.pid > 0 and len(kept_by(crew)) == 1)
            (ready,) = kept_by(crew)
            async with working(crew, tmp_path) as one:
                assert one.pid == ready
                await unpacks(one)
        assert all_children() == []

    done(go())


def test_kept_process_that_was_killed_is_replaced(tmp_path: Path) -> None:
    async def go() -> None:
        async with Crew(linger=HOLD) as crew:
            async with working(crew, tmp_path, again=True) as one:
                await unpacks(one)
                pid = one.pid
            os.kill(pid, signal.SIGKILL)
            await until(lambda: str(pid) not in all_children())
            async with working(crew, tmp_path, again=True) as one:
                assert one.pid != pid
                await unpacks(one)

    done(go())


@pytest.mark.parametrize("ready", [False, True], ids=["before_it_is_ready", "once_it_is_ready"])
def test_kept_process_that_ends_just_before_it_is_wanted_is_replaced(ready: bool, tmp_path: Path) -> None:
    async def go() -> None:
        async with Crew(linger=HOLD) as crew:
            async with working(crew, tmp_path, again=True) as one:
                await unpacks(one)
                pid = one.pid
            if ready:
                await until(lambda: kept_by(crew) == [pid])
            os.kill(pid, signal.SIGKILL)
            # gone, which the loop does not know yet
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - the loop is to be kept from it
            async with working(crew, tmp_path, again=True) as one:
                assert one.pid != pid
                await unpacks(one)

    done(go())


def test_kept_processes_end_when_they_have_lingered(tmp_path: Path) -> None:
    async def go() -> None:
        async with Crew(linger=0.2) as crew:
            async with working(crew, tmp_path, again=True) as one:
                await unpacks(one)
            crew.expect(APPLY_MODULE)
            await until(lambda: all_children() == [])

    done(go())


def test_no_more_than_so_many_processes_are_kept(tmp_path: Path) -> None:
    async def go() -> None:
        async with Crew(linger=HOLD) as crew, staged(tmp_path, crew=crew) as stage:
            layer = await stage.put(file(b"f", b"x") + END)
            roots = [bind(stage.new_folder(f"root{number}")) for number in range(MOST + 2)]
            await asyncio.gather(*(stage.differ.apply(layer, root) for root in roots))
            await until(lambda: 1 <= len(kept_by(crew)) <= MOST and children() == [])

    done(go())


def test_process_is_ready_once_content_has_come_in(tmp_path: Path) -> None:
    async def go() -> None:
        exchange = LocalExchange(Bounds(4, 1 << 20), structlog.get_logger(), lambda _envelope, _fields: None)
        async with Crew(linger=HOLD) as crew, expecting(crew, exchange):
            await asyncio.sleep(0)
            for _ in range(20):  # more than it may fall behind
                await exchange.publish("/content/create", ContentCreate(digest="sha256:00", size=4), "default")
            await until(lambda: crew.zygote.pid > 0 and len(kept_by(crew)) == 1)
            await exchange.publish("/content/create", ContentCreate(digest="sha256:00", size=4), "default")
        exchange.stop()
        assert all_children() == []

    done(go())
