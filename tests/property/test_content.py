"""The local content store against a model of two dictionaries, over random calls with restarts in between."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from moored.kernel.conformance import fails_with, refuses
from moored.kernel.conformance.content import digest_of, get
from moored.kernel.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Unavailable,
)
from moored.kernel.ports.content import ALGORITHMS, ContentStore, Digest, Writer, digest_fault
from moored.plugins.content.local.store import open_store

REFS = st.sampled_from(["a", "a/b", "../a", "\0"])
DATA = st.sampled_from([b"", b"x", b"yy", b"x" * 4096, b"z" * 300_000])
ALGORITHM = st.sampled_from(["", "sha256", "sha384", "sha512"])


class ContentMachine(RuleBasedStateMachine):
    """`blobs`: what was committed. `ingests`: the bytes and total of each ref. `writers`: the open ones."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="content-"))
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.blobs: dict[Digest, bytes] = {}
        self.ingests: dict[str, tuple[bytes, int]] = {}
        self.writers: dict[str, Writer] = {}
        self.open()

    def open(self) -> None:
        async def enter() -> ContentStore:
            return await self.stack.enter_async_context(open_store(self.root, structlog.get_logger(), 2))

        self.store = self.runner.run(enter())

    def teardown(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()
        shutil.rmtree(self.root)

    @rule()
    def restart(self) -> None:
        """What was open is closed, and stays."""
        self.runner.run(self.stack.aclose())
        self.writers.clear()
        self.open()

    @rule(ref=REFS, total=st.sampled_from([0, 0, 3, 4096]), expected=st.one_of(st.none(), DATA))
    def begin(self, ref: str, total: int, expected: bytes | None) -> None:
        digest = digest_of(expected) if expected is not None else ""
        call = self.store.writer(ref, total, digest)
        if ref in self.writers:
            self.runner.run(fails_with(Unavailable, call))
        elif digest in self.blobs and total in (0, len(self.blobs[Digest(digest)])):
            self.runner.run(fails_with(AlreadyExists, call))
        else:
            self.writers[ref] = self.runner.run(call)
            data, known = self.ingests.get(ref, (b"", 0))
            known_now = total or known
            if (total and known and total != known) or (known_now and len(data) > known_now):
                data, known_now = b"", total
            self.ingests[ref] = data, known_now

    @rule(ref=REFS, data=DATA)
    def write(self, ref: str, data: bytes) -> None:
        if writer := self.writers.get(ref):
            old, total = self.ingests[ref]
            assert self.runner.run(writer.write(data)) == len(old + data)
            self.ingests[ref] = old + data, total

    @rule(ref=REFS, size=st.integers(0, 5000))
    def truncate(self, ref: str, size: int) -> None:
        if writer := self.writers.get(ref):
            data, total = self.ingests[ref]
            if size > len(data):
                self.runner.run(fails_with(OutOfRange, writer.truncate(size)))
            else:
                self.runner.run(writer.truncate(size))
                self.ingests[ref] = data[:size], total

    @rule(ref=REFS, algorithm=ALGORITHM, wrong=st.sampled_from(["", "", "", "size", "digest"]))
    def commit(self, ref: str, algorithm: str, wrong: str) -> None:
        if not (writer := self.writers.pop(ref, None)):
            return
        data, _ = self.ingests[ref]
        digest = digest_of(data, algorithm or "sha256")
        expected = digest_of(b"wrong", algorithm or "sha256") if wrong == "digest" else digest if algorithm else ""
        call = writer.commit(len(data) + 1 if wrong == "size" else len(data), expected)
        if wrong:
            self.runner.run(fails_with(FailedPrecondition, call))
            return
        del self.ingests[ref]
        if digest in self.blobs:
            self.runner.run(fails_with(AlreadyExists, call))
        else:
            assert self.runner.run(call).digest == digest
            self.blobs[digest] = data

    @rule(ref=REFS)
    def close(self, ref: str) -> None:
        if writer := self.writers.pop(ref, None):
            self.runner.run(writer.close())

    @rule(ref=REFS)
    def abort(self, ref: str) -> None:
        if ref in self.ingests:
            self.runner.run(self.store.abort(ref))
            del self.ingests[ref]
        else:
            self.runner.run(fails_with(NotFound, self.store.abort(ref)))
        if writer := self.writers.pop(ref, None):
            self.runner.run(fails_with(Aborted, writer.write(b"x")))
            self.runner.run(writer.close())

    @rule(data=DATA, algorithm=st.sampled_from(sorted(ALGORITHMS)))
    def delete(self, data: bytes, algorithm: str) -> None:
        digest = digest_of(data, algorithm)
        if self.blobs.pop(digest, None) is None:
            self.runner.run(fails_with(NotFound, self.store.delete(digest)))
        else:
            self.runner.run(self.store.delete(digest))

    @invariant()
    def is_as_modelled(self) -> None:
        async def look() -> None:
            assert {info.digest: info.size async for info in self.store.walk()} == {
                digest: len(data) for digest, data in self.blobs.items()
            }
            for digest, data in self.blobs.items():
                assert await get(self.store, digest) == data
            statuses = {status.ref: status for status in await self.store.list_statuses()}
            assert {ref: (status.offset, status.total) for ref, status in statuses.items()} == {
                ref: (len(data), total) for ref, (data, total) in self.ingests.items()
            }
            for ref, writer in self.writers.items():
                data = self.ingests[ref][0]
                assert writer.digest == digest_of(data, writer.digest.algorithm)
                assert (await self.store.status(ref)).offset == len(data)

        self.runner.run(look())


TestContent = ContentMachine.TestCase
TestContent.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@given(st.text() | st.from_regex(r"(sha256|sha384|sha512|md5)[:.][0-9a-fA-F]{0,130}", fullmatch=True))
def test_text_is_a_digest_or_is_refused_with_its_fault(text: str) -> None:
    algorithm, _, encoded = text.partition(":")
    good = ALGORITHMS.get(algorithm) == len(encoded) and set(encoded) <= set("0123456789abcdef")

    assert (digest_fault(text) == "") == good
    if good:
        assert Digest(text) == text
    else:
        refuses(InvalidArgument, lambda: Digest(text), f"{text}: {digest_fault(text)}")
