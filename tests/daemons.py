"""Runs real daemon processes for tests: private paths, captured log, stopped by pid, nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import grpc

from moored.api.moored.daemon.v1 import daemon_pb2, daemon_pb2_grpc

START_SECONDS = 30.0
STOP_SECONDS = 20.0


class Daemon:
    """One `moored` process below `folder`. Used as a context manager: started on entry, stopped on exit."""

    def __init__(
        self,
        folder: Path,
        config: str = "version = 4\n",
        *,
        python: str = sys.executable,
        args: Sequence[str] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.socket = folder / "m.sock"
        self.root = folder / "root"
        self.state = folder / "state"
        self.config = folder / "config.toml"
        self.log = folder / "log"
        self.config.write_text(config)
        self.python = python
        self.args = list(args)
        self.env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *more: str) -> list[str]:
        """The daemon's command line, for running it in other ways."""
        paths = ["--root", str(self.root), "--state", str(self.state), "--address", str(self.socket)]
        return [self.python, "-m", "moored.kernel.daemon.main", "-c", str(self.config), *paths, *self.args, *more]

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start without waiting for it to serve."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, start_new_session=True
            )
        return self.process

    def start(self) -> Self:
        """Start and wait until the log says that it is up; AssertionError with the log if it ends instead."""
        process = self.spawn()
        deadline = time.monotonic() + START_SECONDS
        while "moored is up" not in self.text():
            assert process.poll() is None, f"the daemon ended with {process.returncode}:\n{self.text()}"
            assert time.monotonic() < deadline, f"the daemon is not up:\n{self.text()}"
            time.sleep(0.01)
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait; returns its exit status (negative: killed by that signal)."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the daemon did not stop:\n{self.text()}") from None

    def fails_to_start(self) -> tuple[int, str]:
        """Run it to its end; (status, log). AssertionError if it does not end by itself."""
        process = self.spawn()
        try:
            status = process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            self.stop()
            raise AssertionError(f"the daemon started:\n{self.text()}") from None
        return status, self.text()

    def text(self) -> str:
        """All that it has logged so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def channel(self, **options: Any) -> grpc.Channel:
        """A new gRPC channel to it."""
        return grpc.insecure_channel(f"unix:{self.socket}", **options)

    def plugins(self) -> dict[str, daemon_pb2.Plugin]:
        """Every plugin by URI, as the running daemon tells."""
        with self.channel() as channel:
            listed = daemon_pb2_grpc.DaemonStub(channel).Plugins(daemon_pb2.PluginsRequest(), timeout=10)
        return {plugin.uri: plugin for plugin in listed.plugins}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()


def outcome(plugin: daemon_pb2.Plugin) -> str:
    """`ok`, `failed`, `timed out` and so on."""
    return daemon_pb2.Outcome.Name(plugin.outcome).removeprefix("OUTCOME_").lower().replace("_", " ")


def connects(path: Path) -> bool:
    """Whether somebody accepts on a unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
