"""Detach keys, read and found in what is typed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moored.api.cli.terminal import DETACH_KEYS, DetachKeys, parse_keys
from moored.kernel.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "keys"), [(DETACH_KEYS, b"\x10\x11"), ("ctrl-a,d", b"\x01d"), ("", b""), ("Ctrl-]", b"\x1d"), ("q", b"q")]
)
def test_keys_are_letters_and_control_letters(text, keys):
    assert parse_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-pp", "alt-x", "ab", "ü"])
def test_other_keys_are_refused(text):
    with pytest.raises(InvalidArgument, match="detach keys"):
        parse_keys(text)


def test_the_sequence_is_found_over_several_reads():
    watch = DetachKeys(b"\x10\x11")

    assert watch.feed(b"ab\x10") == (b"ab", False)
    assert watch.feed(b"\x11cd") == (b"", True)


def test_its_beginning_is_passed_on_when_something_else_follows():
    watch = DetachKeys(b"\x10\x11")

    assert watch.feed(b"\x10x") == (b"\x10x", False)
    assert watch.feed(b"\x10\x10") == (b"\x10", False)
    assert watch.feed(b"\x11") == (b"", True)


@given(st.lists(st.binary(max_size=6)))
def test_without_the_sequence_everything_is_passed_on(pieces):
    watch = DetachKeys(b"\xfe\xff")
    typed = b"".join(pieces).replace(b"\xfe", b"")

    passed = b"".join(watch.feed(bytes([byte]))[0] for byte in typed)

    assert passed == typed
