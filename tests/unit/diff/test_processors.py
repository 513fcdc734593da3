"""Stream processors: programs in a chain before a layer is unpacked."""

from __future__ import annotations

import asyncio
import gzip
import os
import sys
from pathlib import Path

import pytest

from moored.kernel.conformance import fails_with
from moored.kernel.conformance.diff import bind, digest_of
from moored.kernel.errors import Unknown
from moored.kernel.ports.daemon import StreamProcessor
from moored.kernel.ports.diff import LAYER, LAYER_GZIP, encoding
from moored.plugins.diff.processors import chain
from unit.diff.world import END, as_root, done, file, names, staged, unpack

SECRET = f"{LAYER}+secret"
TWICE = f"{LAYER}+twice"
DATA = file(b"f", os.urandom(200_000)) + END


def program(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport os, sys\n{text}\n")
    path.chmod(0o700)
    return str(path)


def flipped(data: bytes, key: int) -> bytes:
    return bytes(byte ^ key for byte in data)


@pytest.fixture
def flip(tmp_path: Path) -> StreamProcessor:
    text = (
        "key = os.read(3, 10)[0]\n"
        "table = bytes(n ^ key for n in range(256))\n"
        "assert os.environ['STREAM_PROCESSOR_MEDIATYPE'].endswith(('+secret', '+twice')), os.environ\n"
        "assert os.environ['EXTRA'] == 'a=b' and sys.argv[1:] == ['--flag']\n"
        "while data := sys.stdin.buffer.read(65536): sys.stdout.buffer.write(data.translate(table))\n"
    )
    path = program(tmp_path, "flip", text)
    return StreamProcessor(
        id="flip", accepts=(SECRET,), returns=LAYER_GZIP, path=path, args=("--flag",), env=("EXTRA=a=b",)
    )


def test_types_and_how_they_are_stored() -> None:
    assert encoding(LAYER) == "plain"
    assert encoding(LAYER_GZIP) == encoding(f"{LAYER}+zstd") == "by magic"
    assert encoding(SECRET) == encoding(f"{LAYER}+gzip+secret") == "plain"
    assert encoding("application/vnd.docker.image.rootfs.diff.tar") == "by magic"
    assert encoding("application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted") == "plain"
    assert encoding("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip") == "by magic"
    assert encoding("application/vnd.oci.image.layer.v2.tar") is None


def test_chain_goes_on_until_nobody_takes_the_type() -> None:
    one = StreamProcessor(id="one", accepts=(TWICE,), returns=SECRET, path="/one")
    two = StreamProcessor(id="two", accepts=(SECRET,), returns=LAYER, path="/two")
    assert chain(TWICE, [one, two]) == ([(TWICE, one), (SECRET, two)], "plain")
    loop = StreamProcessor(id="loop", accepts=(SECRET,), returns=SECRET, path="/loop")
    for processors in ([loop], [StreamProcessor(id="x", accepts=(SECRET,), returns="text/plain", path="/x")]):
        with pytest.raises(Unknown, match=r"^failed to get stream processor for .*: no processor for media-type$"):
            chain(SECRET, processors)


pytestmark = as_root


def test_layer_goes_through_programs_with_their_payloads(tmp_path: Path, flip: StreamProcessor) -> None:
    again = StreamProcessor(id="again", accepts=(TWICE,), returns=SECRET, path=flip.path, args=flip.args, env=flip.env)
    stored = flipped(flipped(gzip.compress(DATA), 7), 9)

    async def go() -> None:
        async with staged(tmp_path, processors=[flip, again]) as stage:
            blob = await stage.put(stored, TWICE)
            root = stage.new_folder("root")
            applied = await stage.differ.apply(blob, bind(root), payloads={"flip": b"\7", "again": b"\x09"})
            assert (applied.digest, applied.media_type, names(root)) == (digest_of(DATA), LAYER, ["f"])

    done(go())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sys.exit('no key for you')", "no key for you"),
        ("sys.stdin.buffer.read()\nsys.exit(3)", "stream processor 'bad' ended with status 3"),
        ("os.kill(os.getpid(), 9)", "stream processor 'bad' ended with signal 9"),
    ],
)
def test_failing_program_is_the_error(tmp_path: Path, text: str, said: str) -> None:
    bad = StreamProcessor(id="bad", accepts=(SECRET,), returns=LAYER, path=program(tmp_path, "bad", text))

    async def go() -> None:
        async with staged(tmp_path, processors=[bad]) as stage:
            await fails_with(Unknown, unpack(stage, DATA, stage.new_folder("root"), SECRET), said)

    done(go())


def test_missing_program_is_the_error(tmp_path: Path) -> None:
    bad = StreamProcessor(id="bad", accepts=(SECRET,), returns=LAYER, path=str(tmp_path / "missing"))

    async def go() -> None:
        async with staged(tmp_path, processors=[bad]) as stage:
            error = await fails_with(Unknown, unpack(stage, DATA, stage.new_folder("root"), SECRET))
            assert error.text == "cannot start stream processor 'bad': No such file or directory"

    done(go())


def test_cancelled_apply_ends_its_programs(tmp_path: Path) -> None:
    up = tmp_path / "up"
    text = f"open({str(up)!r}, 'w').write(str(os.getpid()))\nimport time; time.sleep(600)"
    path = program(tmp_path, "hang", text)
    hang = StreamProcessor(id="hang", accepts=(SECRET,), returns=LAYER, path=path)

    async def go() -> None:
        async with staged(tmp_path, processors=[hang]) as stage:
            call = asyncio.ensure_future(unpack(stage, DATA, stage.new_folder("root"), SECRET))
            while not up.exists() or not up.read_text():
                await asyncio.sleep(0.005)
            call.cancel()
            await asyncio.wait([call], timeout=5)
            assert call.cancelled()

    done(go())
    assert not Path("/proc", up.read_text()).exists()
