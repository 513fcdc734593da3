"""Programs of the operator that the daemon unpacks layers through, told of in its config, used by a real client."""

from __future__ import annotations

import lzma
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemons import Daemon
from e2e.images import BASE, CTRS, LAYER, layer, local, needs_image_tools, oci_archive, tree, unpacked
from peers import containerd, ctr

pytestmark = [*needs_image_tools, pytest.mark.skipif(not shutil.which("xz"), reason="needs xz")]

XZ = f"{LAYER}+xz"
LAYERS = [layer(("a", b"1"), ("d/", None), ("d/f", b"x" * 100_000)), layer((".wh.a", b""), ("d/g", b"2"))]


def config_for(folder: Path, text: str) -> str:
    """A processor that is a shell script, in both daemons' words."""
    program = folder / "unpack"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return (
        '[stream_processors."xz"]\n'
        f'accepts = ["{XZ}"]\nreturns = "{LAYER}"\npath = "{program}"\nargs = ["--keep"]\nenv = ["WANTED={XZ}"]\n'
    )


@contextmanager
def both(folder: Path, config: str) -> Iterator[list[Path]]:
    with containerd(folder / "peer", config=config) as theirs, Daemon(folder, f"version = 4\n{config}") as daemon:
        yield [theirs, daemon.socket]


def imported(address: Path, archive: Path, binary: str) -> str:
    words = ["images", "import", *local(binary), "--base-name", BASE, "--snapshotter", "native", str(archive)]
    return ctr(address, *words, binary=binary)


@pytest.mark.parametrize("binary", CTRS)
def test_layers_of_a_strange_type_are_unpacked_by_the_operators_program(tmp_path: Path, binary: str) -> None:
    archive = oci_archive(tmp_path / "image.tar", LAYERS, XZ, lzma.compress)
    script = 'test "$STREAM_PROCESSOR_MEDIATYPE" = "$WANTED" -a "$1" = --keep && exec xz -dc'
    trees = []
    with both(tmp_path, config_for(tmp_path, script)) as addresses:
        for number, address in enumerate(addresses):
            imported(address, archive, binary)
            with unpacked(address, "native", tmp_path / f"mnt{number}") as folder:
                trees.append({name: file.content for name, file in tree(folder).items()})

    assert set(trees[1]) == {"d", "d/f", "d/g"}
    assert trees[1] == trees[0]


def test_failing_program_is_what_the_client_is_told(tmp_path: Path) -> None:
    archive = oci_archive(tmp_path / "image.tar", LAYERS, XZ, lzma.compress)
    with both(tmp_path, config_for(tmp_path, "cat > /dev/null; echo no licence left >&2; exit 3")) as addresses:
        # containerd may see the end of the output before it knows how the program ended.
        for address, text in zip(addresses, ("no licence left|wrong diff id", "no licence left"), strict=True):
            with pytest.raises(AssertionError, match=text):
                imported(address, archive, CTRS[0])


def test_without_a_program_the_type_is_unknown(tmp_path: Path) -> None:
    archive = oci_archive(tmp_path / "image.tar", LAYERS, f"{LAYER.replace('v1', 'v9')}", lzma.compress)
    with Daemon(tmp_path) as daemon, pytest.raises(AssertionError, match="no processor for media-type"):
        imported(daemon.socket, archive, CTRS[0])
