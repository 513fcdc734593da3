"""Files that come to be whole or not at all."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from moored.kernel.errors import AlreadyExists
from moored.kernel.newfile import new_file


def test_file_is_private_and_has_no_name_before_it_is_whole(tmp_path: Path) -> None:
    with new_file(tmp_path / "f") as file:
        file.write(b"all")
        assert not (tmp_path / "f").exists()

    assert (tmp_path / "f").read_bytes() == b"all"
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def failing(path: Path) -> None:
    with new_file(path) as file:
        file.write(b"half")
        raise KeyError


def beaten(path: Path) -> None:
    """Another one takes the name while the file is written."""
    with new_file(path) as file:
        file.write(b"mine")
        path.write_bytes(b"theirs")


def nothing(path: Path) -> None:
    with new_file(path):
        pass


def test_block_that_raises_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        failing(tmp_path / "f")

    assert list(tmp_path.iterdir()) == []


def test_what_has_the_name_before_or_meanwhile_stays(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(AlreadyExists, match="link"):
        nothing(tmp_path / "link")
    with pytest.raises(AlreadyExists, match="f"):
        beaten(tmp_path / "f")

    assert (tmp_path / "f").read_bytes() == b"theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "link"]
