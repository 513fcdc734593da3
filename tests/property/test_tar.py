"""Tar, by generated examples: what is written is read, what others write is unpacked alike, noise is refused."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moored.kernel.errors import MooredError
from moored.plugins.diff.decompress.decoders import Detected
from moored.plugins.diff.tar.header import Entry
from moored.plugins.diff.tar.reader import Reader
from moored.plugins.diff.tar.writer import Writer
from unit.diff.world import END, block, file, pax, tree, unpacked

names = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=150)


@st.composite
def written_entries(draw: st.DrawFn) -> tuple[Entry, bytes]:
    entry = Entry(
        draw(st.one_of(names, texts.map(str.encode))), draw(st.sampled_from([b"0", b"1", b"2", b"3", b"5", b"6"]))
    )
    entry.mode = draw(st.integers(0, 0o7777))
    entry.uid = draw(st.integers(0, 2**32 - 2))
    entry.gid = draw(st.integers(0, 2**32 - 2))
    entry.mtime = draw(st.integers(-(2**62), 2**62))
    data = b""
    if entry.type in {b"1", b"2"}:
        entry.link = draw(names)
    if entry.type == b"3":
        entry.major, entry.minor = draw(st.integers(0, 4095)), draw(st.integers(0, 2**20 - 1))
    if entry.type == b"0":
        data = draw(st.binary(max_size=2000))
        entry.size = len(data)
    keys = st.text("abc.", min_size=1, max_size=20).map(str.encode)
    entry.xattrs = draw(st.none() | st.dictionaries(keys, st.binary(max_size=100), min_size=1, max_size=3))
    return entry, data


def seen(entry: Entry) -> tuple[object, ...]:
    return (
        *(entry.name, entry.type, entry.link, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime),
        *(entry.major, entry.minor, entry.xattrs),
    )


def read_all(data: bytes, sizes: list[int] | None = None) -> list[tuple[Entry, bytes]]:
    stream = io.BytesIO(data)
    left = list(sizes or [])
    reader = Reader(lambda size: stream.read(left.pop() if left else size))
    found = []
    while (entry := reader.next()) is not None:
        found.append((entry, reader.read()))
    return found


def written(entries: list[tuple[Entry, bytes]]) -> bytes:
    out = bytearray()
    writer = Writer(out.extend)
    for entry, data in entries:
        writer.add(entry)
        writer.data(data)
    writer.close()
    return bytes(out)


@given(st.lists(written_entries(), max_size=6), st.lists(st.integers(1, 2000), max_size=20))
def test_what_is_written_is_read(entries: list[tuple[Entry, bytes]], sizes: list[int]) -> None:
    data = written(entries)
    assert len(data) % 512 == 0
    assert [(seen(entry), content) for entry, content in read_all(data, sizes)] == [(seen(e), d) for e, d in entries]
    assert written(entries) == data


@given(st.lists(written_entries(), max_size=4))
def test_python_reads_what_is_written(entries: list[tuple[Entry, bytes]]) -> None:
    with tarfile.open(fileobj=io.BytesIO(written(entries)), errors="surrogateescape") as archive:
        found = [(os.fsencode(m.name), m.type, m.mode, m.uid, m.gid, m.size) for m in archive]
    assert found == [
        (os.fsencode(os.fsdecode(e.name.rstrip(b"/"))), e.type, e.mode, e.uid, e.gid, e.size) for e, _ in entries
    ]


@st.composite
def python_archives(draw: st.DrawFn) -> bytes:
    out = io.BytesIO()
    format_ = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=out, mode="w", format=format_) as archive:
        for name in draw(st.lists(st.text("abcé/", min_size=1, max_size=120), max_size=5)):
            info = tarfile.TarInfo(name.strip("/") or "x")
            data = draw(st.binary(max_size=600))
            info.size = len(data)
            info.mtime = draw(st.integers(0, 2**33 - 1))
            info.uid = draw(st.integers(0, 0o7777777))
            try:
                archive.addfile(info, io.BytesIO(data))
            except ValueError:
                continue  # too long for ustar
    return out.getvalue()


@given(python_archives())
def test_what_python_writes_is_read(data: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        theirs = [(m.name.encode(), m.size, int(m.mtime), m.uid) for m in archive]
    assert [(e.name, e.size, e.mtime // 10**9, e.uid) for e, _ in read_all(data)] == theirs


ANY_TYPE = st.binary(min_size=1, max_size=1)
ANY_NUMBER = st.binary(min_size=12, max_size=12)
KEYS = ["path", "size", "uid", "mtime", "GNU__sparse__map", "GNU__sparse__numblocks", "GNU__sparse__major"]
PIECES = st.one_of(
    st.binary(max_size=1100),
    st.just(bytes(512)),
    st.builds(lambda kind, data: file(b"n", data, type=kind), ANY_TYPE, st.binary(max_size=900)),
    st.builds(lambda data: file(b"x", data, type=b"x"), st.binary(max_size=200)),
    st.builds(lambda size, kind: block(size=size, type=kind), ANY_NUMBER, st.sampled_from([b"0", b"S", b"L", b"x"])),
    st.builds(lambda key, value: pax(**{key: value}), st.sampled_from(KEYS), st.binary(max_size=20)),
)


@settings(max_examples=400)
@given(st.lists(PIECES, max_size=5).map(b"".join))
def test_noise_is_read_or_refused(data: bytes) -> None:
    reader = Reader(io.BytesIO(data).read, max_bytes=1 << 30)
    try:
        while reader.next() is not None:
            for _ in reader.chunks():
                pass
    except MooredError as error:
        text = error.text
    else:
        text = ""
    assert "\n" not in text
    assert len(text) < 1000


@given(st.binary(max_size=500), st.integers(0, 500), st.integers(1, 255))
def test_one_wrong_byte_is_read_or_refused(content: bytes, place: int, change: int) -> None:
    data = bytearray(pax(mtime=b"1.5") + file(b"f", content) + END)
    data[place] ^= change
    try:
        read_all(bytes(data))
    except MooredError:
        return


@given(st.sampled_from([b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18", b""]), st.binary(max_size=300))
def test_noise_is_decompressed_or_refused(magic: bytes, data: bytes) -> None:
    decoder = Detected()
    try:
        total = sum(map(len, (*decoder.feed(magic + data), *decoder.finish())))
    except MooredError:
        return
    assert total <= 1 << 26


@st.composite
def archives_of_gnu(draw: st.DrawFn, place: Path) -> bytes:
    """A folder of files of all kinds, archived by tar."""
    root = place / "source"
    root.mkdir()
    folders = [root]
    made: list[Path] = []
    for number in range(draw(st.integers(0, 12))):
        path = draw(st.sampled_from(folders)) / draw(st.sampled_from(["é" * 40, "n", "x" * 120])) / ".."
        path = path.parent.parent / f"{number}-{draw(st.sampled_from(['a', 'é' * 40, 'x' * 120]))}"
        kind = draw(st.sampled_from(["file", "folder", "link", "hard", "fifo", "device", "hole"]))
        if kind == "folder":
            path.mkdir()
            folders.append(path)
        elif kind == "link":
            path.symlink_to(draw(st.sampled_from(["/etc", "../x", "l" * 150])))
        elif kind == "hard" and made:
            path.hardlink_to(made[0])
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            os.mknod(path, 0o20600, os.makedev(1, 3))
        elif kind == "hole":
            path.touch()
            os.truncate(path, 1 << 20)
        else:
            path.write_bytes(draw(st.binary(max_size=3000)))
            made.append(path)
            os.setxattr(path, "user.x", draw(st.binary(min_size=1, max_size=30)))
        owner = draw(st.sampled_from([0, 1000, 100_000, 3_000_000]))
        os.chown(path, owner, owner, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(draw(st.sampled_from([0o644, 0o755, 0o4755, 0o2711, 0o600, 0o1777])))
        os.utime(path, ns=(0, draw(st.integers(0, 2 * 10**18))), follow_symlinks=False)
    command = ["tar", "-C", root, "--xattrs", "--sparse", "--format=pax", "--sort=name", "-cf", "-", "."]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="changes owners")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])
@given(st.data())
def test_unpacked_like_tar_does(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        place = Path(folder)
        archive = data.draw(archives_of_gnu(place))
        theirs = place / "theirs"
        theirs.mkdir()
        command = ["tar", "-C", theirs, "--xattrs", "--xattrs-include=*", "-xpf", "-"]
        subprocess.run(command, input=archive, check=True)
        assert tree(unpacked(place, archive)) == tree(theirs)
