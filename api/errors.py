"""The error table: each class of `moored.kernel.errors` as code number and text on the wire, both ways.

gRPC and ttrpc use the same numbers, so this module needs neither library and the shim may use it too. The text of a
class ends with its suffix: `image "x": not found`. Clients tell the three classes of code 9 by suffix; a `bare`
Conflict or NotModified therefore arrives as FailedPrecondition. Source: semantics 1.2.
"""

from __future__ import annotations

import errno
import sys
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from os import fsdecode
from types import MappingProxyType
from typing import Final

from moored.kernel import errors as e


@dataclass(frozen=True, slots=True)
class Wire:
    """How one error class looks on the wire; an empty suffix means that the text goes out as it is."""

    code: int
    suffix: str


WIRE: Final[Mapping[type[e.MooredError], Wire]] = MappingProxyType(
    {
        e.Cancelled: Wire(1, "context canceled"),
        e.Unknown: Wire(2, ""),
        e.InvalidArgument: Wire(3, "invalid argument"),
        e.DeadlineExceeded: Wire(4, "context deadline exceeded"),
        e.NotFound: Wire(5, "not found"),
        e.AlreadyExists: Wire(6, "already exists"),
        e.PermissionDenied: Wire(7, "permission denied"),
        e.ResourceExhausted: Wire(8, "resource exhausted"),
        e.FailedPrecondition: Wire(9, "failed precondition"),
        e.Conflict: Wire(9, "conflict"),
        e.NotModified: Wire(9, "not modified"),
        e.Aborted: Wire(10, "aborted"),
        e.OutOfRange: Wire(11, "out of range"),
        e.Unimplemented: Wire(12, "not implemented"),
        e.Internal: Wire(13, "internal"),
        e.Unavailable: Wire(14, "unavailable"),
        e.DataLoss: Wire(15, "data loss"),
        e.Unauthenticated: Wire(16, "unauthorized"),
    }
)
"""Every class of the closed set, in the order of the codes."""

# The first class of a code is what a text without any known suffix means.
_BY_CODE: Final[Mapping[int, tuple[type[e.MooredError], ...]]] = MappingProxyType(
    {wire.code: tuple(k for k, w in WIRE.items() if w.code == wire.code) for wire in WIRE.values()}
)

_BY_ERRNO: Final[Mapping[int, type[e.MooredError]]] = MappingProxyType(
    {
        errno.ENOENT: e.NotFound,
        errno.EEXIST: e.AlreadyExists,
        errno.EACCES: e.PermissionDenied,
        errno.EPERM: e.PermissionDenied,
        errno.ENOSPC: e.ResourceExhausted,
        errno.EDQUOT: e.ResourceExhausted,
        errno.EMFILE: e.ResourceExhausted,
        errno.ENFILE: e.ResourceExhausted,
        errno.ETIMEDOUT: e.DeadlineExceeded,
    }
)


MAX_TEXT_BYTES: Final = 6 << 10
"""Bytes of a text as gRPC escapes it, suffix apart; a longer one loses its middle.

gRPC's C core refuses trailers above 8 KiB, and the caller would then see another code than the one sent.
"""


def wire_of(error: e.MooredError | type[e.MooredError]) -> Wire:
    """Return the code and suffix of an error or its class; a class from elsewhere counts as its nearest listed base."""
    kind = error if isinstance(error, type) else type(error)
    return next((WIRE[base] for base in kind.__mro__ if base in WIRE), WIRE[e.Unknown])


def to_status(exc: BaseException) -> tuple[int, str]:
    """Return code and text of any exception, never raising itself.

    The suffix is added unless the error is `bare` or the text has it already. The text is always valid UTF-8 and is
    cut at MAX_TEXT_BYTES.
    """
    error = classify(exc)
    wire = wire_of(error)
    # A lone surrogate (a file name that is not UTF-8) would make the transport fail instead of the call.
    text = _shortened(error.text.encode("utf-8", "backslashreplace").decode())
    if error.bare or not wire.suffix or _ends(text, wire.suffix):
        return wire.code, text
    return wire.code, f"{text}: {wire.suffix}" if text else wire.suffix


def from_status(code: int, message: str) -> e.MooredError:
    """Return the error that a code and text stand for; an unlisted code is Unknown, as clients have it.

    The suffix is taken off; a text that lacks it gives a `bare` error (Unknown has no suffix and is never bare). For
    every listed code `to_status(from_status(code, message)) == (code, message)`, up to MAX_TEXT_BYTES.
    """
    classes = _BY_CODE.get(code, (e.Unknown,))
    kind = next((k for k in classes if _ends(message, WIRE[k].suffix)), classes[0])
    suffix = WIRE[kind].suffix
    if not suffix:
        return kind(message)
    text = message.removesuffix(f": {suffix}")
    # What is nothing but suffixes keeps them, or the way back would lose one.
    if not text or _ends(text, suffix):
        text = message
    return kind(text, bare=not _ends(message, suffix))


def classify(exc: BaseException) -> e.MooredError:
    """Return the error of the closed set that stands for any exception; one of the set is returned as it is.

    Of a group, the first member whose class says more than Unknown or Cancelled stands for all.
    """
    if isinstance(exc, e.MooredError):
        return exc
    if isinstance(exc, BaseExceptionGroup):
        found = [classify(leaf) for leaf in _leaves(exc)]
        return next((error for error in found if not isinstance(error, (e.Unknown, e.Cancelled))), found[0])
    if _is_cancellation(exc):
        return e.Cancelled(WIRE[e.Cancelled].suffix)
    if isinstance(exc, OSError) and exc.errno is not None:
        return _BY_ERRNO.get(exc.errno, e.Unknown)(_os_text(exc))
    if isinstance(exc, TimeoutError):
        return e.DeadlineExceeded(WIRE[e.DeadlineExceeded].suffix)
    return e.Unknown(_text_of(exc))


def _text_of(exc: BaseException) -> str:
    try:
        return str(exc) or type(exc).__name__
    except Exception:  # noqa: BLE001 - a broken __str__ of a foreign exception must not hide that there was one
        return type(exc).__name__


def _shortened(text: str) -> str:
    if len(text) <= MAX_TEXT_BYTES // 12:  # no character takes more than 4 bytes of 3 each
        return text
    if len(text) <= MAX_TEXT_BYTES and sum(map(_escaped_size, text)) <= MAX_TEXT_BYTES:
        return text
    half = (MAX_TEXT_BYTES - len(_GAP)) // 2
    return text[: _fitting(text[:half], half)] + _GAP + text[len(text) - _fitting(text[: -half - 1 : -1], half) :]


_GAP: Final = " [...] "


def _fitting(text: str, size: int) -> int:
    return bisect_right(list(accumulate(map(_escaped_size, text))), size)


def _escaped_size(char: str) -> int:
    return 1 if " " <= char <= "~" and char != "%" else 3 * len(char.encode())


def _ends(text: str, suffix: str) -> bool:
    return text == suffix or text.endswith(f": {suffix}")


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from _leaves(exc)
        else:
            yield exc


def _is_cancellation(exc: BaseException) -> bool:
    # Looked up, not imported: the shim stays without asyncio, and without it no such exception can exist.
    modules = (sys.modules.get(name) for name in ("asyncio.exceptions", "concurrent.futures._base"))
    kinds = tuple(m.CancelledError for m in modules if m is not None)
    return isinstance(exc, kinds)


def _os_text(exc: OSError) -> str:
    names = [
        fsdecode(n) if isinstance(n, (str, bytes)) else f"fd {n}"
        for n in (exc.filename, exc.filename2)
        if n is not None
    ]
    reason = exc.strerror or errno.errorcode.get(exc.errno or 0, "unknown error")
    if reason[1:2].islower():
        reason = reason[0].lower() + reason[1:]
    return ": ".join([" -> ".join(names), reason] if names else [reason])
