"""Writes TOML: tables as headers, everything else on one line, with an optional comment behind each key."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping
from typing import Any

from moored.config.origin import dotted, key_text, quoted

Path = tuple[str, ...]


def write(
    table: Mapping[str, Any],
    *,
    behind: Callable[[Path], str] = lambda path: "",
    above: Callable[[Path], str] = lambda path: "",
) -> str:
    """The text of a table. `behind` gives the comment that follows a key, `above` the one that precedes it or a header.

    None values are left out. A table with no key of its own but with tables in it gets no header.
    """
    lines: list[str] = []
    _table(lines, table, (), behind, above)
    return "\n".join(lines).strip("\n") + "\n"


def _table(
    lines: list[str], table: Mapping[str, Any], path: Path, behind: Callable[[Path], str], above: Callable[[Path], str]
) -> None:
    below = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    leaves = {key: value for key, value in table.items() if key not in below and value is not None}
    if path and (leaves or not below):
        lines += ["", *_comment(above(path)), f"[{dotted(path)}]"]
    for key, value in leaves.items():
        comment = behind((*path, key))
        lines += _comment(above((*path, key)))
        lines.append(f"{key_text(key)} = {value_text(value)}{f'  # {comment}' if comment else ''}")
    for key, value in below.items():
        _table(lines, value, (*path, key), behind, above)


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in text.splitlines()]


def value_text(value: Any) -> str:
    """One value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key_text(key)} = {value_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(value_text(item) for item in value) + "]"
    return quoted(value) if isinstance(value, str) else _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    return str(value)


def _float(value: float) -> str:
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return repr(value)
