"""Conformance suites: one file a port, plain asserts, to be run on any implementation, directly or through a socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from moored.kernel.errors import MooredError

E = TypeVar("E", bound=MooredError)


async def fails_with(kind: type[E], call: Awaitable[object], text: str | None = None) -> E:
    """Await `call`, which must raise exactly `kind`, with exactly `text` if given; give the error for a closer look."""
    try:
        result = await call
    except MooredError as error:
        return _expected(kind, error, text)
    raise AssertionError(f"returned {result!r}, wanted {kind.__name__}")


def refuses(kind: type[E], call: Callable[[], object], text: str | None = None) -> E:
    """Do as `fails_with` for a plain call."""
    try:
        result = call()
    except MooredError as error:
        return _expected(kind, error, text)
    raise AssertionError(f"returned {result!r}, wanted {kind.__name__}")


def _expected(kind: type[E], error: MooredError, text: str | None) -> E:
    if type(error) is not kind:
        raise AssertionError(f"raised {type(error).__name__} ({error.text}), wanted {kind.__name__}") from error
    if text is not None and error.text != text:
        raise AssertionError(f"the text is {error.text!r}, wanted {text!r}") from error
    return error
