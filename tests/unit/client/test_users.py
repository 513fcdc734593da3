"""Users looked up in files that nobody has vouched for."""

from __future__ import annotations

import os

import pytest

from moored.api.client.users import NOBODY_KNOWN, User, read_accounts, resolve
from moored.kernel.errors import FailedPrecondition, InvalidArgument, NotFound

PASSWD = "# comment\nroot:x:0:0::/root:/bin/sh\nanna:x:1000:1001::/home/anna:\nbroken\nbig:x:4294967296:0::/:\n"
GROUP = "root:x:0:\nwheel:x:10:root,anna\nstaff:x:50:bob,anna\nodd:x:seven:anna\n"


@pytest.fixture
def accounts(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return read_accounts(tmp_path)


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User(0, 0, (0, 10), "/root")),
        ("anna", User(1000, 1001, (1001, 10, 50), "/home/anna")),
        ("1000", User(1000, 1001, (1001, 10, 50), "/home/anna")),
        ("anna:staff", User(1000, 50, (50,), "/home/anna")),
        ("anna:7", User(1000, 7, (7,), "/home/anna")),
        ("4000", User(4000, 0, (0,))),
        ("4000:4001", User(4000, 4001, (4001,))),
    ],
)
def test_users_and_groups_are_names_or_numbers(accounts, text, user):
    assert resolve(text, accounts) == user


def test_further_groups_come_along(accounts):
    assert resolve("anna:7", accounts, ["staff", "9", "7"]).groups == (7, 50, 9)


@pytest.mark.parametrize("text", ["bob", "anna:none", "big"])
def test_names_that_are_not_there_are_said(accounts, text):
    with pytest.raises(NotFound, match="is not in /etc/"):
        resolve(text, accounts)


@pytest.mark.parametrize("text", ["2147483647", "2147483648", "4294967294"])
def test_large_numbers_are_taken_exactly(text):
    assert resolve(text, NOBODY_KNOWN).uid == int(text)


@pytest.mark.parametrize("text", ["4294967295", "4294967296", "-1", "9" * 50, "0:4294967296", "0:-1", ":5", "5:"])
def test_numbers_that_would_become_others_are_refused(text):
    with pytest.raises(InvalidArgument):
        resolve(text, NOBODY_KNOWN)


def test_links_are_followed_inside_of_the_root_only(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "etc").mkdir(parents=True)
    outside.write_text("evil:x:0:0::/:\n")
    (root / "etc/passwd").symlink_to(outside)
    (root / "etc/group").symlink_to("../../../real-group")
    (root / "real-group").write_text("inside:x:5:\n")

    found = read_accounts(root)

    assert [one.name for one in found.users] == []
    assert [one.name for one in found.groups] == ["inside"]


def test_an_etc_that_leads_out_is_not_left_through(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "passwd").write_text("evil:x:0:0::/:\n")
    (root / "etc").symlink_to(outside)

    assert read_accounts(root).users == []


def test_what_is_no_file_is_not_read(tmp_path):
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/passwd")

    with pytest.raises(FailedPrecondition, match="no regular file"):
        read_accounts(tmp_path)


def test_a_file_of_any_size_is_not_read(tmp_path):
    (tmp_path / "etc").mkdir()
    with (tmp_path / "etc/group").open("wb") as file:
        file.truncate(1 << 40)

    with pytest.raises(FailedPrecondition, match="more than"):
        read_accounts(tmp_path)
