"""Writes `docs/config-reference.md`: every setting of the main file and of the plugins that this checkout ships.

    python contrib/dev/configdoc.py            write it, print whether it changed
    python contrib/dev/configdoc.py --check    write nothing; exit 1 where the committed one differs

Settings come from the dataclasses that the daemon decodes, plugins from the entry points of pyproject.toml; what else
is installed does not matter.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "contrib" / "dev"))

from moored.config.main_section import PROXY_TYPES, Main  # noqa: E402
from moored.kernel.config import FieldInfo, fields_of  # noqa: E402
from moored.kernel.duration import Duration  # noqa: E402
from moored.kernel.plugin import ENTRY_POINT_GROUP, Registration, split_uri  # noqa: E402

TARGET = ROOT / "docs" / "config-reference.md"
HEAD = """# Every setting

Written by `make docs` from the daemon's own definitions; `moored config default` prints the same for all installed
plugins, those of others included. [config.md](config.md) says how files are found, merged and checked.

A duration is a text such as `"1m30s"`. A setting with the default *none* may be left out and then means what its text
says; a *required* one may not. Other defaults in italics depend on the host.
"""
HOSTS = {os.geteuid: "the daemon's user", os.getegid: "the daemon's group"}
"""Defaults that the host gives, by their factories."""
HEADINGS = ("key", "type", "default", "meaning")
_QUOTED = re.compile(r"'([^']*)'")
_PLATFORM = re.compile(r'"linux/[a-z0-9]+"')


def registrations() -> list[Registration[Any, Any]]:
    """All plugins of pyproject.toml, by URI."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for _, value in sorted(project["entry-points"][ENTRY_POINT_GROUP].items()):
        module, _, attribute = value.partition(":")
        found.append(getattr(importlib.import_module(module), attribute))
    return found


def document() -> str:
    """The whole page."""
    parts = [HEAD, "## The main file\n", *_main()]
    plugins = registrations()
    kind = ""
    for one in plugins:
        if one.config is None or not fields_of(one.config):
            continue
        if split_uri(one.uri)[0] != kind:
            kind = split_uri(one.uri)[0]
            parts.append(f"## {kind}\n")
        parts.append(f'### `[plugins."{one.uri}"]`\n')
        parts.append(f"{_sentence(one.summary)}\n")
        parts += _section(one.config, f'plugins."{one.uri}"')
    parts.append("## Plugins without settings\n")
    parts.append("".join(f"- `{one.uri}`: {one.summary}\n" for one in plugins if one.config is None))
    return "\n".join(parts)


def _main() -> Iterator[str]:
    nested = [info for info in fields_of(Main) if info.nested is not None]
    plain = [pair for pair in _pairs(Main) if pair[0].nested is None and pair[0].name not in {"plugins", "timeouts"}]
    yield _table(plain)
    for info in nested:
        assert info.nested is not None
        yield f"### `[{info.name}{'.NAME' if info.keyed else ''}]`\n"
        yield f"{_sentence(info.doc)}\n"
        yield _table(_pairs(info.nested))
        if info.name == "proxy_plugins":
            words = ", ".join(f"`{word}` (`{uri}`)" for word, uri in PROXY_TYPES.items())
            yield f"`type` is one of {words}.\n"
        elif info.keyed and info.default:
            yield "There are unless overwritten: " + ", ".join(f"`{name}`" for name in info.default) + ".\n"
    timeouts = next(info for info in fields_of(Main) if info.name == "timeouts")
    yield "### `[timeouts]`\n"
    yield f"{_sentence(timeouts.doc)} Names that are not listed here are kept for the plugins that know them.\n"
    yield _rows(("name", "default"), [(f"`{name}`", f"`{_toml(value)}`") for name, value in timeouts.default.items()])


def _section(cls: type[Any], path: str) -> Iterator[str]:
    """The table of a config class, and those of the tables in it."""
    pairs = _pairs(cls)
    yield _table(pairs)
    for info, _ in pairs:
        inner = info.nested or _listed(info.hint)
        if inner is None:
            continue
        place = f"{path}.{info.name}{'.NAME' if info.keyed else ''}"
        yield f"#### `{f'[{place}]' if info.nested else f'[[{place}]]'}`\n"
        yield from _section(inner, place)


def _listed(hint: Any) -> type[Any] | None:
    """The dataclass in a list of tables."""
    for part in (hint, *getattr(hint, "__args__", ())):
        for element in getattr(part, "__args__", ()):
            if isinstance(element, type) and dataclasses.is_dataclass(element):
                return element
    return None


def _pairs(cls: type[Any]) -> list[tuple[FieldInfo, dataclasses.Field[Any]]]:
    return list(zip(fields_of(cls), dataclasses.fields(cls), strict=True))


def _table(pairs: Sequence[tuple[FieldInfo, dataclasses.Field[Any]]]) -> str:
    return _rows(HEADINGS, [(f"`{info.name}`", _type(info), _default(info, field), info.doc) for info, field in pairs])


def _rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _type(info: FieldInfo) -> str:
    text = info.type_text
    if _listed(info.hint) is not None:
        text = "list of tables"
    bounds = info.bounds
    if bounds.choices is not None:
        return f"one of {', '.join(f'`{_toml(choice)}`' for choice in bounds.choices)}"
    limits = [
        f"{word} {_limit(info, value)}"
        for word, value in (("at least", bounds.ge), ("at most", bounds.le))
        if value is not None
    ]
    return ", ".join([_QUOTED.sub(r'`"\1"`', text), *limits])


def _limit(info: FieldInfo, value: float) -> str:
    return str(Duration(value)) if info.hint is Duration else f"{value:g}" if value < 1e6 else str(int(value))


def _default(info: FieldInfo, field: dataclasses.Field[Any]) -> str:
    if info.required:
        return "*required*"
    if field.default_factory in HOSTS:
        return f"*{HOSTS[field.default_factory]}*"
    if info.default is None:
        return "*none*"
    if info.nested is not None:
        return "*below*"
    text = _toml(info.default)
    if _PLATFORM.search(text):
        return "*the host's*"
    return f"`{text}`"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f'"{key}" = {_toml(item)}' for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Write or compare the page; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the committed page differs")
    options = parser.parse_args(argv)
    text = document()
    old = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
    if text == old:
        return 0
    if options.check:
        print(f"{TARGET.relative_to(ROOT)} is not what the definitions say, run 'make docs'", file=sys.stderr)
        return 1
    TARGET.write_text(text, encoding="utf-8")
    print(f"wrote {TARGET.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
