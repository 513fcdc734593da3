"""The writer thread: runs updates in the order they came and makes several durable by one commit."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import lmdb

from moored.kernel.errors import Internal, MooredError, Unavailable
from moored.plugins.metadata.lmdb.environment import Environment
from moored.plugins.metadata.lmdb.records import Records

MAX_BATCH: Final = 256
"""Updates in one commit."""


PATIENCE: Final = 16
"""Rounds of the loop without a further job after which no more are waited for."""


@dataclass(slots=True, eq=False)
class Job:
    """One update and where its outcome goes."""

    change: Callable[[Records], Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Writer:
    """Owns every write transaction of an environment, from begin to commit, on one thread.

    Jobs are bounded by who submits them. `delivered` is called on the loop with all jobs of a batch, cancelled ones
    included.
    """

    def __init__(
        self, environment: Environment, loop: asyncio.AbstractEventLoop, delivered: Callable[[list[Job]], None]
    ) -> None:
        self.commits = 0
        self.updates = 0
        self._environment = environment
        self.loop = loop
        self._delivered = delivered
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._gathered: list[Job] = []
        self._given = 0
        """Jobs that the thread has and that are not settled."""
        self._crowd = 1
        """How many jobs there were at a time lately."""
        self._ended = False
        self._links: dict[bytes, bytes] = {}
        """See `Records`. What an update saw that did not come to be may be wrong, and all of it is forgotten."""
        self._thread = threading.Thread(target=self._run, name="metadata-writer", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job; its future is settled whatever happens."""
        self._gathered.append(job)
        if len(self._gathered) > 1:
            return
        if self._crowd > 1 or self._given:
            self.loop.call_soon(self._hand_over, 1, 0)
        else:
            self._hand_over(1, 0)

    def _hand_over(self, seen: int, rounds: int) -> None:
        """Give the thread what was gathered, once `rounds` of the loop in a row have brought nothing more.

        A commit costs the thread more than the jobs in it, and while both have work each keeps the other waiting for
        the interpreter. So a caller among others waits until no more of them come; one alone does not.
        """
        now = len(self._gathered)
        patience = PATIENCE if self._crowd > 1 else 0
        if now < min(self._crowd, MAX_BATCH) and (now > seen or rounds < patience):
            self.loop.call_soon(self._hand_over, now, 0 if now > seen else rounds + 1)
            return
        self._crowd = max(now + self._given, self._crowd - 1)
        self.give()

    def give(self) -> None:
        """Give the thread what was gathered, without waiting for more."""
        gathered, self._gathered = self._gathered, []
        self._given += len(gathered)
        for job in gathered:
            self._jobs.put(job)

    def _settle(self, batch: list[Job]) -> None:
        self._given -= len(batch)
        self._delivered(batch)

    def stop(self) -> None:
        """Finish what was given, then end the thread. Blocks; any thread."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._take()) is not None:
            batch = [job]
            try:
                self._commit_batch(batch)
            except MooredError as error:
                _fail(batch, error)
            except BaseException as error:  # noqa: BLE001 - if this thread ended, all would hang
                self._environment.stop(f"writer thread: {error!r}")
                _fail(batch, Unavailable(f"metadata store has stopped: writer thread: {error!r}"))
            self._deliver(batch)

    def _take(self, *, wait: bool = True) -> Job | None:
        """Give the next job; None at the end, or when there is none now."""
        if self._ended:
            return None
        try:
            job = self._jobs.get(block=wait)
        except queue.Empty:
            return None
        self._ended = job is None
        return job

    def _commit_batch(self, batch: list[Job]) -> None:
        """Run the one job in `batch` and what else is queued meanwhile, which joins it, then commit all."""
        full = self._environment.full()
        txn = self._environment.begin_write()
        try:
            changes = self._run_job(txn, batch[0], full=full)
            while len(batch) < MAX_BATCH and (job := self._take(wait=False)) is not None:
                batch.append(job)
                changes += self._run_job(txn, job, full=full)
            self._environment.commit(txn)
        except BaseException:
            self._links.clear()
            txn.abort()
            raise
        self.updates += changes
        self.commits += bool(changes)

    def _run_job(self, txn: lmdb.Transaction[bytes], job: Job, *, full: bool) -> int:
        """Run one job in a transaction of its own inside the batch's; 1 if that joined the batch."""
        if job.future.cancelled():
            return 0
        nested = self._environment.begin_nested(txn)
        records = Records(nested, writable=True, full=full, links=self._links)
        try:
            job.result = job.change(records)
            if records.doomed is None:
                records.flush()
        except BaseException as error:  # noqa: BLE001 - it is the caller's, whatever it is
            # A future refuses StopIteration.
            job.error = Internal(f"update raised {error!r}") if isinstance(error, StopIteration) else error
        records.end()
        self._environment.met(records.doomed)
        job.error = job.error or records.doomed
        if job.error is not None:
            self._links.clear()
            nested.abort()
            return 0
        self._environment.commit_nested(nested)
        return 1

    def _deliver(self, batch: list[Job]) -> None:
        try:
            self.loop.call_soon_threadsafe(self._settle, batch)
        except RuntimeError:
            return  # the loop is closed, so nobody waits any more


def _fail(batch: list[Job], error: MooredError) -> None:
    """Give every job its own copy of the error, for a raised exception collects the traceback of its raiser."""
    for job in batch:
        if job.error is None:
            job.error = type(error)(error.text)
            job.error.__cause__ = error
