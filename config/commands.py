"""`moored config default|dump|check|migrate` behind their arguments; each gives the exit code.

`args` is a namespace with `config` (path or None for the default), `root`, `state`, `address`, `log_level` (None where
not given) and for dump `origin`; absent attributes count as not given. `write` takes pieces of text for standard
output, `classes` maps every installed plugin's URI to its config class or None.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

from moored.config.check import check_plugins
from moored.config.dump import Classes, default_toml, dump_origin, migrate_text
from moored.config.dump import dump as dump_text
from moored.config.load import Finding, Flags, Loaded, LoadedFile, load
from moored.config.main_section import DEFAULT_CONFIG
from moored.config.migrate import VERSION
from moored.config.report import report
from moored.kernel.errors import InvalidArgument

Write = Callable[[str], object]
T = TypeVar("T")


def default(args: Any, write: Write, classes: Classes) -> int:
    """Write the commented default file."""
    del args
    write(default_toml(classes))
    return 0


def dump(args: Any, write: Write, classes: Classes, known: Collection[str] = ()) -> int:
    """Write what would be in effect, with `args.origin` the place of each value; 1 and the problems on errors."""
    loaded, _ = _load(args, classes, known)
    if not loaded.ok:
        write(report(loaded.problems))
        return 1
    write(dump_origin(loaded, classes) if _arg(args, "origin") else dump_text(loaded, classes))
    return 0


def check(args: Any, write: Write, classes: Classes, known: Collection[str] = ()) -> int:
    """Write every problem and what each file's migration would move; 1 when a problem is an error."""
    loaded, problems = _load(args, classes, known)
    shown: list[Finding] = []
    for file in loaded.files:
        own = [problem for problem in problems if problem.origin.file == str(file.path)]
        write(f"{file.path}: {_verdict(own)}\n")
        write(report(own))
        _write_notes(file, write)
        shown += own
    write(report(problem for problem in problems if problem not in shown))
    if not loaded.files and loaded.ok:
        write(f"{loaded.path}: not there, defaults apply\n")
    return 0 if loaded.ok else 1


def migrate(args: Any, write: Write, classes: Classes) -> int:
    """Write the main file alone at the newest version, with what was lost in comments above; 1 if it cannot be read."""
    del classes
    path = _arg(args, "config") or DEFAULT_CONFIG
    try:
        text, file = migrate_text(path)
    except InvalidArgument as fault:
        write(f"{fault}\n" if str(fault).startswith(str(path)) else f"{path}: {fault}\n")
        return 1
    except OSError as fault:
        write(f"{path}: {(fault.strerror or str(fault)).lower()}\n")
        return 1
    for note in file.notes:
        if note.level == "warning":
            write(f"# {note.ref.origin()}: {_key_and(note.key, note.message)}\n")
    write(text)
    return 0


def _load(args: Any, classes: Classes, known: Collection[str]) -> tuple[Loaded, list[Finding]]:
    path = _arg(args, "config")
    flags = Flags(_arg(args, "root"), _arg(args, "state"), _arg(args, "address"), _arg(args, "log_level"))
    loaded = load(path or DEFAULT_CONFIG, explicit=path is not None, flags=flags)
    check_plugins(loaded, classes, known)
    return loaded, loaded.problems


def _verdict(own: Iterable[Finding]) -> str:
    levels = [finding.level for finding in own]
    errors, warnings = levels.count("error"), levels.count("warning")
    if not levels:
        return "ok"
    counts = [_count(errors, "error")] * bool(errors) + [_count(warnings, "warning")] * bool(warnings)
    return ", ".join(counts if errors else ["ok", *counts])


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _write_notes(file: LoadedFile, write: Write) -> None:
    if file.version == VERSION:
        return
    moved = [note for note in file.notes if note.level == "note"]
    write(f"{file.path}: version {file.version}, read as version {VERSION}{':' if moved else ''}\n")
    for note in moved:
        write(f"  {note.ref.origin()}: {note.message}\n")


def _key_and(key: tuple[str | int, ...], message: str) -> str:
    from moored.config.origin import dotted

    return f"{dotted(key)}: {message}"


def _arg(args: Any, name: str) -> Any:
    return getattr(args, name, None)
