"""Reading one file: its lines, and what is said of a text that is not TOML."""

import hashlib
from pathlib import Path

import pytest

from moored.config.source import MAX_BYTES, BadToml, Document, read

TEXT = '''\
# a comment = 1
version = 4
"quoted key".'other one'. bare = 1

[plugins."io.containerd.gc.v1.scheduler"]  # [not.a.header]
  pause_threshold = 0.1
  text = """
fake = 1
[fake.header]
""" # after
  list = [
    "a", # "]"
    "b",
  ]
  deep.er.key = {x = 1, "y z" = [1, 2], n = {m = 2}}
  moment = 1979-05-27 07:32:00
[[runs]]
name = 'first'
[[runs]]
name = "sec]ond"
[runs.sub]
k = """a "quoted" end""""
[[runs.more]]
z = 1
[plugins]
late = true
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("version",), 2),
        (("quoted key",), 3),
        (("quoted key", "other one", "bare"), 3),
        (("plugins", "io.containerd.gc.v1.scheduler"), 5),
        (("plugins", "io.containerd.gc.v1.scheduler", "pause_threshold"), 6),
        (("plugins", "io.containerd.gc.v1.scheduler", "text"), 7),
        (("plugins", "io.containerd.gc.v1.scheduler", "list"), 11),
        (("plugins", "io.containerd.gc.v1.scheduler", "list", 1), 13),
        (("plugins", "io.containerd.gc.v1.scheduler", "deep", "er", "key", "y z"), 15),
        (("plugins", "io.containerd.gc.v1.scheduler", "deep", "er", "key", "n", "m"), 15),
        (("plugins", "io.containerd.gc.v1.scheduler", "moment"), 16),
        (("runs", 0), 17),
        (("runs", 0, "name"), 18),
        (("runs", 1), 19),
        (("runs", 1, "name"), 20),
        (("runs", 1, "sub"), 21),
        (("runs", 1, "sub", "k"), 22),
        (("runs", 1, "more", 0, "z"), 24),
        (("plugins",), 25),
        (("plugins", "late"), 26),
    ],
)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_key_has_its_line(path, line, ends, mark):
    document = Document(Path("f"), mark + TEXT.replace("\n", ends).encode())

    assert document.line(path) == line


def test_a_key_that_is_not_there_has_the_line_of_its_table():
    document = Document(Path("f"), b"a = 1\n[t.u]\nb = 1\n")

    assert document.line(("t", "u", "missing")) == 2
    assert document.line(("t", "missing")) == 2
    assert document.line(("missing",)) == 0


def test_lines_are_looked_for_only_when_asked():
    document = Document(Path("f"), TEXT.encode())

    assert "lines" not in vars(document)
    document.line(("version",))
    assert "lines" in vars(document)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a = 1\nb = \n", "f:2:5: "),
        (b"a = 1\n[t\n", "f:2:3: "),
        (b'a = "x', "f:1:7: "),
        (b"a = 1\r\nb = 1\r\na = 2\r\n", "f:3:1: key 'a' is set twice, first in line 1"),
        (b"[t]\na.b = 1\n[u]\n[t]\n", "f:4:1: key 't' is set twice, first in line 1"),
        (b'[t]\nx = 1\n"x" = 2\n', "f:3:1: key 't.x' is set twice, first in line 2"),
        (b"a = {b = 1, b = 2}", "f:1:18: "),
        (b"a = 1\nb = '\xff'\n", "f:2:6: byte 0xff is not UTF-8"),
        (b"a = " + b"[" * 3000, "f: nested too deeply"),
        (b"a = " + b"[" * 100 + b"]" * 100, "f: nested deeper than 64 levels"),
        (b".".join([b"a"] * 100) + b" = 1", "f: nested deeper than 64 levels"),
    ],
)
def test_a_text_that_is_not_toml_is_refused_with_place_and_reason(data, text):
    with pytest.raises(BadToml) as caught:
        Document(Path("f"), data)

    assert str(caught.value).startswith(text)  # the parser's own reasons differ between versions of Python
    assert caught.value.reason


def test_a_file_is_read_with_what_tells_it_from_a_later_one(tmp_path):
    path = tmp_path / "c.toml"
    path.write_bytes(b"a = 1\n")

    document = read(path)

    assert document.values == {"a": 1}
    assert document.sha256 == hashlib.sha256(b"a = 1\n").hexdigest()
    assert document.mtime_ns == path.stat().st_mtime_ns


def test_a_file_beyond_the_limit_is_refused(tmp_path):
    path = tmp_path / "c.toml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))

    with pytest.raises(BadToml, match="longer than"):
        read(path)
