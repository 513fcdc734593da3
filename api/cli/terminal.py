"""The terminal that a command was started in: raw mode, size, and the keys that leave a container without ending it."""

from __future__ import annotations

import os
import shutil
import sys
import termios
import tty
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from moored.kernel.errors import InvalidArgument

DETACH_KEYS: Final = "ctrl-p,ctrl-q"
STDIN, STDOUT, STDERR = 0, 1, 2


def is_terminal(fd: int) -> bool:
    """Whether a descriptor is open and a terminal."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


def need_terminal() -> None:
    """See that standard input is a terminal. Raises InvalidArgument saying what to do."""
    if not is_terminal(STDIN):
        raise InvalidArgument("standard input is no terminal, leave out -t")


def size() -> tuple[int, int]:
    """Columns and lines of the terminal."""
    for fd in (STDIN, STDOUT, STDERR):
        try:
            found = os.get_terminal_size(fd)
        except OSError:
            continue
        if found.columns and found.lines:
            return found.columns, found.lines
    found = shutil.get_terminal_size()
    return found.columns, found.lines


@contextmanager
def raw() -> Generator[None]:
    """Take every key as it is typed, Ctrl-C too, and print as it comes; in the end all is as it was before."""
    if not is_terminal(STDIN):
        yield
        return
    sys.stdout.flush()
    before = termios.tcgetattr(STDIN)
    tty.setraw(STDIN, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSADRAIN, before)


def parse_keys(text: str) -> bytes:
    """Read `ctrl-p,ctrl-q` or `ctrl-]` or `a`; empty for none. Raises InvalidArgument."""
    codes = bytearray()
    for key in filter(None, text.split(",")):
        if len(key) == 1 and key.isascii():
            codes += key.encode()
            continue
        prefix, dash, last = key.lower().partition("-")
        if prefix != "ctrl" or not dash or len(last) != 1 or not (last.isalpha() or last in "@[\\]^_"):
            raise InvalidArgument(f"detach keys {text!r} must be single letters or ctrl-LETTER, with commas between")
        codes.append(ord(last.upper()) & 0x1F)
    return bytes(codes)


class DetachKeys:
    """Watches what is typed for a sequence of keys."""

    def __init__(self, sequence: bytes) -> None:
        self._sequence = sequence
        self._seen = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Give what is to be passed on, and whether the sequence was typed; the rest is dropped then.

        Keys that may be its beginning are held back until the next one tells.
        """
        if not self._sequence:
            return data, False
        out = bytearray()
        for byte in data:
            if byte == self._sequence[self._seen]:
                self._seen += 1
                if self._seen == len(self._sequence):
                    self._seen = 0
                    return bytes(out), True
                continue
            out += self._sequence[: self._seen]
            self._seen = 0
            if byte == self._sequence[0]:
                self._seen = 1
            else:
                out.append(byte)
        return bytes(out), False
