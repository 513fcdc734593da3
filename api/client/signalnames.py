"""Signals by name or number, as images and people write them."""

from __future__ import annotations

import re
import signal as signals
from typing import Final

from moored.kernel.errors import InvalidArgument

_REAL_TIME: Final = re.compile(r"RTMIN(?:\+([0-9]{1,2}))?|RTMAX(?:-([0-9]{1,2}))?")
LAST: Final = 64


def signal_number(signal: int | str) -> int:
    """Give the number of `TERM`, `SIGTERM`, `15`, `RTMIN+3` or 15. Raises InvalidArgument."""
    if isinstance(signal, int) or (signal.isascii() and signal.isdigit()):
        number = int(signal)
    else:
        number = _named(signal.upper().removeprefix("SIG"))
    if not 0 <= number <= LAST:
        raise InvalidArgument(f"signal {signal!r} is not known, wanted a number from 1 to {LAST} or a name")
    return number


def _named(name: str) -> int:
    if match := _REAL_TIME.fullmatch(name):
        return signals.SIGRTMIN + int(match[1] or 0) if name.startswith("RTMIN") else LAST - int(match[2] or 0)
    found = signals.Signals.__members__.get(f"SIG{name}")
    return -1 if found is None else int(found)
