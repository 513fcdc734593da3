"""Moments written as in RFC 3339, read as Go's `time` package reads them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_FORM: Final = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:[.,]([0-9]+))?"
    r"(?:Z|([+-])([0-9]{2}):([0-9]{2}))"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_1: Final = -62135596800 * 10**9


def parse_ns(text: str) -> int | None:
    """Give the nanoseconds since 1970, None for anything else; a moment in the year 0 counts as the begin of year 1."""
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(match[group]) for group in range(1, 7))
    try:
        moment = datetime(year or 1, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    ahead = 0
    if match[8]:
        hours, minutes = int(match[9]), int(match[10])
        if hours > 23 or minutes > 59:
            return None
        ahead = (hours * 3600 + minutes * 60) * (1 if match[8] == "+" else -1)
    if not year:
        return _YEAR_1
    seconds = (moment - _EPOCH) // timedelta(seconds=1) - ahead
    return seconds * 10**9 + int((match[7] or "").ljust(9, "0")[:9])
