"""Errors on their way to the user: one line on standard error and an exit status."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from moored.kernel.errors import MooredError

OWN: Final = 125
"""Status of `run` and its like for an error of their own, so that it is not taken for the process's."""
NOT_RUNNABLE: Final = 126
NOT_FOUND: Final = 127

_NOT_FOUND: Final = re.compile(
    r"executable file .{0,4096} not found|executable file not found"
    r"|(?:exec|stat|execve|open executable).{0,4096}no such file or directory",
    re.IGNORECASE | re.DOTALL,
)
_NOT_RUNNABLE: Final = re.compile(
    r"(?:exec|execve|executable|starting container process).{0,4096}"
    r"(?:permission denied|is a directory|exec format error)",
    re.IGNORECASE | re.DOTALL,
)


class Failed(click.ClickException):
    """An error of the set on its way to standard error; status is the exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        vars(self)["exit_code"] = status  # the base declares it for the class

    def show(self, file: Any = None) -> None:
        """Print it as one line."""
        text = " ".join(self.message.split())
        shown = "".join(c if c.isprintable() else "?" for c in text)
        click.echo(f"moorctl: {shown}", file=file, err=file is None)


def start_status(error: MooredError) -> int:
    """Give the exit status for a process that could not be started, from what the runtime says of it."""
    if _NOT_FOUND.search(error.text):
        return NOT_FOUND
    if _NOT_RUNNABLE.search(error.text):
        return NOT_RUNNABLE
    return OWN


@contextmanager
def start_failures(own: int = OWN) -> Iterator[None]:
    """Raise an error of the set as Failed, with the status that `start_status` gives it, but `own` for OWN."""
    try:
        yield
    except MooredError as error:
        found = start_status(error)
        raise Failed(error.text, own if found == OWN else found) from error
