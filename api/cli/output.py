"""What every command prints with: text and JSON to standard output, made safe for terminals; free of slow imports."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Final

from moored.kernel.errors import Unknown

ELLIPSIS: Final = "…"


def write(text: str) -> None:
    """Print to standard output. That nobody reads any more is no error, any other failure is Unknown."""
    stream = sys.stdout
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        # What is left in the buffer would fail again when the interpreter flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise Unknown(f"cannot write the output: {error.strerror}") from error


def write_json(document: Any) -> None:
    """Print one JSON document, keys in the order given."""
    write(json.dumps(document, indent=2) + "\n")


def write_json_line(document: Any) -> None:
    """Print one JSON document of a stream of them on one line."""
    write(json.dumps(document, separators=(",", ":")) + "\n")


def note(text: str) -> None:
    """Tell the user something that is no result, on standard error; lost where that is closed."""
    stream = sys.stderr
    if stream is None:
        return
    try:
        stream.write(f"{printable(' '.join(text.splitlines()))}\n")
        stream.flush()
    except (OSError, ValueError):
        return


def printable(text: str) -> str:
    """The text with every control or otherwise invisible character escaped as in Python."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.expandtabs(8))
