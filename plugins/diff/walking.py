"""The walking differ: unpacks layers through a process each, and makes them by walking two trees side by side."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    aclosing,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import DataLoss, DeadlineExceeded, FailedPrecondition, Internal, Unknown
from moored.kernel.mounts import mounted
from moored.kernel.ports.content import ContentStore, Reader
from moored.kernel.ports.daemon import StreamProcessor
from moored.kernel.ports.diff import LAYER, NO_LABELS, NO_PAYLOADS, Budget, Labels, Progress
from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.mounts import Mount
from moored.plugins.diff.compare.layer import Comparison, store_difference
from moored.plugins.diff.decompress.decoders import Detected, Plain
from moored.plugins.diff.decompress.pump import Pump
from moored.plugins.diff.processors import chain, processed
from moored.plugins.diff.stored import digest_of
from moored.plugins.diff.syscalls import Syscalls
from moored.plugins.diff.worker import Crew, Worker, settled

APPLY_MODULE: Final = "moored.plugins.diff.apply.process"
ID_MAP: Final = Path("/proc/self/uid_map")
TINY: Final = 64 << 10
"""Bytes of a stored layer that is decompressed where it is met, up to two pieces, while its process gets ready."""
SMALL: Final = 4 << 20
"""Bytes of one that its process decompresses too; of a larger one it unpacks what is decompressed meanwhile."""
EARLY_SECONDS: Final = 0.25
"""How often a long unpacking is written to its disk meanwhile."""

Mounted = Callable[[Sequence[Mount]], AbstractContextManager[Path]]
"""Mounts on a folder of its own making and gives it; blocks."""
Activated = Callable[[Sequence[Mount]], AbstractAsyncContextManager[Sequence[Mount]]]
"""Carries out what needs more than a mount, and gives the mounts that are left."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a layer is written: a folder, and the folders below it, nearest first, if it is an overlay's upper one."""

    root: str
    lowers: tuple[str, ...] | None = None
    userxattr: bool = False


def direct_target(mounts: Sequence[Mount]) -> Target | None:
    """The folder that a single overlay or bind mount can be written through; None where it must be mounted.

    Raises FailedPrecondition for a mount that cannot be written.
    """
    if len(mounts) != 1 or mounts[0].target:
        return None
    one = mounts[0]
    if one.type == "overlay":
        options = dict(option.partition("=")[::2] for option in one.options)
        if "upperdir" not in options:
            raise FailedPrecondition("the mount is read-only, an overlay without an upper folder")
        lowers = tuple(path for path in _lowers(one.options) if path)
        return Target(options["upperdir"], lowers, "userxattr" in one.options)
    if one.type == "bind" or {"bind", "rbind"} & set(one.options):
        if one.read_only:
            raise FailedPrecondition("the mount is read-only")
        return Target(one.source)
    return None


def _lowers(options: Sequence[str]) -> list[str]:
    found: list[str] = []
    for option in options:
        name, _, value = option.partition("=")
        if name == "lowerdir":
            # a backslash keeps the colon behind it in the path
            parts = value.replace("\\:", "\0").split(":")
            found = [part.replace("\0", ":").replace("\\\\", "\\") for part in parts]
        elif name in {"lowerdir+", "datadir+"}:
            found.append(value)
    return found


def in_user_namespace() -> bool:
    """Whether this process is not root of the whole host, which must not make devices."""
    return ID_MAP.read_text().split() != ["0", "0", "4294967295"]


@dataclass(frozen=True, slots=True)
class _Found:
    """What came of a layer: the digest of its stored bytes, and digest and size of its archive."""

    stored: str
    digest: str
    size: int


class WalkingDiffer:
    """A Differ over a content store.

    processors   stream processors, the last of those that take a type wins
    mounted      mounts what can be written or read only so
    activated    the mount manager's; without one, mounts that need it fail
    crew         runs the processes
    """

    def __init__(
        self,
        store: ContentStore,
        log: FilteringBoundLogger,
        *,
        budget: Budget | None = None,
        processors: Sequence[StreamProcessor] = (),
        mounted: Mounted = mounted,
        activated: Activated = nullcontext,
        crew: Crew | None = None,
    ) -> None:
        self._store = store
        self._log = log
        self._budget = budget or Budget()
        self._processors = tuple(processors)
        self._mounted = mounted
        self._activated = activated
        self._crew = crew or Crew(log=log)
        self._makes_devices = not in_user_namespace()

    # --- apply --------------------------------------------------------------------------------------------------------

    async def apply(
        self,
        descriptor: Descriptor,
        mounts: Sequence[Mount],
        *,
        payloads: Mapping[str, bytes] = NO_PAYLOADS,
        sync_fs: bool = True,
        progress: Progress | None = None,
    ) -> Descriptor:
        """See the port."""
        steps, how = chain(descriptor.media_type, self._processors)
        by_magic = how == "by magic"
        async with await self._store.reader(descriptor.digest) as blob:
            if 0 < descriptor.size != blob.size:
                raise FailedPrecondition(
                    f"content {descriptor.digest} has {blob.size} bytes, {descriptor.size} are described"
                )
            async with self._activated(mounts) as left, self._target(left) as (target, lasts):
                file = blob.fileno() if not steps and TINY < blob.size <= SMALL else None
                if target is not None and file is not None:
                    found = await self._unpack_file(blob, file, target, by_magic=by_magic, sync_fs=sync_fs, lasts=lasts)
                    if progress is not None:
                        progress(blob.size)
                else:
                    decoder = Detected() if by_magic else Plain()
                    pump = Pump(decoder, max_bytes=self._budget.stream_bytes, algorithm=blob.digest.algorithm)
                    async with (
                        aclosing(_Source(blob, progress).chunks()) as stored,
                        processed(stored, steps, payloads) as stream,
                    ):
                        if target is None:
                            await self._read_only(stream, pump)
                        else:
                            tiny = blob.size <= TINY and not steps
                            await self._unpack_stream(stream, pump, target, tiny=tiny, sync_fs=sync_fs, lasts=lasts)
                    found = _Found(pump.stored_digest, pump.digest, pump.size)
        # what went through a program has another digest; the store knows its own
        if not steps and found.stored != blob.digest:
            raise DataLoss(f"content {blob.digest} has the bytes of {found.stored}")
        return Descriptor(media_type=LAYER, digest=found.digest, size=found.size)

    @asynccontextmanager
    async def _target(self, mounts: Sequence[Mount]) -> AsyncGenerator[tuple[Target | None, bool]]:
        """Where to unpack to, None for nowhere; and whether that outlasts the block."""
        if not mounts:
            yield None, False
        elif (target := direct_target(mounts)) is not None:
            yield target, True
        else:
            async with _Entered(self._mounted(mounts)) as folder:
                yield Target(str(folder)), False

    async def _read_only(self, stream: AsyncIterator[bytes], pump: Pump) -> None:
        def use_up(pieces: Iterator[bytes]) -> None:
            for _ in pieces:
                pass

        async for data in self._steady(stream):
            await asyncio.to_thread(use_up, pump.feed(data))
        await asyncio.to_thread(use_up, pump.finish())

    async def _unpack_file(
        self, blob: Reader, file: int, target: Target, *, by_magic: bool, sync_fs: bool, lasts: bool
    ) -> _Found:
        """Let a process do all of it, from the blob's file on: what is small is done before two have come together."""
        stored = {"magic": by_magic, "max_bytes": self._budget.stream_bytes}
        # begun first: the process that is woken gets this one's core
        hashing = _hashing(file, blob.digest.algorithm)
        async with self._worker(target, {"sync": sync_fs, "stored": stored}, lasts, file) as process:
            process.end_input()
            async with self._patience():
                digest = await asyncio.shield(hashing)
            # the process has the file too
            await blob.close()
            report = await process.result()
        self._warn(report, str(blob.digest))
        return _Found(digest, report["digest"], report["size"])

    async def _unpack_stream(
        self, stream: AsyncIterator[bytes], pump: Pump, target: Target, *, tiny: bool, sync_fs: bool, lasts: bool
    ) -> None:
        async with self._worker(target, {"sync": sync_fs}, lasts) as process:
            report = await _pumped(self._steady(stream), pump, process, tiny=tiny)
        self._warn(report, pump.stored_digest)

    @asynccontextmanager
    async def _worker(
        self, target: Target, more: dict[str, Any], lasts: bool, file: int | None = None
    ) -> AsyncGenerator[Worker]:
        task = {
            "root": target.root,
            "lowers": target.lowers,
            "userxattr": target.userxattr,
            "devices": self._makes_devices,
            "max_entries": self._budget.entries,
            "max_bytes": self._budget.file_bytes,
            **more,
        }
        early = _written_early(target.root) if lasts else nullcontext()
        async with early, self._crew.worker(APPLY_MODULE, task, stored=file, again=lasts) as process:
            yield process

    def _warn(self, report: dict[str, Any], digest: str) -> None:
        for warning in report["warnings"]:
            self._log.warning(warning, digest=digest)

    async def _steady(self, stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """The same data; raises DeadlineExceeded when none comes for too long."""
        while True:
            async with self._patience():
                data = await anext(stream, None)
            if data is None:
                return
            yield data

    @asynccontextmanager
    async def _patience(self) -> AsyncGenerator[None]:
        """Wait in the block for the layer's data, but no longer than for a program or disk that hangs."""
        stall = self._crew.stall
        try:
            async with asyncio.timeout(stall):
                yield
        except TimeoutError:
            raise DeadlineExceeded(f"no data of the layer came for {stall:g}s") from None

    # --- compare ------------------------------------------------------------------------------------------------------

    async def compare(
        self,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        *,
        media_type: str = "",
        reference: str = "",
        labels: Labels = NO_LABELS,
        source_date_epoch: int | None = None,
    ) -> Descriptor:
        """See the port."""
        wanted = Comparison(media_type, reference, labels, source_date_epoch, _shortcut(lower, upper))
        wanted.check()
        async with (
            self._activated(lower) as lower_left,
            self._activated(upper) as upper_left,
            _Entered(self._mounted(_read_only_mounts(lower_left))) as lower_folder,
            _Entered(self._mounted(_read_only_mounts(upper_left))) as upper_folder,
        ):
            return await store_difference(self._store, self._crew, str(lower_folder), str(upper_folder), wanted)


@asynccontextmanager
async def _written_early(folder: str) -> AsyncGenerator[None]:
    """Have what is unpacked into a folder inside written to its disk now and then: its commit has to wait for less.

    Raises OSError for what could not be written: whoever syncs later might not be told any more.
    """
    over = asyncio.Event()
    syncing: asyncio.Task[None] | None = None

    async def sync() -> None:
        while not over.is_set():
            await asyncio.to_thread(_sync, folder)
            with suppress(TimeoutError):
                async with asyncio.timeout(EARLY_SECONDS):
                    await over.wait()

    def begin() -> None:
        nonlocal syncing
        syncing = asyncio.create_task(sync())

    # most are over before
    timer = asyncio.get_running_loop().call_later(EARLY_SECONDS, begin)
    try:
        yield
    finally:
        timer.cancel()
        over.set()
        if syncing is not None:
            await settled(syncing)
    if syncing is not None:
        await syncing


def _hashing(file: int, algorithm: str) -> asyncio.Future[str]:
    """Hash an open file in a thread, with a descriptor of its own: nobody has to wait for it. Raises Internal."""
    try:
        own = os.dup(file)
    except OSError as error:
        raise Internal(f"cannot read the stored layer: {error.strerror}") from error

    def hashed() -> str:
        try:
            return digest_of(own, algorithm)
        finally:
            os.close(own)

    future = asyncio.get_running_loop().run_in_executor(None, hashed)
    # told to nobody, where another error came before
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def _sync(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        Syscalls().sync_file_system(fd)
    finally:
        os.close(fd)


async def _pumped(stream: AsyncIterator[bytes], pump: Pump, process: Worker, *, tiny: bool) -> dict[str, Any]:
    """Feed a worker to the end; its report. Where it fails, its word comes before a broken pipe.

    tiny   do it without a turn of the thread, if what comes of the data is little too
    """

    async def feed(pieces: Iterator[bytes]) -> None:
        if tiny:
            left = bytes(process.offer(next(pieces, b""))) or next(pieces, b"")
            if not left:
                return
            pieces = itertools.chain((left,), pieces)
        await process.run(write, pieces)

    def write(pieces: Iterator[bytes]) -> None:
        for piece in pieces:
            process.write(piece)

    try:
        async for data in stream:
            await feed(pump.feed(data))
        await feed(pump.finish())
        process.end_input()
    except BrokenPipeError:
        await process.result()
        raise Unknown("the worker process stopped reading") from None
    return await process.result()


class _Source:
    """A blob's bytes, with news of how far it is."""

    def __init__(self, blob: Reader, progress: Progress | None) -> None:
        self._blob = blob
        self._progress = progress

    async def chunks(self) -> Any:
        """Give the bytes in order."""
        used = 0
        async with aclosing(self._blob.chunks()) as chunks:
            async for data in chunks:
                yield data
                used += len(data)
                if self._progress is not None:
                    self._progress(used)


class _Entered:
    """A blocking context manager entered and left in a thread, each to its end even when the caller is cancelled."""

    def __init__(self, inner: AbstractContextManager[Path]) -> None:
        self._inner = inner

    async def __aenter__(self) -> Path:
        entering = asyncio.get_running_loop().run_in_executor(None, self._inner.__enter__)
        try:
            await settled(entering)
        except asyncio.CancelledError:
            if entering.exception() is None:
                await self.__aexit__()
            raise
        return entering.result()

    async def __aexit__(self, *error: object) -> None:
        leaving = asyncio.get_running_loop().run_in_executor(None, self._inner.__exit__, None, None, None)
        await settled(leaving)
        leaving.result()


def _shortcut(lower: Sequence[Mount], upper: Sequence[Mount]) -> str | None:
    """The upper folder of an overlay that has just the other side's folders below it; only what is in it can differ."""
    target = direct_target(upper) if len(upper) == 1 and upper[0].type == "overlay" else None
    if target is None or len(lower) != 1 or lower[0].target:
        return None
    one = lower[0]
    options = {option.partition("=")[0] for option in one.options}
    if one.type == "overlay" and "upperdir" not in options:
        below = tuple(_lowers(one.options))
    elif one.type == "bind":
        below = (one.source,)
    else:
        return None
    # with these an upper folder does not hold all of what it changes
    moved = {"redirect_dir", "metacopy"} & {option.partition("=")[0] for option in upper[0].options}
    return target.root if below == target.lowers and not moved else None


def _read_only_mounts(mounts: Sequence[Mount]) -> list[Mount]:
    """The same mounts, written by nobody: an overlay's upper folder becomes its first lower one."""
    found = []
    for one in mounts:
        options = list(one.options)
        if one.type == "overlay":
            upper = [option.removeprefix("upperdir=") for option in options if option.startswith("upperdir=")]
            kept = [option for option in options if not option.startswith(("upperdir=", "workdir=", "lowerdir="))]
            lower = [option.removeprefix("lowerdir=") for option in options if option.startswith("lowerdir=")]
            options = [f"lowerdir={':'.join(upper + lower)}", *kept]
        elif not one.read_only:
            options = [option for option in options if option != "rw"] + ["ro"]
        found.append(Mount(type=one.type, source=one.source, target=one.target, options=tuple(options)))
    return found
