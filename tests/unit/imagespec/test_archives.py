"""Archives of images: tar streams of every make, compression, and what is refused."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
import zstandard

from harness import on_loop
from moored.kernel.errors import InvalidArgument, Unknown
from moored.kernel.imagespec.archives import tar
from moored.kernel.imagespec.archives.compression import decompressed
from moored.kernel.imagespec.archives.plain import go_json
from moored.kernel.imagespec.archives.reading import name_annotations

LONG = "/".join(["d" * 90] * 4) + "/file"


async def chunks(data: bytes, size: int) -> AsyncGenerator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def read(data: bytes, size: int = 700) -> list[tuple[str, str, str, bytes]]:
    members = tar.members(tar.Input(chunks(data, size)))
    return [
        (one.name, one.kind, one.target, b"".join([piece async for piece in one.pieces()])) async for one in members
    ]


def made(form: int, *members: tuple[str, bytes, bytes, str]) -> bytes:
    """A tar by Python's library: (name, type, data, link)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, kind, data, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("size", [1, 511, 1 << 20])
@on_loop
async def test_members_of_any_make_are_read(form: int, size: int) -> None:
    data = made(
        form,
        ("./a//b", tarfile.REGTYPE, b"x" * 1000, ""),
        (LONG, tarfile.REGTYPE, b"long", ""),
        ("x/link", tarfile.SYMTYPE, b"", "../a/b"),
        ("dir", tarfile.DIRTYPE, b"", ""),
        ("hard", tarfile.LNKTYPE, b"", "a/b"),
        ("empty", tarfile.REGTYPE, b"", ""),
    )

    assert await read(data, size) == [
        ("a/b", "file", "", b"x" * 1000),
        (LONG, "file", "", b"long"),
        ("x/link", "link", "a/b", b""),
        ("dir", "other", "", b""),
        ("hard", "other", "", b""),
        ("empty", "file", "", b""),
    ]


@on_loop
async def test_members_that_nobody_reads_are_passed_over() -> None:
    data = made(tarfile.PAX_FORMAT, *((f"f{n}", tarfile.REGTYPE, b"y" * 2000, "") for n in range(3)))

    names = [one.name async for one in tar.members(tar.Input(chunks(data, 100)))]

    assert names == ["f0", "f1", "f2"]


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (b"x" * 512, Unknown, "invalid tar header"),
        (b"x" * 100, Unknown, "unexpected EOF"),
        (made(tarfile.PAX_FORMAT, ("f", tarfile.REGTYPE, b"z" * 900, ""))[:1000], Unknown, "unexpected EOF"),
        (tar._block("f", 5 << 20, 0, b"x"), InvalidArgument, "header of 5242880 bytes"),
        (tar._block("f", 9, 0, b"x") + b"9 size=1\n".ljust(512, b"\0")[:100], Unknown, "unexpected EOF"),
        (tar._block("f", 9, 0, b"x") + b"7 size=-1"[:9].ljust(512, b"\0"), Unknown, "invalid tar header"),
        (tar._block("f", 10, 0, b"x") + b"10 size=-1\n"[:10].ljust(512, b"\0"), Unknown, "invalid tar header"),
    ],
)
@on_loop
async def test_broken_archive_is_told(data: bytes, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        await read(data)


@on_loop
async def test_negative_size_in_an_extended_header_is_refused() -> None:
    record = b"11 size=-1\n"
    data = (
        tar._block("f", len(record), 0, b"x") + record.ljust(512, b"\0") + tar.header("f", 3) + b"abc".ljust(512, b"\0")
    )

    with pytest.raises(Unknown, match="invalid tar header"):
        await read(data)


@pytest.mark.parametrize("size", [0, 1, 512, 0o77777777777, 9 << 30])
def test_header_is_what_others_read(size: int) -> None:
    raw = tar.header("blobs/sha256/abc", size)

    with tarfile.open(fileobj=io.BytesIO(raw + bytes(1024)), mode="r") as archive:
        info = archive.next()
    assert info is not None
    assert (info.name, info.size, info.mode, info.mtime, info.uid) == ("blobs/sha256/abc", size, 0o444, 0, 0)


def test_folder_has_a_header_of_its_kind() -> None:
    info = tarfile.TarInfo.frombuf(tar.header("blobs/", 0, 0o755), "utf-8", "strict")

    assert info.isdir()


TEXT = b"some text that repeats " * 100_000


@pytest.mark.parametrize("size", [3, 60_000])
@pytest.mark.parametrize(
    "pack",
    [
        bytes,
        gzip.compress,
        lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]),
        zstandard.compress,
        lambda data: zstandard.compress(data[:1000]) + zstandard.compress(data[1000:]),
    ],
    ids=["plain", "gzip", "gzip members", "zstd", "zstd frames"],
)
@on_loop
async def test_compression_is_found_out_and_undone(pack: Callable[[bytes], bytes], size: int) -> None:
    data = TEXT if size > 3 else TEXT[:5000]

    got = b"".join([piece async for piece in decompressed(chunks(pack(data), size))])

    assert got == data


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("spoil", [lambda data: data[:-9], lambda data: data[:20] + b"\xff" * 30 + data[50:]])
@on_loop
async def test_broken_or_cut_compression_is_told(
    pack: Callable[[bytes], bytes], spoil: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(Unknown, match=r"gzip|zstd"):
        [piece async for piece in decompressed(chunks(spoil(pack(TEXT)), 1000))]


@on_loop
async def test_bomb_comes_in_bounded_pieces() -> None:
    bomb = gzip.compress(bytes(50 << 20))

    sizes = [len(piece) async for piece in decompressed(chunks(bomb, 1 << 20))]

    assert sum(sizes) == 50 << 20
    assert max(sizes) <= 1 << 20


@on_loop
async def test_empty_stream_stays_empty() -> None:
    assert [piece async for piece in decompressed(chunks(b"", 1))] == []


@pytest.mark.parametrize(
    ("document", "encoded"),
    [
        ({"b": 1, "a": "<&>"}, rb'{"b":1,"a":"\u003c\u0026\u003e"}'),
        ({"a": "é\u2028"}, '{"a":"é\\u2028"}'.encode()),
    ],
)
def test_documents_are_encoded_as_go_does(document: dict[str, Any], encoded: bytes) -> None:
    assert go_json(document) == encoded


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("docker.io/library/a:1", "1"),
        (f"docker.io/library/a@sha256:{'0' * 64}", f"docker.io/library/a@sha256:{'0' * 64}"),
        (f"docker.io/library/a:1@sha256:{'0' * 64}", f"1@sha256:{'0' * 64}"),
        ("any name at all", "any name at all"),
    ],
)
def test_annotations_hold_the_name_and_its_tag(name: str, tag: str) -> None:
    assert name_annotations(name) == {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": tag,
    }
