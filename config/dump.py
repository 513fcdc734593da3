"""Shows configuration: what is in effect with the place of each value, the commented default file, a migrated file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moored.config.load import Loaded, LoadedFile
from moored.config.main_section import Main
from moored.config.migrate import VERSION, migrate, version_of
from moored.config.origin import Origin, dotted, grow
from moored.config.source import read
from moored.config.toml import write
from moored.kernel.config import FieldInfo, encode, fields_of

Classes = Mapping[str, type[Any] | None]


def effective(loaded: Loaded, classes: Classes) -> dict[str, Any]:
    """All that is in effect: files, flags and defaults; as written where a section cannot be decoded."""
    tree = loaded.tree if loaded.main is None else encode(loaded.main)
    plugins = dict(loaded.tree.get("plugins", {}))
    for uri, cls in classes.items():
        if cls is not None:
            value, _ = loaded.decode_plugin(uri, cls)
            plugins[uri] = loaded.section(uri) if value is None else encode(value)
    return {**tree, "version": VERSION, "plugins": dict(sorted(plugins.items()))}


def dump(loaded: Loaded, classes: Classes) -> str:
    """The effective configuration as TOML."""
    return write(effective(loaded, classes))


def dump_origin(loaded: Loaded, classes: Classes) -> str:
    """The same with each value's place behind it: `# /etc/moored/config.toml:12`, `# default`, `# flag --root`."""
    return write(effective(loaded, classes), behind=lambda path: str(loaded.origin(path)))


def values(loaded: Loaded, classes: Classes) -> list[tuple[str, Any, Origin]]:
    """Every effective value as (dotted key, JSON value, place); dates become text, an empty table stays a value."""
    found: list[tuple[str, Any, Origin]] = []
    _walk(effective(loaded, classes), (), lambda path, value: found.append((dotted(path), value, loaded.origin(path))))
    return found


def _walk(value: Any, path: tuple[str, ...], take: Callable[[tuple[str, ...], Any], None]) -> None:
    if isinstance(value, Mapping) and (value or not path):
        for key, item in value.items():
            _walk(item, (*path, key), take)
    else:
        take(path, _json(value))


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json(item) for item in value]
    return value if isinstance(value, str | int | float) else value.isoformat()


# --- the default file ------------------------------------------------------------------------------------------------


def default_toml(classes: Classes) -> str:
    """A file that says every default, each under its documentation; unset settings stand in comments."""
    tree = encode(Main())
    tree["plugins"] = {uri: _defaults(cls) for uri, cls in sorted(classes.items()) if cls is not None}
    docs = _docs(Main, ())
    for uri, cls in classes.items():
        if cls is not None:
            docs.update(_docs(cls, ("plugins", uri)))
            docs["plugins", uri] = _unset(cls, _summary(cls))
    docs = {path: text for path, text in docs.items() if path != ("plugins",)}
    return write(tree, above=lambda path: docs.get(path, ""))


def _defaults(cls: type[Any]) -> dict[str, Any]:
    return {
        field.name: _defaults(field.nested) if field.nested and not field.keyed and field.default else field.default
        for field in fields_of(cls)
        if not field.required and field.default is not None
    }


def _docs(cls: type[Any], path: tuple[str, ...]) -> dict[tuple[str, ...], str]:
    docs = {}
    for field in fields_of(cls):
        docs[*path, field.name] = field.doc
        if field.nested is not None and not field.keyed:
            docs.update(_docs(field.nested, (*path, field.name)))
            docs[*path, field.name] = _unset(field.nested, field.doc)
        elif field.nested is not None:
            for name in field.default or {}:
                docs.update(_docs(field.nested, (*path, field.name, name)))
    return docs


def _unset(cls: type[Any], text: str) -> str:
    """The documentation of a table, with its settings that have no default value."""
    unset = [field for field in fields_of(cls) if field.default is None]
    return "\n".join([*text.splitlines(), *(_unset_line(field) for field in unset)])


def _unset_line(field: FieldInfo) -> str:
    return f"{field.name}: {field.doc} ({field.type_text}, {'required' if field.required else 'not set'})"


def _summary(cls: type[Any]) -> str:
    """The first line of a class's docstring, unless it only names the section."""
    doc = (cls.__doc__ or "").strip().splitlines()
    return "" if not doc or doc[0].startswith((cls.__name__ + "(", "[plugins.")) else doc[0]


# --- one file, migrated ----------------------------------------------------------------------------------------------


def migrate_text(path: str | Path) -> tuple[str, LoadedFile]:
    """One file at version 4, without its imports and without comments, and what was moved.

    Raises OSError, and InvalidArgument (BadToml among them) for a file that cannot be read as configuration.
    """
    document = read(Path(path))
    tree = grow(document.values, document)
    newest, notes = migrate(tree)
    plain = {"version": VERSION, **{key: value for key, value in newest.plain().items() if key != "version"}}
    return write(plain), LoadedFile(document, version_of(tree), notes)
