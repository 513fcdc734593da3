"""The tar reader: every way to say a thing, and every way to say it wrong."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from moored.kernel.errors import MooredError, ResourceExhausted, Unknown
from moored.plugins.diff.tar.header import Entry
from moored.plugins.diff.tar.reader import MAX_EXTENSION, Reader
from unit.diff.world import END, block, file, padded, pax, pax_of, record


def entries(data: bytes, **options: object) -> list[tuple[Entry, bytes]]:
    reader = Reader(io.BytesIO(data).read, **options)
    found = []
    while (entry := reader.next()) is not None:
        found.append((entry, reader.read()))
    return found


def one(data: bytes) -> Entry:
    ((entry, _),) = entries(data)
    return entry


def test_empty_stream_and_single_zero_block_are_empty_archives() -> None:
    for data in (b"", bytes(512), bytes(1024), bytes(10_240)):
        assert entries(data) == []


def test_archive_without_end_blocks_ends_where_an_entry_ends() -> None:
    assert [entry.name for entry, _ in entries(file(b"a", b"x") + file(b"b"))] == [b"a", b"b"]
    assert entries(block(b"a", size=3) + b"abc")[0][1] == b"abc"


def test_what_follows_the_end_is_left() -> None:
    stream = io.BytesIO(file(b"a") + END + b"junk")
    reader = Reader(stream.read)
    assert reader.next() is not None
    assert reader.next() is None
    assert reader.next() is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b" 644 \0\0\0", 0o644),
        (b"00000644", 0o644),
        (b"\0" * 8, 0),
        (b"   \0   \0", 0),
        (b"644\0junk", 0o644),
        (b"\x80" + (5).to_bytes(7, "big"), 5),
        (b"\x80" + (2**40).to_bytes(7, "big"), 2**40),
        (b"\xff" * 8, -1),
        (b"\xff" * 7 + b"\x00", -256),
    ],
)
def test_numbers(field: bytes, value: int) -> None:
    assert one(block(uid=field)).uid == value


@pytest.mark.parametrize("field", [b"0000648\0", b"-000001\0", b"0o00001\0", b"1_00000\0", b"+000001\0", b"abcdefg\0"])
def test_bad_numbers_are_refused_with_field_and_offset(field: bytes) -> None:
    with pytest.raises(Unknown, match=r"^invalid tar header at byte 512: uid of 'bad': .* is no octal number$"):
        entries(file(b"good") + block(b"bad", uid=field))


def test_number_over_63_bits_is_refused() -> None:
    for field in (b"\x80" + b"\xff" * 11, b"\xbf" + bytes(11), b"\xc0" + bytes(11)):
        with pytest.raises(Unknown, match="over 63 bits"):
            entries(block(size=field))


def test_negative_sizes_are_refused() -> None:
    for data in (block(size=b"\xff" * 12), pax(size=b"-1") + block()):
        with pytest.raises(Unknown, match="size"):
            entries(data)


def test_wrong_checksum_is_refused() -> None:
    with pytest.raises(Unknown, match=r"^invalid tar header at byte 0: its checksum is \d+, not 1$"):
        entries(block(chksum=b"000001\0 "))


def test_signed_checksum_is_taken() -> None:
    name = "Ä".encode()
    good = block(name)
    total = int(good[148:154], 8) - 512
    assert one(good[:148] + b"%06o\0 " % total + good[156:]).name == name


def test_prefix_goes_before_the_name() -> None:
    assert one(block(b"name", prefix=b"some/folder")).name == b"some/folder/name"
    assert one(block(b"n" * 100, prefix=b"p" * 155)).name == b"p" * 155 + b"/" + b"n" * 100
    assert one(block(b"name", prefix=b"folder", magic=b"ustar ", version=b" \0")).name == b"name"
    star = block(b"name", prefix=b"folder".ljust(131, b"\0") + b"00000000000\0" * 2, tail=bytes(8) + b"tar\0")
    assert one(star).name == b"folder/name"


def test_old_headers_call_folders_by_a_slash() -> None:
    assert one(block(b"d/", type=b"\0", magic=b"", version=b"")).type == b"5"
    assert one(block(b"f", type=b"\0", magic=b"", version=b"")).type == b"0"


def test_links_have_no_data_whatever_their_size() -> None:
    found = entries(block(b"l", type=b"1", link=b"f", size=1000) + file(b"next"))
    assert [entry.name for entry, _ in found] == [b"l", b"next"]


def test_pax_overrides() -> None:
    records = {
        b"path": b"p" * 300,
        b"linkpath": b"l" * 300,
        b"uid": b"3000000",
        b"gid": b"4000000",
        b"mtime": b"1600000000.123456789999",
        b"atime": b"1700000000.5",
        b"SCHILY.xattr.user.a": b"bin\0ary\n=",
    }
    entry = one(pax_of(records) + block(type=b"2"))
    assert (entry.name, entry.link, entry.uid, entry.gid) == (b"p" * 300, b"l" * 300, 3_000_000, 4_000_000)
    assert (entry.mtime, entry.atime) == (1_600_000_000_123_456_789, 1_700_000_000_500_000_000)
    assert entry.xattrs == {b"user.a": b"bin\0ary\n="}


def test_pax_applies_to_one_entry_only() -> None:
    first, second = (entry for entry, _ in entries(pax(path=b"long", uid=b"5") + block() + block()))
    assert (first.name, first.uid, second.name, second.uid) == (b"long", 5, b"f", 0)


def test_pax_times_before_1970() -> None:
    assert one(pax(mtime=b"-1.5") + block()).mtime == -1_500_000_000
    assert one(pax(mtime=b"-0.5") + block()).mtime == -500_000_000


def test_pax_size_counts() -> None:
    assert entries(pax(size=b"5") + block(size=0) + padded(b"hello"))[0][1] == b"hello"


def test_empty_pax_value_keeps_the_header() -> None:
    assert one(pax(path=b"", uid=b"") + block(b"kept", uid=7)).uid == 7


def test_globals_are_checked_and_ignored_unless_wanted() -> None:
    data = file(b"g", record(b"uid", b"9"), type=b"g") + block() + pax(uid=b"3") + block()
    assert [entry.uid for entry, _ in entries(data)] == [0, 3]
    assert [entry.uid for entry, _ in entries(data, globals_=True)] == [9, 3]
    with pytest.raises(Unknown):
        entries(file(b"g", b"junk", type=b"g"))


@pytest.mark.parametrize(
    "body",
    [
        b"junk",
        b"5 a=b\n",
        b"7 a=b\n",
        b"6 a=bc",
        b"6 =bcd",
        b"4 a\n",
        b"0 a=b\n",
        b"-6 a=b\n",
        b"+6 a=b\n",
        b"99999999999999999999 a=b\n",
        b"6  a=b\n",
        record(b"path", b"a\0b"),
        record(b"linkpath", b"a\0b"),
        record(b"a\0b", b"c"),
        record(b"uid", b"x"),
        record(b"uid", b"1_0"),
        record(b"size", b"9" * 30),
        record(b"mtime", b"1.2.3"),
        record(b"mtime", b"nan"),
        record(b"mtime", b"1." + b"9" * 5000),
        record(b"a", b"b") + bytes(3),
    ],
)
def test_bad_extended_headers_are_refused(body: bytes) -> None:
    with pytest.raises(Unknown, match="invalid tar header at byte"):
        entries(file(b"x", body, type=b"x") + block())


def test_extended_headers_have_a_cap() -> None:
    fits = record(b"comment", b"x" * (MAX_EXTENSION - 100))
    assert one(file(b"x", fits, type=b"x") + block()).name == b"f"
    for kind in (b"x", b"g", b"L", b"K"):
        with pytest.raises(Unknown, match="at most 1048576 wanted"):
            entries(block(b"x", type=kind, size=MAX_EXTENSION + 1))


def test_gnu_long_names() -> None:
    data = file(b"././@LongLink", b"n" * 300 + b"\0", type=b"L") + file(b"././@LongLink", b"l" * 200 + b"\0", type=b"K")
    entry = one(data + block(b"short", type=b"2", link=b"short", magic=b"ustar ", version=b" \0"))
    assert (entry.name, entry.link) == (b"n" * 300, b"l" * 200)


def test_archive_ending_after_an_extended_header_is_refused() -> None:
    for start in (pax(path=b"x"), file(b"L", b"name\0", type=b"L")):
        for end in (b"", END):
            with pytest.raises(Unknown, match="ends after an extended header"):
                entries(start + end)


def test_block_after_a_zero_block_is_refused() -> None:
    with pytest.raises(Unknown, match="follows a block of zeros"):
        entries(bytes(512) + block())


def test_cuts_are_seen_everywhere_but_between_entries() -> None:
    data = pax(uid=b"1") + file(b"a", b"x" * 700) + file(b"b", b"y" * 512) + END
    ends = {0, 1024 + 512 + 700, 1024 + 1536, 1024 + 1536 + 1024}
    for size in range(len(data) - len(END)):
        in_padding = 1024 + 512 + 700 <= size <= 1024 + 1536
        if size in ends or in_padding:
            entries(data[:size])
        else:
            with pytest.raises(Unknown):
                entries(data[:size])


def test_entries_and_bytes_have_a_budget() -> None:
    data = b"".join(file(b"%d" % number, b"x" * 10) for number in range(5))
    assert len(entries(data, max_entries=5, max_bytes=50)) == 5
    with pytest.raises(ResourceExhausted, match="over 4 entries"):
        entries(data, max_entries=4)
    with pytest.raises(ResourceExhausted, match="over 49 bytes"):
        entries(data, max_bytes=49)
    with pytest.raises(ResourceExhausted):
        entries(pax(uid=b"1") * 100, max_entries=10)


# --- sparse files -----------------------------------------------------------------------------------------------------


def gnu_pair(offset: int, size: int) -> bytes:
    return b"%011o\0%011o\0" % (offset, size)


def gnu_sparse(pairs: list[tuple[int, int]], real: int, stored: bytes) -> bytes:
    area = b"".join(gnu_pair(*pair) for pair in pairs[:4]).ljust(96, b"\0")
    more = pairs[4:]
    # in a GNU header the prefix begins with both times, an offset and the names' room
    prefix = bytes(41) + area + (b"\1" if more else b"\0") + b"%011o\0" % real
    made = block(
        b"s", type=b"S", size=len(stored), magic=b"ustar ", version=b" \0", prefix=prefix[:155], tail=prefix[155:]
    )
    while more:
        chunk, more = more[:21], more[21:]
        made += (b"".join(gnu_pair(*pair) for pair in chunk).ljust(504, b"\0") + (b"\1" if more else b"\0")).ljust(
            512, b"\0"
        )
    return made + padded(stored)


def test_old_gnu_sparse() -> None:
    for count in (1, 4, 5, 25, 26, 60):
        pairs = [(number * 1000, 3) for number in range(count)]
        ((entry, data),) = entries(gnu_sparse(pairs, 100_000, b"abc" * count))
        assert (entry.sparse, entry.size, data) == (pairs, 100_000, b"abc" * count)


def pax_sparse(version: str, pairs: list[tuple[int, int]], real: int, stored: bytes) -> bytes:
    if version == "1.0":
        text = b"%d\n" % len(pairs) + b"".join(b"%d\n%d\n" % pair for pair in pairs)
        records = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"%d" % real}
        records[b"GNU.sparse.name"] = b"real"
        return pax_of(records) + file(b"GNUSparseFile.0/real", padded(text) + stored)
    records = {b"GNU.sparse.size": b"%d" % real, b"GNU.sparse.numblocks": b"%d" % len(pairs)}
    if version == "0.1":
        records[b"GNU.sparse.map"] = b",".join(b"%d,%d" % pair for pair in pairs)
        records[b"GNU.sparse.name"] = b"real"
        return pax_of(records) + file(b"f", stored)
    body = b"".join(record(key, value) for key, value in records.items())
    for offset, size in pairs:
        body += record(b"GNU.sparse.offset", b"%d" % offset) + record(b"GNU.sparse.numbytes", b"%d" % size)
    return file(b"x", body, type=b"x") + file(b"real", stored)


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_pax_sparse(version: str) -> None:
    for count in (0, 1, 3, 300):
        pairs = [(number * 1000, 3) for number in range(count)]
        ((entry, data),) = entries(pax_sparse(version, pairs, 400_000, b"abc" * count))
        assert (entry.name, entry.size, entry.sparse, data) == (b"real", 400_000, pairs, b"abc" * count)


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
@pytest.mark.parametrize(
    ("pairs", "real"),
    [
        ([(0, 4), (2, 4)], 100),
        ([(5, 4), (0, 4)], 100),
        ([(97, 8)], 100),
        ([(0, 7)], 100),
        ([(0, 9)], 100),
        ([(-1, 8)], 100),
        ([(0, -8), (0, 16)], 100),
        ([(0, 8)], -1),
        ([(2**62, 8)], 2**63 - 1 - 2**62),
    ],
)
def test_sparse_maps_that_do_not_fit_are_refused(version: str, pairs: list[tuple[int, int]], real: int) -> None:
    with pytest.raises(Unknown, match="sparse map"):
        entries(pax_sparse(version, pairs, real, b"x" * 8))


def test_endless_sparse_maps_are_refused() -> None:
    head = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"1"}
    for text in (b"5\n1\n", b"999999999\n" + b"1\n" * 1000, b"1" * 3_000_000, b"-1\n", b"x\n"):
        with pytest.raises(MooredError):
            entries(pax_of(head) + file(b"f", padded(text)))
    header = gnu_sparse([(0, 1)] * 5, 100, b"")[:512]
    with pytest.raises(Unknown, match="over 1048576 bytes"):
        entries(header + (bytes(504) + b"\1" + bytes(7)) * 3000)


def test_sparse_bytes_are_charged_whole() -> None:
    with pytest.raises(ResourceExhausted):
        entries(pax_sparse("1.0", [(0, 3)], 4 << 30, b"abc"), max_bytes=1 << 30)


@pytest.mark.parametrize("flags", [["gnu"], ["pax", "--sparse-version=0.0"], ["pax", "--sparse-version=0.1"], ["pax"]])
def test_sparse_archives_of_gnu_tar(tmp_path: Path, flags: list[str]) -> None:
    with (tmp_path / "hole").open("wb") as made:
        for offset in range(0, 3_000_000, 300_000):
            made.seek(offset)
            made.write(b"data" * 1024)
        made.truncate(5_000_000)
    format_, *more = flags
    command = ["tar", "-C", tmp_path, "--sparse", f"--format={format_}", *more, "-cf", "-", "hole"]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    ((entry, stored),) = entries(data)
    assert (entry.name, entry.size, len(data) < 200_000) == (b"hole", 5_000_000, True)
    whole = bytearray(entry.size)
    for offset, size in entry.sparse or ():
        whole[offset : offset + size], stored = stored[:size], stored[size:]
    assert bytes(whole) == (tmp_path / "hole").read_bytes()


@pytest.mark.parametrize("format_", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_archives_of_gnu_tar_read_as_python_reads_them(tmp_path: Path, format_: str) -> None:
    (tmp_path / "d" / ("x" * 60)).mkdir(parents=True)
    for number in range(20):
        (tmp_path / "d" / ("x" * 60) / f"f{number}").write_bytes(os.urandom(number * 100))
    (tmp_path / "d/link").symlink_to("x" * 60)
    (tmp_path / "d/hard").hardlink_to(tmp_path / "d" / ("x" * 60) / "f3")
    made = subprocess.run(
        ["tar", "-C", tmp_path, f"--format={format_}", "-cf", "-", "d"], check=True, capture_output=True
    )
    ours = [
        (e.name.rstrip(b"/").decode(), e.type, e.mode, e.size, e.mtime // 10**9, e.link)
        for e, _ in entries(made.stdout)
    ]
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        theirs = [
            (m.name, m.type, m.mode, m.size, int(m.mtime), m.linkname.encode()) if m.type != tarfile.AREGTYPE
            else (m.name, b"0", m.mode, m.size, int(m.mtime), b"")
            for m in archive
        ]  # fmt: skip
    assert ours == theirs
