"""Image verifiers as programs: what they are asked, and what becomes of those that go wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import structlog

from harness import on_loop
from moored.kernel.errors import DeadlineExceeded, MooredError, Unknown
from moored.kernel.ports.images import Descriptor
from moored.plugins.verifiers.programs import MAX_OUTPUT, FolderVerifier

TARGET = Descriptor(media_type="m/t", digest=f"sha256:{'1' * 64}", size=3, annotations={"k": "v"})


def verifier(folder: Path, *scripts: str, most: int = 10, seconds: float = 10) -> FolderVerifier:
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(scripts):
        program = folder / f"v{number}"
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    return FolderVerifier(folder, most=most, seconds=seconds, log=structlog.get_logger())


@on_loop
async def test_missing_or_empty_folder_lets_everything_pass(tmp_path: Path) -> None:
    missing = FolderVerifier(tmp_path / "none", most=1, seconds=1, log=structlog.get_logger())

    assert (await missing.verify("n", TARGET)).ok
    assert (await verifier(tmp_path / "empty").verify("n", TARGET)).ok


@on_loop
async def test_all_are_asked_in_order_and_get_the_descriptor(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    asked = verifier(folder, f"cat > {tmp_path}/in; echo yes $2 $4 $6", "echo also; echo noise >&2")

    judgement = await asked.verify("a/b:1", TARGET)

    assert judgement.ok
    kind = "application/vnd.oci.descriptor.v1+json"
    assert judgement.reason == f"v0 => yes a/b:1 {TARGET.digest} {kind}, v1 => also"
    given = json.loads((tmp_path / "in").read_text())
    assert given == {"mediaType": "m/t", "digest": TARGET.digest, "size": 3, "annotations": {"k": "v"}}


@on_loop
async def test_first_that_refuses_decides(tmp_path: Path) -> None:
    asked = verifier(tmp_path / "bin", "echo no; exit 4", f"touch {tmp_path}/asked")

    judgement = await asked.verify("n", TARGET)

    assert (judgement.ok, judgement.reason) == (False, "verifier v0 rejected image (exit code 4): no")
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(("most", "ok"), [(1, True), (2, False), (-1, False), (0, True)])
@on_loop
async def test_no_more_than_configured_are_asked(tmp_path: Path, most: int, ok: bool) -> None:
    asked = verifier(tmp_path / "bin", "exit 0", "exit 1", most=most)

    assert (await asked.verify("n", TARGET)).ok is ok


@pytest.mark.parametrize(
    ("script", "kind"), [("exec sleep 30", DeadlineExceeded), ("kill -9 $$", Unknown)], ids=["hangs", "is killed"]
)
@on_loop
async def test_program_that_does_not_answer_is_an_error(tmp_path: Path, script: str, kind: type[MooredError]) -> None:
    with pytest.raises(kind, match="verifier v0"):
        await verifier(tmp_path / "bin", script, seconds=0.3).verify("n", TARGET)


@on_loop
async def test_file_that_is_no_program_is_an_error(tmp_path: Path) -> None:
    asked = verifier(tmp_path / "bin")
    (tmp_path / "bin" / "readme").write_text("text")

    with pytest.raises(Unknown, match="failed to call verifier readme"):
        await asked.verify("n", TARGET)


@on_loop
async def test_flood_of_output_is_cut(tmp_path: Path) -> None:
    asked = verifier(tmp_path / "bin", "head -c 1000000 /dev/zero | tr '\\0' x")

    judgement = await asked.verify("n", TARGET)

    assert judgement.ok
    assert len(judgement.reason) < MAX_OUTPUT + 100
