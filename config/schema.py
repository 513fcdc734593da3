"""JSON schema of the configuration file at version 4, made from the config dataclasses."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from moored.config.main_section import Main
from moored.kernel.config import Bounds, FieldInfo, fields_of
from moored.kernel.duration import Duration

# Go's notation; a lone 0 needs no unit
DURATION_PATTERN = "^[-+]?(0|(([0-9]+(\\.[0-9]*)?|\\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$"

_SIMPLE: Mapping[Any, Mapping[str, Any]] = types.MappingProxyType(
    {
        bool: {"type": "boolean"},
        int: {"type": "integer"},
        float: {"type": "number"},
        str: {"type": "string"},
        Path: {"type": "string"},
        Duration: {"type": "string", "pattern": DURATION_PATTERN},
        Any: {},
    }
)


def json_schema(classes: Mapping[str, type[Any] | None]) -> dict[str, Any]:
    """The schema of a whole file; sections of plugins that are not in `classes` are free."""
    schema = _table(Main)
    sections = {uri: _table(cls) if cls is not None else _empty() for uri, cls in sorted(classes.items())}
    schema["properties"]["plugins"] = {"type": "object", "properties": sections}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "moored configuration", **schema}


def _empty() -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False}


def _table(cls: type[Any]) -> dict[str, Any]:
    fields = fields_of(cls)
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {field.name: _field(field) for field in fields},
        "additionalProperties": False,
    }
    if required := [field.name for field in fields if field.required]:
        schema["required"] = required
    return schema


def _field(field: FieldInfo) -> dict[str, Any]:
    schema = _type(field.hint, field.bounds)
    if field.doc:
        schema["description"] = field.doc
    if field.default is not None:
        schema["default"] = field.default
    return schema


def _type(hint: Any, bounds: Bounds) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union or origin is types.UnionType:
        members = [_type(member, bounds) for member in args if member is not types.NoneType]
        return members[0] if len(members) == 1 else {"anyOf": members}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is list or origin is tuple:
        return {"type": "array", "items": _type((*args, Any)[0], bounds)}
    if origin in {dict, Mapping}:
        return {"type": "object", "additionalProperties": _type(args[1], bounds)}
    if dataclasses.is_dataclass(hint):
        return _table(typing.cast(type[Any], hint))
    return {**_SIMPLE[hint], **_limits(hint, bounds)}


def _limits(hint: Any, bounds: Bounds) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if hint in {int, float}:
        limits = {"minimum": bounds.ge, "maximum": bounds.le}
    if bounds.choices is not None:
        limits["enum"] = list(bounds.choices)
    return {key: value for key, value in limits.items() if value is not None}
