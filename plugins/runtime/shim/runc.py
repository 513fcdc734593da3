"""Calls of the OCI runtime's command line, as an invocation says. Source: `contracts/shim-v2.md` 10."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from moored.kernel.errors import MooredError, NotFound, Unimplemented, Unknown
from moored.kernel.oserrors import reason
from moored.plugins.runtime.oci.texts import already_finished, no_such_container
from moored.plugins.runtime.shim import bundle as files
from moored.plugins.runtime.shim import log
from moored.plugins.runtime.shim.loop import ExitStatus, Future, Loop
from moored.plugins.runtime.shim.messages import CheckpointOptions
from moored.plugins.runtime.shim.settling import settle

if TYPE_CHECKING:
    from moored.kernel.ports.invocations import Invocation

_MAX_OUTPUT: Final = 16 << 20
_CHUNK: Final = 64 << 10
_DEFAULTED: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that Python ignores, which a container must not inherit."""


class Failed(Exception):
    """The runtime ended with an error; the text is its output, `reason` what it logged."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason

    @property
    def whole(self) -> str:
        """The text, and the reason where that does not repeat it."""
        text = str(self)
        return text if not self.reason or self.reason in text else f"{text}: {self.reason}"


class Ends(NamedTuple):
    """What a process is given: descriptors for 0, 1 and 2, and the socket for its terminal, empty without one."""

    fds: tuple[int, int, int]
    console_socket: str = ""


class Runtime:
    """The runtime of one container. Methods raise Unknown with the runtime's own words where nothing else is said."""

    def __init__(self, loop: Loop, invocation: Invocation, bundle: str, container_id: str) -> None:
        self.invocation = invocation
        self._loop = loop
        self._bundle = bundle
        self._id = container_id

    # --- life of the container ------------------------------------------------------------------------------------

    async def create(self, ends: Ends) -> None:
        """Make the container with its init waiting to be started; its pid is in the bundle's `init.pid`."""
        _make_root(self.invocation.root)
        args = ["--bundle", self._bundle, "--pid-file", f"{self._bundle}/{files.PID}", *_console(ends)]
        args += [*self.invocation.create_flags, self._id]
        known = self._is_known
        try:
            await self._do("OCI runtime create failed", "create", *args, ends=ends)
        except MooredError:
            if not known:  # else it failed for that, and the container is somebody else's
                await self.discard()
            raise

    async def discard(self) -> None:
        """Remove what a create that failed has left; runsc leaves cgroups without a record. Faults go to the log."""
        from moored.plugins.runtime.manager.leftovers import remove_empty_cgroup

        try:
            await self.delete(force=True)
            remove_empty_cgroup(str((files.spec_of(self._bundle).get("linux") or {}).get("cgroupsPath") or ""))
        except (MooredError, OSError, ValueError, AttributeError) as error:
            log.warning(f"what a failed create of {self._id!r} left is not removed: {error}")

    async def restore(self, ends: Ends, image: str, parent: str, work: str) -> None:
        """Make and run the container from a CRIU image."""
        self._needs("restore")
        args = ["--image-path", image, "--work-path", work, *(["--parent-path", parent] if parent else [])]
        args += ["--detach", "--pid-file", f"{self._bundle}/{files.PID}", *_console(ends)]
        flags = [flag for flag in self.invocation.create_flags if flag == "--no-pivot"]
        args += [*flags, "--no-subreaper", "--bundle", self._bundle, self._id]
        await self._do("OCI runtime restore failed", "restore", *args, ends=ends)

    async def start(self) -> None:
        """Let init run."""
        await self._do("OCI runtime start failed", "start", self._id)

    async def delete(self, *, force: bool = False) -> None:
        """Remove what the runtime keeps; a container that it does not know is fine."""
        try:
            await self._call("delete", *(["--force"] if force else []), self._id)
        except Failed as error:
            if self._is_known and not no_such_container(error.whole):
                raise _worded("failed to delete task", error) from error

    # --- processes ------------------------------------------------------------------------------------------------

    async def execute(self, exec_id: str, process: dict[str, Any], ends: Ends) -> None:
        """Run another process; its pid is in the bundle's `EXEC.pid`."""
        name = f"{exec_id}.process.json"
        files.write(f"{self._bundle}/{name}", json.dumps(process).encode())
        args = [
            "--process",
            f"{self._bundle}/{name}",
            *_console(ends),
            "--detach",
            "--pid-file",
            f"{self._bundle}/{exec_id}.pid",
        ]
        if self._counts_itself:
            args += ["--internal-pid-file", f"{self._bundle}/{inner_pid(exec_id)}"]
        try:
            flags = self.invocation.exec_flags
            await self._do("OCI runtime exec failed", "exec", *args, *flags, self._id, ends=ends)
        finally:
            files.remove(self._bundle, name)

    async def kill(self, number: int, *, everything: bool = False) -> None:
        """Send a signal to init, or to all processes. NotFound if it is gone."""
        every = ["--all"] if everything and self.invocation.kill_all else []
        try:
            await self._call("kill", *every, self._id, str(number))
        except Failed as error:
            raise _kill_error(error.whole) from error

    async def kill_exec(self, exec_id: str, pid: int, number: int) -> None:
        """Send a signal to a process that `execute` ran. NotFound if it is gone."""
        if self.invocation.signals == "pid":
            try:
                os.kill(pid, number)
            except OSError as error:
                raise _kill_error(reason(error)) from error
            return
        inner = files.read_pid(self._bundle, inner_pid(exec_id))
        try:
            await self._call("kill", "--pid", str(inner), self._id, str(number))
        except Failed as error:
            raise _kill_error(error.whole) from error

    async def pids(self) -> list[int]:
        """Every process in the container, by its pid here."""
        self._needs("ps")
        try:
            output = await self._call("ps", "--format", "json", self._id)
            return [int(pid) for pid in json.loads(output) or []]
        except (Failed, ValueError, TypeError) as error:
            raise Unknown(str(error)) from error

    async def pause(self) -> None:
        """Freeze."""
        self._needs("pause")
        await self._do("OCI runtime pause failed", "pause", self._id)

    async def resume(self) -> None:
        """Thaw."""
        self._needs("resume")
        await self._do("OCI runtime resume failed", "resume", self._id)

    async def update(self, resources: bytes) -> None:
        """Change limits; `resources` is JSON."""
        self._needs("update")
        fd = os.memfd_create("resources")
        try:
            os.write(fd, resources)
            os.lseek(fd, 0, os.SEEK_SET)
            await self._call("update", "--resources=-", self._id, stdin=fd)
        except Failed as error:
            raise Unknown(str(error)) from error
        finally:
            os.close(fd)

    async def checkpoint(self, image: str, work: str, options: CheckpointOptions) -> None:
        """Write a CRIU image. The error is the first line of the runtime's output, for CRIU's log is long."""
        self._needs("checkpoint")
        wanted = (
            ("--tcp-established", options.open_tcp),
            ("--ext-unix-sk", options.external_unix_sockets),
            ("--shell-job", options.terminal),
            ("--file-locks", options.file_locks),
        )
        args = ["--image-path", image, "--work-path", work, *(flag for flag, on in wanted if on)]
        for name in options.empty_namespaces:
            args += ["--empty-ns", name]
        try:
            await self._call("checkpoint", *args, *([] if options.exit else ["--leave-running"]), self._id)
        except Failed as error:
            raise Unknown(str(error).partition("\n")[0]) from error

    async def exit_of(self, exec_id: str, child: Future[ExitStatus]) -> ExitStatus:
        """Wait for the end of init (exec_id "") or of another process, in the way in which this runtime tells it."""
        if self.invocation.exits == "child":
            return await child
        inner = ["--pid", str(files.read_pid(self._bundle, inner_pid(exec_id)))] if exec_id else []
        try:
            output = await self._call("wait", *inner, self._id)
            return ExitStatus(int(json.loads(output)["exitStatus"]), time.time_ns())
        except (Failed, ValueError, TypeError, KeyError) as error:
            log.warning(f"the runtime did not tell how {exec_id or self._id!r} ended: {error}")
            return await child

    @property
    def _is_known(self) -> bool:
        """Whether the runtime keeps something of the container."""
        try:
            names = os.listdir(self.invocation.root)
        except OSError:
            return False
        # a folder of its name, or files of runsc
        return any(name == self._id or name.startswith(f"{self._id}_sandbox:") for name in names)

    @property
    def _counts_itself(self) -> bool:
        """Whether processes are known to the runtime by numbers of its own."""
        return self.invocation.signals != "pid" or self.invocation.exits != "child"

    def _needs(self, verb: str) -> None:
        if verb not in self.invocation.verbs:
            raise Unimplemented(f"runtime {self.invocation.driver!r} has no {verb!r}")

    # --- calling --------------------------------------------------------------------------------------------------

    async def _do(self, what: str, verb: str, *args: str, ends: Ends | None = None) -> None:
        try:
            await self._call(verb, *args, ends=ends)
        except Failed as error:
            raise _worded(what, error) from error

    async def _call(self, verb: str, *args: str, ends: Ends | None = None, stdin: int | None = None) -> bytes:
        """Run the runtime and give its output, which is empty where its descriptors are the container's."""
        since = files.log_size(self._bundle)
        argv = self._argv(verb, *args)
        output = b""
        if ends is not None and not ends.console_socket:
            status = await self._loop.child(self._spawn(argv, ends.fds))
        else:
            output, status = await self._captured(argv, stdin)
        if status:
            text = f"{argv[0]} did not terminate successfully: exit status {int(status)}"
            text += f": {output.decode(errors='replace').strip()}" if output else ""
            raise Failed(text, files.last_error(self._bundle, since))
        return output

    def _argv(self, verb: str, *args: str) -> list[str]:
        how = self.invocation
        log = ["--log", f"{self._bundle}/{files.LOG}", "--log-format", "json"]
        return [how.binary.rpartition("/")[2], *how.flags, "--root", how.root, *log, verb, *args]

    async def _captured(self, argv: list[str], stdin: int | None) -> tuple[bytes, ExitStatus]:
        read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read, False)
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        pieces: list[bytes] = []
        collecting = None
        try:
            try:
                ended = self._loop.child(self._spawn(argv, (null if stdin is None else stdin, write, write)))
            finally:
                os.close(write)
                os.close(null)
            collecting = self._loop.spawn(_collect(self._loop, read, pieces))
            status = await ended
            # What a hook left in the background may hold the pipe for ever; what the runtime wrote is there by now.
            _take(read, pieces)
        finally:
            if collecting is not None:
                await settle(self._loop, collecting)
            os.close(read)
        return b"".join(pieces), status

    def _spawn(self, argv: list[str], fds: tuple[int, int, int]) -> int:
        env = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        env.update(self.invocation.environment)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
        _leave_removed_folder()
        try:
            return os.posix_spawn(
                self.invocation.binary, argv, env, file_actions=actions, setsigdef=_DEFAULTED, setsigmask=()
            )
        except OSError as error:
            raise Failed(f"cannot run {self.invocation.binary!r}: {reason(error)}", "") from error


def _make_root(path: str) -> None:
    os.makedirs(path, mode=0o711, exist_ok=True)


def inner_pid(exec_id: str) -> str:
    """Name the file with a process's number inside of the container."""
    return f"{exec_id}.inner.pid"


def _console(ends: Ends) -> list[str]:
    return ["--console-socket", ends.console_socket] if ends.console_socket else []


def _worded(what: str, error: Failed) -> MooredError:
    return Unknown(f"{what}: {error.reason or error}")


def _kill_error(text: str) -> MooredError:
    if already_finished(text):
        return NotFound("process already finished")
    if no_such_container(text):
        return NotFound("no such container")
    return Unknown(f"unknown error after kill: {text.strip()}")


async def _collect(loop: Loop, fd: int, pieces: list[bytes]) -> None:
    while True:
        await loop.readable(fd)
        if _take(fd, pieces):
            return


def _take(fd: int, pieces: list[bytes]) -> bool:
    """Read all that is there and tell whether that was the end; what is too much is thrown away."""
    with suppress(BlockingIOError):
        while data := os.read(fd, _CHUNK):
            if sum(map(len, pieces)) < _MAX_OUTPUT:
                pieces.append(data)
        return True
    return False


def _leave_removed_folder() -> None:
    """Leave a bundle that was removed while others of the group go on: runtimes ask where they are."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir("/")
