"""What ctr of Debian and of containerd 2 shows of a running kernel."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from harness import (
    THING,
    Emitter,
    basics,
    on_loop,
    plug,
    program,
    running,
)
from moored.kernel.plugin import Skip

DEBUG = "io.containerd.server.v1.debug"
PPROF = "io.containerd.http.v1.pprof"
CTRS = [path for path in [shutil.which("ctr"), *os.environ.get("MOORED_TEST_CTRS", "").split(os.pathsep)] if path]
"""The one on PATH, and further ones (other versions) by their paths."""

ctr_of_any_age = pytest.mark.parametrize("ctr", CTRS or [pytest.param("ctr", marks=pytest.mark.skip("needs ctr"))])


@pytest.mark.peer
@ctr_of_any_age
@on_loop
async def test_ctr_shows_version_and_plugins(tmp_path: Path, ctr: str) -> None:
    plugins = (plug(THING, "fine", object()), plug(THING, "lame", error=Skip("no legs")))
    async with basics(tmp_path, *plugins):
        status, output = await program(ctr, "-a", tmp_path / "m.sock", "version")
        assert status == 0, output
        assert "0.0.1-test" in output
        assert "cafe" in output
        status, output = await program(ctr, "-a", tmp_path / "m.sock", "plugins", "ls")
        assert status == 0, output
        shown = {tuple(line.split()) for line in output.splitlines()}
        assert ("io.moored.thing.v1", "fine", "linux/amd64,linux/arm/v7", "ok") in shown
        assert ("io.moored.thing.v1", "lame", "linux/amd64,linux/arm/v7", "skip") in shown
        status, output = await program(ctr, "-a", tmp_path / "m.sock", "plugins", "ls", "-d")
        assert status == 0, output
        assert "no legs: skip plugin" in output


@pytest.mark.peer
@ctr_of_any_age
@on_loop
async def test_ctr_shows_deprecations(tmp_path: Path, ctr: str) -> None:
    _, usage = await program(ctr, "--help")
    if "deprecations" not in usage:
        pytest.skip("this ctr has no such command")
    async with basics(tmp_path, Emitter({"io.containerd.deprecation/x": "use y"}).registration()):
        status, output = await program(ctr, "-a", tmp_path / "m.sock", "deprecations", "list")
    assert status == 0, output
    assert "io.containerd.deprecation/x" in output
    assert "use y" in output


@pytest.mark.peer
@ctr_of_any_age
@on_loop
async def test_ctr_fetches_debug_pages(tmp_path: Path, ctr: str) -> None:
    path = tmp_path / "debug.sock"
    async with running(tmp_path, DEBUG, PPROF, configs={DEBUG: {"address": str(path)}}):
        status, output = await program(ctr, "pprof", "--debug-socket", path, "goroutines")
        assert status == 0, output
        assert "thread 'MainThread'" in output
        for page in ("heap", "threadcreate"):
            status, output = await program(ctr, "pprof", "--debug-socket", path, page)
            assert status == 0, output
        status, output = await program(ctr, "pprof", "--debug-socket", path, "profile", "-s", "1s")
        assert status == 0, output
        assert "asyncio" in output
