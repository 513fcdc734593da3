"""The namespaced content store killed at any moment: a record has its bytes, an acknowledged commit its record."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from harness import on_loop
from moored.kernel.namespaces import bind
from moored.plugins.metadata.bolt.blobs import named
from unit.content.namespaced import World, world

TESTS = Path(__file__).parents[1]
MODULES = f"{TESTS}{os.pathsep}{TESTS.parent / 'contrib' / 'dev'}"
LOAD = str(Path(__file__).with_name("namespaced_load.py"))
KILLS = 12


def run_and_kill(root: Path, seed: int, pause: float) -> set[tuple[str, str]]:
    """Run the load on a store, kill it that many seconds after it has opened, and give what it had acknowledged."""
    process = subprocess.Popen(
        [sys.executable, LOAD, str(root), str(seed)], env={**os.environ, "PYTHONPATH": MODULES}, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            process.wait(pause)
        except subprocess.TimeoutExpired:
            process.kill()
        else:
            raise AssertionError(f"the load ended by itself with {process.returncode}")
        output = process.stdout.read().decode()
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    promised: set[tuple[str, str]] = set()
    for line in output.splitlines():
        word, namespace, digest = line.split()
        (promised.add if word == "committed" else promised.discard)((namespace, digest))
    return promised


async def recorded(parts: World) -> set[tuple[str, str]]:
    """What is listed, by namespace; the bytes of each have been read again."""
    found: set[tuple[str, str]] = set()
    for namespace in ("one", "two"):
        with bind(namespace):
            async for info in parts.content.walk():
                assert (await parts.content.verify(info.digest)).size == info.size
                found.add((namespace, info.digest))
    return found


@on_loop
async def test_kills_lose_no_promise_and_leave_nothing(tmp_path: Path) -> None:
    choose = random.Random(4)
    kept: set[tuple[str, str]] = set()
    for kill in range(KILLS):
        promised = run_and_kill(tmp_path, kill, choose.uniform(0.02, 0.35))

        async with world(tmp_path) as parts:
            found = await recorded(parts)
            assert promised <= found
            await parts.content.sweep()
            assert await recorded(parts) == found
            with parts.database.view() as root:
                names = named(root)
            assert {info.digest async for info in parts.raw.walk()} == names.digests - {""}
            assert {status.ref for status in await parts.raw.list_statuses()} <= names.raw_refs
            for namespace in ("one", "two"):
                with bind(namespace):
                    for status in await parts.content.list_statuses():
                        async with await parts.content.writer(status.ref) as writer:
                            assert (await writer.status()).offset == status.offset
            kept |= found
    assert kept, "no run got as far as a commit"
