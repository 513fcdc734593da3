"""Runs a kernel from first start to clean stop on one event loop, and answers signals meanwhile.

SIGTERM and SIGINT stop (a second one at once), SIGHUP checks the config files and reports, SIGUSR1 dumps stacks and
tasks. A plugin that gives the daemon up stops it too, with status 1.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from moored.kernel import stacks
from moored.kernel.daemon.notify import Notifier
from moored.kernel.daemon.view import View
from moored.kernel.lifecycle import Kernel, StartFailed
from moored.kernel.ports.daemon import Outcome

log = structlog.get_logger("moored.daemon")

WORKER_THREADS = 32
"""Threads for blocking calls; plugins with much of such work bring pools of their own."""

COLLECT_AFTER = (20_000, 20, 20)
"""New objects after which Python looks for cycles among them, and how often it looks at older ones (`gc`).

Long lists make many objects and no cycles; with Python's own 700 half of the time for one goes into looking.
"""

DRAIN_SECONDS = 2.0
"""How long tasks that outlived their plugin, and their threads, are waited for at the end."""


def serve(kernel: Kernel, daemon: View, began: float) -> int:
    """Start, wait for a signal, stop; returns the exit status. `began` is time.monotonic() at the process's start."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    workers = ThreadPoolExecutor(WORKER_THREADS, thread_name_prefix="worker")
    loop.set_default_executor(workers)
    try:
        status = loop.run_until_complete(_serve(kernel, daemon, began))
        loop.run_until_complete(_drain(asyncio.all_tasks(loop)))
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    return _end(status, workers)


async def _serve(kernel: Kernel, daemon: View, began: float) -> int:
    notifier = Notifier()
    told = asyncio.Event()
    _answer_signals(told, daemon)
    starting = asyncio.create_task(kernel.start(daemon), name="start")
    stopping = asyncio.create_task(told.wait(), name="stop signal")
    giving_up = asyncio.create_task(daemon.given_up.wait(), name="giving up")
    ends = {stopping, giving_up}
    watchdog = asyncio.create_task(notifier.keep_alive(), name="watchdog")
    status = 0
    try:
        await asyncio.wait({starting, *ends}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            if not giving_up.done():
                _ready(daemon, notifier, began)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        status = 1 if giving_up.done() else 0
        notifier.send("STOPPING=1")
    except StartFailed as failure:
        for fault in failure.faults:
            log.error("cannot start", reason=fault.text)  # noqa: TRY400 - the faults say all, a traceback nothing
        status = 1
    finally:
        tasks = (starting, *ends, watchdog)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await kernel.stop()
        log.info("stopped", status=status)
    return status


def _ready(daemon: View, notifier: Notifier, began: float) -> None:
    _report(daemon, began)
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    _trim()
    notifier.send("READY=1", f"STATUS={_status(daemon)}")


def _answer_signals(told: asyncio.Event, daemon: View) -> None:
    loop = asyncio.get_running_loop()
    background: set[asyncio.Task[None]] = set()

    def stop(number: signal.Signals) -> None:
        if told.is_set():
            log.error("second signal, ending at once", signal=number.name)
            os._exit(128 + number)
        log.info("stopping", signal=number.name)
        told.set()

    def check() -> None:
        if background:
            return
        task = loop.create_task(_check_config(daemon), name="SIGHUP")
        background.add(task)
        task.add_done_callback(background.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGHUP, check)
    loop.add_signal_handler(signal.SIGUSR1, _dump_stacks)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


async def _check_config(daemon: View) -> None:
    """SIGHUP: tell what the files on disk would change; nothing is applied."""
    try:
        check = await daemon.check_config()
    except Exception:
        log.exception("config check failed")
        return
    for problem in check.problems:
        log.warning("config", problem=problem.message, key=problem.key, file=problem.file, line=problem.line)
    for change in check.changes:
        log.warning("config changed on disk", plugin=change.plugin, needs=change.action, keys=", ".join(change.keys))
    if not check.problems and not check.changes:
        log.info("config files and running config agree")


def _dump_stacks() -> None:
    """SIGUSR1: the stacks go to the log and to a file, as containerd's do."""
    text = stacks.dump()
    log.info("stack dump", stacks=text)
    path = Path(tempfile.gettempdir()) / f"moored.{os.getpid()}.stacks.log"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        log.warning("stack dump not written", file=str(path), reason=error.strerror)


def _report(daemon: View, began: float) -> None:
    records = daemon.plugins()
    counts = {outcome: sum(r.outcome is outcome for r in records) for outcome in Outcome}
    for reason in daemon.unhealthy():
        log.warning("unhealthy", reason=reason)
    log.info(
        "moored is up",
        version=daemon.version,
        pid=os.getpid(),
        seconds=round(time.monotonic() - began, 3),
        plugins=", ".join(f"{count} {outcome.value}" for outcome, count in counts.items() if count),
    )


def _trim() -> None:
    """Give back what starting has freed; the C library would keep it for a growth that an idle daemon does not have."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(daemon: View) -> str:
    bad = daemon.unhealthy()
    return f"unhealthy: {bad[0]}" if bad else "serving"


async def _drain(tasks: set[asyncio.Task[object]]) -> None:
    """End what plugins left running on the loop."""
    mine = asyncio.current_task()
    left = {task for task in tasks if task is not mine}
    for task in left:
        task.cancel()
    if left:
        _, stuck = await asyncio.wait(left, timeout=DRAIN_SECONDS)
        for task in stuck:
            log.error("task left behind", task=task.get_name())
    await asyncio.get_running_loop().shutdown_asyncgens()


def _end(status: int, workers: ThreadPoolExecutor) -> int:
    """Return the status once every thread is gone; a thread that hangs is named, and the process ended without it."""
    workers.shutdown(wait=False, cancel_futures=True)
    deadline = time.monotonic() + DRAIN_SECONDS
    threads = [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if stuck := [thread.name for thread in threads if thread.is_alive()]:
        log.error("threads left behind", threads=", ".join(stuck))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
