"""One container: its states, and what each call does to it. Source: `contracts/shim-v2.md` 5, `semantics.md` 4.

    CREATED --start--> RUNNING <--pause, resume--> PAUSED
       '------ exit ------'--> STOPPED <--- exit -----'         and from CREATED or STOPPED: deleted

The exit of init is told after those of all execs. Calls that change init take turns; signals and questions do not
wait for them, so that a runtime that hangs can still be ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from moored.kernel import payloads
from moored.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, MooredError, NotFound, Unknown
from moored.kernel.mounts import mount_all, unmount_all
from moored.kernel.ports.mounts import Mount
from moored.plugins.runtime.shim import bundle as files
from moored.plugins.runtime.shim import log, oom
from moored.plugins.runtime.shim import messages as m
from moored.plugins.runtime.shim.cgroups import Cgroups, cgroups_of
from moored.plugins.runtime.shim.loop import ExitStatus, Future, KeptExits, Loop
from moored.plugins.runtime.shim.process import CREATED, PAUSED, PAUSING, RUNNING, STOPPED, WORDS, Process
from moored.plugins.runtime.shim.runc import Runtime, inner_pid
from moored.plugins.runtime.shim.stats import stats_of
from moored.plugins.runtime.shim.stdio import Stdio, open_streams

Publish = Callable[[payloads.Payload], None]

_TO_DRAIN: Final = 10.0
"""Seconds for which a deleted process's output is still copied."""
_KILL: Final = 9
_ENDING: Final = (_KILL, 15)


class Container:
    """One container; `create` makes it."""

    def __init__(
        self, loop: Loop, publish: Publish, request: m.CreateTaskRequest, *, namespace: str, runtime: Runtime
    ) -> None:
        self.id = request.id
        self.bundle = request.bundle
        stdio = Stdio(request.stdin, request.stdout, request.stderr, request.terminal)
        self.init = Process(loop, "", stdio)
        self.execs: dict[str, Process] = {}
        self._loop = loop
        self._publish = publish
        self._namespace = namespace
        self._runtime = runtime
        self._request = request
        self._owner = (0, 0)
        self._work = ""
        self._init_ended = False
        self._running_execs = 0
        self._execs_over: Future[None] | None = None
        self._cgroups: Cgroups | None = None
        self._oom: oom.OomWatch | None = None

    # --- making ---------------------------------------------------------------------------------------------------

    async def create(self, options: m.Options) -> None:
        """Mount the rootfs and make the container, whole or not at all; from a checkpoint, `start` makes it."""
        self._owner = (options.io_uid, options.io_gid)
        self._work = options.criu_work_path or f"{self.bundle}/work"
        await self._mount()
        try:
            self.init.streams = await self._open_streams(self.init)
            if not self._request.checkpoint:
                await self._make()
            self._publish(self._created())
        except BaseException:
            await self.init.close_streams()
            await self._unmount("after a failed create")
            raise

    async def _make(self) -> None:
        with self._loop.keeping_exits() as kept:
            await self._runtime.create(self.init.ends)
            try:
                assert self.init.streams is not None
                await self.init.streams.started()
                self._found_init(kept)
            except BaseException:
                await self._runtime.discard()
                raise

    def _found_init(self, kept: KeptExits) -> None:
        """Begin to watch init, whose pid the runtime has written, and which may be over."""
        self.init.pid = files.read_pid(self.bundle)
        try:
            self._cgroups = cgroups_of(self.init.pid)
            self._oom = oom.watch(
                self._loop, self._cgroups, lambda: self._publish(payloads.TaskOOM(container_id=self.id))
            )
        except NotFound:
            log.warning(f"container {self.id!r} has no cgroup")
        self._loop.spawn(self._watch_init(kept.child(self.init.pid)))

    def _created(self) -> payloads.TaskCreate:
        request = self._request
        io = payloads.TaskIO(
            stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal
        )
        return payloads.TaskCreate(
            container_id=self.id,
            bundle=self.bundle,
            rootfs=request.rootfs,
            io=io,
            checkpoint=request.checkpoint,
            pid=self.init.pid,
        )

    async def _open_streams(self, process: Process) -> Any:
        uid, gid = self._owner
        return await open_streams(self._loop, process.stdio, process.id or self.id, self._namespace, uid=uid, gid=gid)

    async def _mount(self) -> None:
        mounts = [
            Mount(type=one.type, source=one.source, target=one.target, options=one.options)
            for one in self._request.rootfs
        ]
        if not mounts or files.has(self.bundle, files.MOUNTED):
            return
        try:
            with suppress(FileExistsError):
                os.mkdir(self._rootfs, 0o711)
            await self._loop.apart(lambda: mount_all(mounts, Path(self._rootfs)))
        except OSError as error:
            raise Unknown(f"failed to mount rootfs component: {error}") from error

    async def _unmount(self, when: str) -> str:
        """Unmount the rootfs and give the reason if that is not possible."""
        if not self._request.rootfs or files.has(self.bundle, files.MOUNTED):
            return ""
        try:
            await self._loop.apart(lambda: unmount_all(Path(self._rootfs)))
        except OSError as error:
            log.warning(f"rootfs of {self.id!r} not unmounted {when}: {error}")
            return str(error)
        return ""

    @property
    def _rootfs(self) -> str:
        return f"{self.bundle}/rootfs"

    # --- processes ------------------------------------------------------------------------------------------------

    def process(self, exec_id: str) -> Process:
        """Give init for "", else an exec. NotFound."""
        if not exec_id:
            return self.init
        try:
            return self.execs[exec_id]
        except KeyError:
            raise NotFound(f"process does not exist {exec_id}") from None

    def status_of(self, process: Process) -> int:
        """Give a process's status: execs of a frozen container are frozen."""
        if self.init.status in (PAUSED, PAUSING):
            return self.init.status
        return process.status

    def add(self, request: m.ExecProcessRequest) -> None:
        """Note an exec without running it."""
        _check_exec_id(request.exec_id)
        if request.exec_id in self.execs:
            raise AlreadyExists(f"id {request.exec_id}")
        if self.init.status in (PAUSED, STOPPED) or (self.init.status == CREATED and not self.init.pid):
            raise Unknown(f"cannot exec in a {WORDS[self.init.status]} state")
        stdio = Stdio(request.stdin, request.stdout, request.stderr, request.terminal)
        spec = _process_spec(request)
        self.execs[request.exec_id] = Process(self._loop, request.exec_id, stdio, spec)
        self._publish(payloads.TaskExecAdded(container_id=self.id, exec_id=request.exec_id))

    async def start(self, exec_id: str) -> int:
        """Run a process and give its pid."""
        process = self.process(exec_id)
        async with process.lock:
            if process.status != CREATED:
                raise Unknown(f"cannot start a {WORDS[process.status]} process")
            if process is self.init:
                await self._start_init()
            else:
                await self._start_exec(process)
        return process.pid

    async def _start_init(self) -> None:
        if self._request.checkpoint and not self.init.pid:
            await self._restore()
        else:
            await self._runtime.start()
        self.init.status = RUNNING
        self._publish(payloads.TaskStart(container_id=self.id, pid=self.init.pid))

    async def _restore(self) -> None:
        with self._loop.keeping_exits() as kept:
            request = self._request
            await self._runtime.restore(self.init.ends, request.checkpoint, request.parent_checkpoint, self._work)
            assert self.init.streams is not None
            await self.init.streams.started()
            self._found_init(kept)

    async def _start_exec(self, process: Process) -> None:
        if process.over.done():
            raise FailedPrecondition(f"process {process.id} failed to start before")
        if self._init_ended:
            raise FailedPrecondition(f"container {self.id} init process is not running")
        self._running_execs += 1
        try:
            ended = await self._run_exec(process)
        except BaseException:
            if process.streams is not None:  # clients read them to their end before they delete the process
                await process.streams.close()
            self._exec_over()
            process.over.set_result(None)
            raise
        process.status = RUNNING
        self._publish(payloads.TaskExecStarted(container_id=self.id, exec_id=process.id, pid=process.pid))
        self._loop.spawn(self._watch_exec(process, ended))

    async def _run_exec(self, process: Process) -> Future[ExitStatus]:
        assert process.spec is not None
        with self._loop.keeping_exits() as kept:
            process.streams = await self._open_streams(process)
            # crun still moves a process between cgroups that has ended, and fails if its pid is gone
            with self._loop.leaving_strangers():
                await self._runtime.execute(process.id, process.spec, process.ends)
            process.pid = files.read_pid(self.bundle, f"{process.id}.pid")
            ended = kept.child(process.pid)
        try:
            await process.streams.started()
        except BaseException:
            with suppress(OSError):
                os.kill(process.pid, _KILL)
            raise
        return ended

    async def kill(self, exec_id: str, number: int, *, everything: bool) -> None:
        """Send a signal."""
        process = self.process(exec_id)
        if process is self.init:
            if self.init.status == STOPPED and not everything:
                raise NotFound("process already finished")
            await self._kill_init(number, everything=everything)
        elif process.pid == 0:
            raise FailedPrecondition("process not created")
        elif process.status == STOPPED:
            raise NotFound("process already finished")
        else:
            await self._runtime.kill_exec(process.id, process.pid, number)

    async def _kill_init(self, number: int, *, everything: bool) -> None:
        if number == 0 and self.init.status != STOPPED and self.init.pid:
            return  # a child that was not buried; not every runtime knows this signal
        try:
            await self._runtime.kill(number, everything=everything)
        except MooredError:
            if self.init.status == STOPPED:  # it ended meanwhile
                if not everything:
                    raise NotFound("process already finished") from None
            elif self.init.status == CREATED and self.init.pid and number in _ENDING:
                # refused by runtimes whose init is not there yet, but something waits to become it
                with suppress(ProcessLookupError):
                    os.kill(self.init.pid, _KILL)
            else:
                raise

    async def delete(self, exec_id: str) -> Process:
        """Forget a process that ended, or that was never run, and give what was known of it."""
        process = self.process(exec_id)
        async with process.lock:
            if process.status not in (CREATED, STOPPED):
                raise Unknown(f"cannot delete a {WORDS[process.status]} process")
            if process is self.init:
                await self._delete_init()
            else:
                await self._delete_exec(process)
        return process

    async def _delete_init(self) -> None:
        await self._drain(self.init)
        # One that was never started has a process all the same.
        await self._runtime.delete(force=self.init.status == CREATED)
        if self._oom is not None:
            self._oom.close()
        await self.init.close_streams()
        if reason := await self._unmount("at delete"):
            raise Unknown(f"failed rootfs umount: {reason}")
        for process in self.execs.values():
            await process.close_streams()

    async def _delete_exec(self, process: Process) -> None:
        await self._drain(process)
        await process.close_streams()
        for name in (f"{process.id}.pid", inner_pid(process.id)):
            files.remove(self.bundle, name)
        self.execs.pop(process.id, None)

    async def _drain(self, process: Process) -> None:
        if process.streams is None or process.status != STOPPED:
            return
        if not await process.streams.drained(_TO_DRAIN):
            log.error(f"output of {process.id or self.id!r} was not copied whole within {_TO_DRAIN:g} s")

    # --- ends -----------------------------------------------------------------------------------------------------

    async def _watch_init(self, child: Future[ExitStatus]) -> None:
        status = await self._runtime.exit_of("", child)
        self._init_ended = True
        if not files.has_private_pids(self.bundle):
            await self._kill_rest()
        if self._running_execs:
            self._execs_over = self._loop.future()
            await self._execs_over
        async with self.init.lock:
            if self.init.status == PAUSED:
                await self._thaw()
            self.init.end(status)
            if self._oom is not None:
                self._oom.close()
            self._publish(self._exit(self.init, self.id))

    async def _kill_rest(self) -> None:
        """End what init left running, as the kernel does where init has pids of its own."""
        try:
            await self._runtime.kill(_KILL, everything=True)
        except MooredError as error:
            log.warning(f"processes of {self.id!r} not killed after init: {error}")
        for process in self.execs.values():
            if process.status == RUNNING:
                with suppress(OSError):
                    os.kill(process.pid, _KILL)

    async def _thaw(self) -> None:
        try:
            await self._runtime.resume()
        except MooredError as error:
            log.warning(f"cgroup of {self.id!r} not thawed after its end: {error}")

    async def _watch_exec(self, process: Process, child: Future[ExitStatus]) -> None:
        status = await self._runtime.exit_of(process.id, child)
        async with process.lock:
            process.end(status)
            self._publish(self._exit(process, process.id))
        self._exec_over()

    def _exec_over(self) -> None:
        self._running_execs -= 1
        if self._execs_over is not None and self._running_execs == 0:
            self._execs_over.set_result(None)

    def _exit(self, process: Process, name: str) -> payloads.TaskExit:
        return payloads.TaskExit(
            container_id=self.id,
            id=name,
            pid=process.pid,
            exit_status=process.exit_status,
            exited_at=process.exited_at,
        )

    # --- the whole container --------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """Freeze."""
        async with self.init.lock:
            if self.init.status == CREATED:
                raise Unknown("cannot pause task in created state")
            if self.init.status != RUNNING:
                raise Unknown(f"cannot pause a {WORDS[self.init.status]} container")
            self.init.status = PAUSING
            try:
                await self._runtime.pause()
            except BaseException:
                self.init.status = RUNNING
                raise
            self.init.status = PAUSED
            self._publish(payloads.TaskPaused(container_id=self.id))

    async def resume(self) -> None:
        """Thaw."""
        async with self.init.lock:
            if self.init.status == CREATED:
                raise Unknown("cannot resume task in created state")
            if self.init.status == RUNNING:
                raise Unknown("cannot resume a running process")
            if self.init.status == STOPPED:
                raise Unknown("cannot resume a stopped container")
            await self._runtime.resume()
            self.init.status = RUNNING
            self._publish(payloads.TaskResumed(container_id=self.id))

    async def update(self, resources: bytes) -> None:
        """Change limits."""
        async with self.init.lock:
            if self.init.status == STOPPED:
                raise Unknown("cannot update a stopped container")
            await self._runtime.update(resources)

    async def checkpoint(self, path: str, options: m.CheckpointOptions) -> None:
        """Write a CRIU image."""
        async with self.init.lock:
            if self.init.status == CREATED:
                raise Unknown("cannot checkpoint a task in created state")
            if self.init.status == STOPPED:
                raise Unknown("cannot checkpoint a stopped container")
            work = options.work_path or f"{self._work}/criu-work"
            try:
                await self._runtime.checkpoint(path, work, options)
            except MooredError as error:
                import shutil  # seldom needed, and heavy

                copied = f"{self.bundle}/criu-dump.log"
                with suppress(OSError):
                    shutil.copyfile(f"{work}/dump.log", copied)
                raise Unknown(f"{error} path= {copied}") from error
            finally:
                if not options.work_path:
                    import shutil

                    shutil.rmtree(work, ignore_errors=True)

    async def pids(self) -> list[m.ProcessInfo]:
        """Every process in the container; none once it stopped."""
        if self.init.status == STOPPED or not self.init.pid:
            return []
        execs = {process.pid: process.id for process in self.execs.values() if process.pid}
        if "ps" in self._runtime.invocation.verbs:
            pids = await self._runtime.pids()
        else:
            pids = [self.init.pid, *(process.pid for process in self.execs.values() if process.status == RUNNING)]
        return [m.ProcessInfo(pid, m.details(execs[pid]) if pid in execs else None) for pid in pids]

    def resize(self, exec_id: str, width: int, height: int) -> None:
        """Set the size of a terminal; without one nothing happens."""
        process = self.process(exec_id)
        if exec_id and process.status == STOPPED:
            raise Unknown("cannot resize a stopped container")
        if process.streams is not None:
            process.streams.resize(width, height)

    def close_stdin(self, exec_id: str) -> None:
        """Let the input end once the client closes it too."""
        process = self.process(exec_id)
        if process.streams is not None:
            process.streams.close_stdin()

    def stats(self) -> payloads.Packed:
        """Give the counters of the cgroup. NotFound."""
        kind, value = stats_of(self._cgroups)
        return payloads.Packed(type_url=kind, value=value)


def _check_exec_id(exec_id: str) -> None:
    """Refuse what is no file name: the id names the exec's files in the bundle."""
    if not exec_id or "/" in exec_id or exec_id.startswith("."):
        raise InvalidArgument(f"exec id {exec_id!r} cannot be used, it names files")


def _process_spec(request: m.ExecProcessRequest) -> dict[str, object]:
    try:
        spec = json.loads(request.spec.value if request.spec is not None else b"")
    except ValueError as error:
        raise InvalidArgument(f"spec of exec {request.exec_id!r} is not JSON: {error}") from error
    if not isinstance(spec, dict):
        raise InvalidArgument(f"spec of exec {request.exec_id!r} is no object")
    return {**spec, "terminal": request.terminal}
