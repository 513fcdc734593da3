"""A process that does nothing but keep a sandbox' namespaces, the pause of a pod: a copy of the shim, without binary.

    shim ── fork ── enters and makes the namespaces, sets them up, tells how that went
                     └─ fork ── first process of the new pid namespace; the one above ends, the shim is its reaper

It lives until the shim lets it go or is gone itself: it reads a pipe whose other end only the shim has.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
from contextlib import suppress
from typing import Final, NoReturn

from moored.kernel.errors import Unknown
from moored.plugins.runtime.shim.loop import ExitStatus, Future, Loop
from moored.plugins.runtime.shim.podwishes import FLAGS, Wishes

_KILL: Final = 9
_SETUP_SECONDS: Final = 10.0
_FIRST_FD: Final = 3
_SIOCSIFFLAGS: Final = 0x8914
_UP: Final = 1
_PR_SET_NAME: Final = 15


class Holder:
    """One such process, made by `hold`."""

    def __init__(self, pid: int, life: int, ended: Future[ExitStatus]) -> None:
        self.pid = pid
        self.ended = ended
        self._life = life
        ended.add_callback(self._let_go)

    def _let_go(self) -> None:
        life, self._life = self._life, -1
        if life >= 0:
            os.close(life)

    async def end(self) -> None:
        """End it, and with it all processes in a pid namespace of its own."""
        self._let_go()
        await self.ended


async def hold(loop: Loop, wishes: Wishes) -> Holder:
    """Start a process in such namespaces. Raises Unknown with the reason if that fails; then there is none."""
    told, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    living, life = os.pipe2(os.O_CLOEXEC)
    pid = 0
    try:
        with loop.keeping_exits() as kept:
            pid = os.fork()
            if pid == 0:
                _be_maker(wishes, tell, living)
            os.close(tell)
            tell = -1
            text = await loop.within(_SETUP_SECONDS, _read(loop, told))
            await kept.child(pid)
            if not text.isdigit():
                raise Unknown(f"failed to make the namespaces of the sandbox: {text or 'the process for it ended'}")
            holder = Holder(int(text), life, kept.child(int(text)))
            life = -1
            return holder
    except TimeoutError:
        os.kill(pid, _KILL)
        raise Unknown(f"namespaces of the sandbox were not made within {_SETUP_SECONDS:g} seconds") from None
    finally:
        for fd in (told, tell, living, life):
            if fd >= 0:
                os.close(fd)


async def _read(loop: Loop, fd: int) -> str:
    data = b""
    while True:
        try:
            piece = os.read(fd, 4096)
        except BlockingIOError:
            await loop.readable(fd)
        else:
            if not piece:
                return data.decode(errors="replace")
            data += piece


# --- in the copies ----------------------------------------------------------------------------------------------------


def _be_maker(wishes: Wishes, tell: int, living: int) -> NoReturn:
    try:
        _forget_shim({tell, living})
        _enter(wishes)
        _set_up(wishes)
        pid = os.fork()
        if pid == 0:
            os.close(tell)
            _be_holder(living)
        os.write(tell, str(pid).encode())
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - told to the shim
        with suppress(OSError):
            os.write(tell, str(error).encode(errors="replace")[:4000] or b"unknown")
    finally:
        os._exit(1)


def _forget_shim(kept: set[int]) -> None:
    """Let go of what is the shim's: its connections would seem open, and its signals would wake nobody."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= _FIRST_FD and int(name) not in kept:
            with suppress(OSError):
                os.close(int(name))
    os.chdir("/")


def _enter(wishes: Wishes) -> None:
    import ctypes

    calls = ctypes.CDLL(None, use_errno=True)

    def do(what: str, status: int) -> None:
        if status:
            raise OSError(f"{what}: {os.strerror(ctypes.get_errno())}")

    for kind, path in wishes.namespaces.items():
        if path:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise OSError(f"{kind} namespace {path!r}: {error.strerror}") from error
            do(f"{kind} namespace {path!r}", calls.setns(fd, FLAGS[kind]))
            os.close(fd)
    new = sum(FLAGS[kind] for kind, path in wishes.namespaces.items() if not path)
    do("new namespaces", calls.unshare(new) if new else 0)
    calls.prctl(_PR_SET_NAME, b"moored-pause", 0, 0, 0)


def _set_up(wishes: Wishes) -> None:
    if wishes.hostname:
        socket.sethostname(wishes.hostname)
    if wishes.namespaces.get("network") == "":
        _raise_loopback()
    for name, value in wishes.sysctls.items():
        path = "/proc/sys/" + (name if "/" in name else name.replace(".", "/"))
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, value.encode())
            os.close(fd)
        except OSError as error:
            raise OSError(f"sysctl {name!r} cannot be {value!r}: {error.strerror}") from error


def _raise_loopback() -> None:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _UP))


def _be_holder(living: int) -> NoReturn:
    """Wait for the end, burying what is left to the first process of a pid namespace."""
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, lambda *_: _bury())
        os.read(living, 1)
    finally:
        sys.stderr = None
        os._exit(0)


def _bury() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
