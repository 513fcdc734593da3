"""Spans of time written as Go writes them: `1h2m3.5s`, `100ms`, `-1.5h`, `0`.

Configuration files and labels carry such texts; `parse` accepts and `str` gives exactly what Go's `time` package does.
"""

from __future__ import annotations

import math
import re
from typing import Self

_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # micro sign
    "μs": 1_000,  # the Greek letter, which Go accepts too
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_LARGEST = 1 << 63
_PART = re.compile(r"([0-9]*)(\.?)([0-9]*)([^0-9.]*)")


class Duration(float):
    """Seconds as a float (so any timeout parameter takes it), exact to the nanosecond in `ns`."""

    __slots__ = ("ns",)

    ns: int

    def __new__(cls, seconds: float = 0.0) -> Self:
        """A duration of so many seconds; raises ValueError when Go could not hold it (about 292 years)."""
        if isinstance(seconds, Duration):
            return cls.from_ns(seconds.ns)
        if not math.isfinite(seconds):
            raise ValueError(f"duration {seconds!r} is not finite")
        return cls.from_ns(round(seconds * 1_000_000_000))

    @classmethod
    def from_ns(cls, ns: int) -> Self:
        """A duration of so many nanoseconds; raises ValueError beyond 63 bits."""
        if not -_LARGEST <= ns < _LARGEST:
            raise ValueError(f"duration of {ns} nanoseconds is out of range")
        self = float.__new__(cls, ns / 1_000_000_000)
        self.ns = ns
        return self

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read Go's notation; raises ValueError naming the text and what is wrong with it."""
        sign, rest = (-1, text[1:]) if text[:1] == "-" else (1, text[1:] if text[:1] == "+" else text)
        if rest == "0":
            return cls.from_ns(0)
        if not rest:
            raise ValueError(f"invalid duration {text!r}, it must look like '1m30s'")
        total, at = 0, 0
        while at < len(rest):
            match = _PART.match(rest, at)
            assert match is not None  # every group may be empty
            total += _part_ns(text, match)
            at = match.end()
            if total > _LARGEST:
                raise ValueError(f"duration {text!r} is out of range")
        if total == _LARGEST and sign > 0:
            raise ValueError(f"duration {text!r} is out of range")
        return cls.from_ns(sign * total)

    def __str__(self) -> str:
        if self.ns == 0:
            return "0s"
        sign, ns = ("-", -self.ns) if self.ns < 0 else ("", self.ns)
        if ns < 1_000_000_000:
            unit = "ms" if ns >= 1_000_000 else "µs" if ns >= 1_000 else "ns"
            return f"{sign}{_decimal(ns, _UNITS[unit])}{unit}"
        minutes, ns = divmod(ns, _UNITS["m"])
        hours, minutes = divmod(minutes, 60)
        head = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
        return f"{sign}{head}{_decimal(ns, _UNITS['s'])}s"

    def __repr__(self) -> str:
        return f"Duration.parse({str(self)!r})"

    def __hash__(self) -> int:
        return float.__hash__(self)

    def __eq__(self, other: object) -> bool:
        return self.ns == other.ns if isinstance(other, Duration) else float.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __reduce__(self) -> tuple[object, ...]:
        return (Duration.from_ns, (self.ns,))


def _part_ns(text: str, match: re.Match[str]) -> int:
    whole, point, fraction, unit = match.groups()
    if not whole and not fraction:
        raise ValueError(f"invalid duration {text!r}, it must look like '1m30s'")
    if not unit:
        raise ValueError(f"missing unit in duration {text!r}, wanted one of ns, us, ms, s, m, h")
    if unit not in _UNITS:
        raise ValueError(f"unknown unit {unit!r} in duration {text!r}, wanted one of ns, us, ms, s, m, h")
    scale = _UNITS[unit]
    if len(whole.lstrip("0")) > 19:
        raise ValueError(f"duration {text!r} is out of range")
    ns = int(whole or "0") * scale
    if point and fraction:
        ns += _fraction_ns(fraction, scale)
    if ns > _LARGEST:
        raise ValueError(f"duration {text!r} is out of range")
    return ns


def _fraction_ns(digits: str, scale: int) -> int:
    """The nanoseconds of a fraction, by the float arithmetic that Go uses, so that the last digit agrees too."""
    value, divisor = 0, 1.0
    for digit in digits:
        if value > (_LARGEST - 1) // 10 or value * 10 + int(digit) > _LARGEST:
            break
        value = value * 10 + int(digit)
        divisor *= 10
    return int(float(value) * (float(scale) / divisor))


def _decimal(value: int, unit: int) -> str:
    """`value / unit` without trailing zeros."""
    whole, rest = divmod(value, unit)
    if not rest:
        return str(whole)
    return f"{whole}.{str(rest).rjust(len(str(unit)) - 1, '0').rstrip('0')}"
