"""systemd's readiness protocol (sd_notify(3)): one datagram a state change, to the socket named by NOTIFY_SOCKET."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping


class Notifier:
    """Tells the service manager of this daemon's state; does nothing where there is none."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._watchdog = _watchdog_seconds(environ)

    def send(self, *assignments: str) -> None:
        """Send `READY=1`, `STATUS=...` and so on. Never raises: a service manager that is away changes nothing."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            try:
                channel.connect(address)
                channel.sendall("\n".join(assignments).encode())
            except OSError:
                return

    async def keep_alive(self) -> None:
        """Feed the watchdog at half its period for as long as the event loop turns; returns at once without one."""
        while self._watchdog:
            self.send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog / 2)


def _watchdog_seconds(environ: Mapping[str, str]) -> float:
    period = environ.get("WATCHDOG_USEC", "")
    meant_for = environ.get("WATCHDOG_PID", str(os.getpid()))
    if not period.isdecimal() or meant_for != str(os.getpid()):
        return 0.0
    return int(period) / 1e6
