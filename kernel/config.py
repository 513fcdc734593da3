"""Plugin configuration as frozen dataclasses: declare with `setting`, read with `decode`, write with `encode`.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        root_path: Path | None = setting(None, doc="where snapshots live; unset takes the plugin's own folder")
        interval: Duration = setting(Duration(10), ge=0, doc="pause between two rounds")

Field types: bool, int, float, str, Path, Duration, Literal, X | None, list[X], tuple[X, ...], dict[str, X], Any and
further dataclasses. `decode` reports every problem of a table at once, each with its key path; the file and line of a
key are the config room's knowledge. Nothing here reads files.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, overload

from moored.kernel.duration import Duration
from moored.kernel.errors import InvalidArgument

T = TypeVar("T")

KeyPath = tuple[str | int, ...]
Level = Literal["error", "warning"]
Kind = Literal["unknown", "missing", "type", "value"]

_METADATA = "moored.setting"
_MISSING: Any = dataclasses.MISSING


class Problem(NamedTuple):
    """One fault of a table: where (`key`, list positions as numbers), what, and whether it forbids using the table."""

    level: Level
    key: KeyPath
    message: str
    kind: Kind = "value"


class Bounds(NamedTuple):
    """What a setting says beyond its type: its doc, its TOML name where that is no identifier, and its limits."""

    doc: str = ""
    name: str | None = None
    ge: float | None = None
    le: float | None = None
    choices: tuple[object, ...] | None = None


@overload
def setting(
    default: T,
    *,
    doc: str = "",
    name: str | None = None,
    ge: float | None = None,
    le: float | None = None,
    choices: Sequence[object] | None = None,
) -> T: ...
@overload
def setting(
    *,
    factory: Callable[[], T],
    doc: str = "",
    name: str | None = None,
    ge: float | None = None,
    le: float | None = None,
    choices: Sequence[object] | None = None,
) -> T: ...
@overload
def setting(
    *,
    doc: str = "",
    name: str | None = None,
    ge: float | None = None,
    le: float | None = None,
    choices: Sequence[object] | None = None,
) -> Any: ...
def setting(
    default: Any = _MISSING,
    *,
    factory: Any = _MISSING,
    doc: str = "",
    name: str | None = None,
    ge: float | None = None,
    le: float | None = None,
    choices: Sequence[object] | None = None,
) -> Any:
    """A dataclass field with its documentation; without default and factory the key must be given.

    `ge` and `le` bound numbers and durations (seconds), in lists each element; `choices` lists the values allowed.
    """
    bounds = Bounds(doc, name, ge, le, None if choices is None else tuple(choices))
    return dataclasses.field(default=default, default_factory=factory, metadata={_METADATA: bounds})


class FieldInfo(NamedTuple):
    """One setting as documentation shows it.

    `default` is the TOML value, None when unset or required; `nested` the dataclass behind a table, `keyed` whether
    that table maps names to it.
    """

    name: str
    type_text: str
    default: Any
    doc: str
    required: bool
    nested: type[Any] | None
    keyed: bool
    bounds: Bounds
    hint: Any


class _Field(NamedTuple):
    attribute: str
    name: str
    hint: Any
    bounds: Bounds
    field: dataclasses.Field[Any]


def _fields(cls: type[Any]) -> dict[str, _Field]:
    """The settings of a dataclass by TOML name."""
    return _read_fields(typing.cast(Any, cls))


@functools.cache
def _read_fields(cls: Any) -> dict[str, _Field]:
    hints = typing.get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        bounds = field.metadata.get(_METADATA, Bounds())
        name = bounds.name or field.name
        found[name] = _Field(field.name, name, hints[field.name], bounds, field)
    return found


# --- reading ---------------------------------------------------------------------------------------------------------


def decode(
    cls: type[T], table: Mapping[str, object], *, path: KeyPath = (), strict: bool = True
) -> tuple[T | None, list[Problem]]:
    """Make a `cls` of a TOML table; the value is None exactly when a problem is an error.

    `path` is where the table stands, it begins every problem's key. Without `strict` an unknown key is a warning. A
    `cls` whose `__post_init__` raises ValueError or InvalidArgument has that text reported at `path`.
    """
    decoder = _Decoder(strict)
    value = decoder.table(cls, table, path)
    broken = any(problem.level == "error" for problem in decoder.problems)
    return (None if broken else typing.cast(T, value)), decoder.problems


class _Bad:
    """A value that has been reported and must not be used."""


_BAD = _Bad()


class _Decoder:
    """Collects the problems of one table."""

    def __init__(self, strict: bool) -> None:
        self.problems: list[Problem] = []
        self._strict = strict

    def table(self, cls: type[Any], table: object, path: KeyPath) -> object:
        """An instance of a dataclass."""
        if not isinstance(table, Mapping):
            return self._wrong(table, "a table", path)
        fields = _fields(cls)
        found = {}
        for key, value in table.items():
            if (field := fields.get(key)) is None:
                self._unknown(key, fields, path)
            else:
                found[field.attribute] = self.value(field.hint, value, (*path, key), field.bounds)
        self._missing(fields, table, path)
        if any(value is _BAD for value in found.values()):
            return _BAD
        return self._made(cls, found, path)

    def value(self, hint: Any, value: object, path: KeyPath, bounds: Bounds) -> object:
        """A value of any type that a setting may have, or `_BAD`."""
        origin = typing.get_origin(hint)
        if hint is Any or hint is object:
            return value
        if origin is Literal:
            return self._literal(typing.get_args(hint), value, path)
        if origin is not None:
            return self._generic(origin)(hint, value, path, bounds)
        if dataclasses.is_dataclass(hint):
            return self.table(typing.cast(type[Any], hint), value, path)
        return self._bounded(self._scalar(hint, value, path), path, bounds)

    def _generic(self, origin: Any) -> Callable[[Any, object, KeyPath, Bounds], object]:
        if origin is typing.Union or origin is types.UnionType:
            return self._union
        return self._mapping if origin in _MAPPINGS else self._array

    def _scalar(self, hint: Any, value: object, path: KeyPath) -> object:
        if hint is Duration and isinstance(value, str):
            try:
                return Duration.parse(value)
            except ValueError as fault:
                return self._report("value", path, str(fault))
        if hint is Path and isinstance(value, str):
            return Path(value)
        if hint is float and type(value) in (int, float):
            number = float(typing.cast(float, value))
            return number if math.isfinite(number) else self._report("value", path, f"{value!r} is not a finite number")
        # `type is`, since TOML's booleans are Python's integers too
        if type(value) is hint:
            return value
        return self._wrong(value, type_name(hint), path)

    def _bounded(self, value: object, path: KeyPath, bounds: Bounds) -> object:
        if value is _BAD:
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            if bounds.ge is not None and value < bounds.ge:
                return self._report(
                    "value", path, f"'{value}' is out of range, wanted at least {_bound(value, bounds.ge)}"
                )
            if bounds.le is not None and value > bounds.le:
                return self._report(
                    "value", path, f"'{value}' is out of range, wanted at most {_bound(value, bounds.le)}"
                )
        if bounds.choices is not None and value not in bounds.choices:
            return self._choice(value, bounds.choices, path)
        return value

    def _choice(self, value: object, choices: Sequence[object], path: KeyPath) -> object:
        listed = ", ".join(repr(choice) for choice in choices if choice != "")
        hint = did_you_mean(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
        return self._report("value", path, f"{value!r} is not one of {listed}{hint}")

    def _literal(self, choices: Sequence[object], value: object, path: KeyPath) -> object:
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return value
        if not any(type(value) is type(choice) for choice in choices):
            return self._wrong(value, "one of " + ", ".join(map(repr, choices)), path)
        return self._choice(value, choices, path)

    def _union(self, hint: Any, value: object, path: KeyPath, bounds: Bounds) -> object:
        members = [member for member in typing.get_args(hint) if member is not types.NoneType]
        if len(members) == 1:
            return self.value(members[0], value, path, bounds)
        for member in members:
            attempt = _Decoder(self._strict)
            result = attempt.value(member, value, path, bounds)
            if not any(problem.kind == "type" and problem.key == path for problem in attempt.problems):
                self.problems += attempt.problems
                return result
        return self._wrong(value, type_name(hint), path)

    def _array(self, hint: Any, value: object, path: KeyPath, bounds: Bounds) -> object:
        if not isinstance(value, list | tuple):
            return self._wrong(value, type_name(hint), path)
        element = (*typing.get_args(hint), Any)[0]
        found = [self.value(element, item, (*path, index), bounds) for index, item in enumerate(value)]
        if any(item is _BAD for item in found):
            return _BAD
        return tuple(found) if typing.get_origin(hint) is tuple else found

    def _mapping(self, hint: Any, value: object, path: KeyPath, bounds: Bounds) -> object:
        if not isinstance(value, Mapping):
            return self._wrong(value, type_name(hint), path)
        element = typing.get_args(hint)[1]
        found = {key: self.value(element, item, (*path, key), bounds) for key, item in value.items()}
        return _BAD if any(item is _BAD for item in found.values()) else found

    def _made(self, cls: type[Any], found: dict[str, object], path: KeyPath) -> object:
        try:
            return cls(**found)
        except (ValueError, InvalidArgument) as fault:
            return self._report("value", path, str(fault))
        except TypeError:
            if any(problem.kind == "missing" for problem in self.problems):
                return _BAD
            raise

    def _missing(self, fields: Mapping[str, _Field], table: Mapping[str, object], path: KeyPath) -> None:
        for name, field in fields.items():
            if name not in table and _required(field.field):
                self._report("missing", (*path, name), f"missing, wanted {type_name(field.hint)}")

    def _unknown(self, key: str, fields: Mapping[str, _Field], path: KeyPath) -> None:
        level: Level = "error" if self._strict else "warning"
        self.problems.append(Problem(level, (*path, key), f"unknown key{did_you_mean(key, fields)}", "unknown"))

    def _wrong(self, value: object, wanted: str, path: KeyPath) -> object:
        return self._report("type", path, f"{_shown(value)}, wanted {wanted}")

    def _report(self, kind: Kind, path: KeyPath, message: str) -> object:
        self.problems.append(Problem("error", path, message, kind))
        return _BAD


_MAPPINGS = (dict, Mapping)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _bound(value: object, bound: float) -> str:
    return str(Duration(bound)) if isinstance(value, Duration) else str(bound)


def _shown(value: object) -> str:
    name = _value_type(value)
    if name in {"a table", "an array"}:
        return f"this is {name}"
    # booleans and dates as TOML writes them
    text = repr(value) if isinstance(value, str | int | float) else str(value)
    text = text.lower() if isinstance(value, bool) else text
    return f"{text if len(text) <= 60 else text[:57] + '...'} is {name}"


def _value_type(value: object) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "an array"}
    if isinstance(value, Mapping):
        return "a table"
    return names.get(type(value), "a date or time")


def did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    """`, did you mean 'x'?` for the known name closest to a wrong one, or nothing."""
    import difflib  # only for faults

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


# --- writing and describing ------------------------------------------------------------------------------------------


def encode(value: object) -> dict[str, Any]:
    """The TOML table of a config dataclass; settings that are None are left out."""
    return {
        field.name: _plain(content)
        for field in _fields(type(value)).values()
        if (content := getattr(value, field.attribute)) is not None
    }


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value):
        return encode(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Duration | Path):
        return str(value)
    return value


def fields_of(cls: type[Any]) -> tuple[FieldInfo, ...]:
    """Every setting of a config dataclass in order of declaration."""
    return tuple(_info(field) for field in _fields(cls).values())


def _info(field: _Field) -> FieldInfo:
    default = field.field.default
    if field.field.default_factory is not dataclasses.MISSING:
        default = field.field.default_factory()
    required = _required(field.field)
    nested, keyed = _nested(field.hint)
    return FieldInfo(
        field.name,
        type_name(field.hint, article=False),
        None if required else _plain(default),
        field.bounds.doc,
        required,
        nested,
        keyed,
        field.bounds,
        field.hint,
    )


def _nested(hint: Any) -> tuple[type[Any] | None, bool]:
    """The dataclass behind a table or a table of tables."""
    origin = typing.get_origin(hint)
    if origin is typing.Union or origin is types.UnionType:
        members = [member for member in typing.get_args(hint) if member is not types.NoneType]
        return _nested(members[0]) if len(members) == 1 else (None, False)
    if origin in _MAPPINGS:
        element = typing.get_args(hint)[1]
        return _dataclass(element), _dataclass(element) is not None
    return _dataclass(hint), False


def _dataclass(hint: Any) -> type[Any] | None:
    return typing.cast(type[Any], hint) if dataclasses.is_dataclass(hint) else None


_NAMES: Mapping[Any, tuple[str, str]] = types.MappingProxyType(
    {
        bool: ("a", "boolean"),
        int: ("an", "integer"),
        float: ("a", "number"),
        str: ("a", "string"),
        Path: ("a", "path"),
        Duration: ("a", "duration"),
        Any: ("any", "value"),
    }
)
_EXAMPLES: Mapping[Any, str] = types.MappingProxyType({Duration: " such as '10s'"})


def type_name(hint: Any, *, article: bool = True) -> str:
    """How a fault or a page of documentation calls a type: `an integer`, `list of strings`, `'a' or 'b'`."""
    origin = typing.get_origin(hint)
    if origin is None:
        before, name = _NAMES.get(hint, ("a", "table"))
        return f"{before} {name}{_EXAMPLES.get(hint, '')}" if article else name
    if origin is Literal:
        return ("one of " if article else "") + " or ".join(map(repr, typing.get_args(hint)))
    if origin is typing.Union or origin is types.UnionType:
        members = [member for member in typing.get_args(hint) if member is not types.NoneType]
        return " or ".join(type_name(member, article=article) for member in members)
    if origin is list or origin is tuple:
        element = (*typing.get_args(hint), Any)[0]
        return ("a " if article else "") + f"list of {type_name(element, article=False)}s"
    element = type_name(typing.get_args(hint)[1], article=False)
    return ("a " if article else "") + ("table" if element == "value" else f"table of {element}s")
