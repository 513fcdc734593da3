"""Loads the daemon's configuration: main file, imports, flags; everything that is wrong is collected, not raised.

The main file and every file that it imports are migrated to version 4 one by one and merged in the order of a queue,
later ones winning; flags win over files. Without an `imports` key `conf.d/*.toml` beside the main file is read; at the
daemon's default path also with one, unless it is empty.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from moored.config.main_section import DEFAULT_CONFIG, DEFAULT_IMPORTS, Main, defaults
from moored.config.merge import merge
from moored.config.migrate import VERSION, migrate, version_of
from moored.config.migrations.draft import Note
from moored.config.origin import DEFAULT, Node, Origin, Ref, grow
from moored.config.source import BadToml, Document, read
from moored.kernel.config import KeyPath, Kind, Level, decode
from moored.kernel.errors import InvalidArgument

T = TypeVar("T")

GRPC_ADDRESS = ("plugins", "io.containerd.server.v1.grpc", "address")
TTRPC_ADDRESS = ("plugins", "io.containerd.server.v1.ttrpc", "address")


class Flags(NamedTuple):
    """What the command line says over the files; None says nothing. Relative folders are made absolute."""

    root: str | None = None
    state: str | None = None
    address: str | None = None
    log_level: str | None = None


NO_FLAGS = Flags()


class Finding(NamedTuple):
    """A problem with its place."""

    level: Level
    key: KeyPath
    message: str
    origin: Origin
    kind: Kind = "value"


@dataclass(frozen=True, slots=True)
class LoadedFile:
    """A file that was read: as what version, and what its migration did."""

    document: Document
    version: int
    notes: tuple[Note, ...] = ()
    imported: bool = False

    @property
    def path(self) -> Path:
        """Where it was read from, absolute."""
        return self.document.path

    @property
    def sha256(self) -> str:
        """Digest of what was read."""
        return self.document.sha256

    @property
    def mtime_ns(self) -> int:
        """Time of the file's last change when it was read."""
        return self.document.mtime_ns


@dataclass(slots=True)
class Loaded:
    """The merged configuration at version 4 with the place of every value and all problems found.

    `node` holds what files and flags say and the defaults that files add to; `main` is None while a problem is an
    error that concerns the top level.
    """

    path: Path
    node: Node
    files: tuple[LoadedFile, ...]
    strict: bool
    main: Main | None = None
    problems: list[Finding] = field(default_factory=list)

    @property
    def tree(self) -> dict[str, Any]:
        """The values as plain dicts, a copy."""
        plain: dict[str, Any] = self.node.plain()
        return plain

    @property
    def ok(self) -> bool:
        """Whether the daemon may start with it."""
        return all(problem.level != "error" for problem in self.problems)

    def origin(self, key: KeyPath) -> Origin:
        """Where a value comes from; `default` when nothing sets it."""
        if self.node.at(*key[:1]) is None or (self.node.at(*key) is None and not self._inside_list(key)):
            return Origin()
        return self.node.origin(key)

    def place(self, key: KeyPath) -> Origin:
        """Where to look for a key, set or not: its own place or that of the nearest table, or the main file."""
        while key:
            if (origin := self.origin(key)).file or origin.label != "default":
                return origin
            key = key[:-1]
        return Origin(str(self.path)) if self.files else Origin()

    def section(self, uri: str) -> dict[str, Any]:
        """A copy of `[plugins."uri"]`; empty when no file has it."""
        node = self.node.at("plugins", uri)
        plain = node.plain() if node is not None else {}
        return plain if isinstance(plain, dict) else {}

    def decode_plugin(self, uri: str, cls: type[T]) -> tuple[T | None, list[Finding]]:
        """A plugin's config with defaults for what no file sets, None when a finding is an error."""
        node = self.node.at("plugins", uri)
        table = node.plain() if node is not None else {}
        value, problems = decode(cls, table, path=("plugins", uri), strict=self.strict)
        return value, [Finding(p.level, p.key, p.message, self.place(p.key), p.kind) for p in problems]

    def report(self, level: Level, key: KeyPath, message: str, kind: Kind = "value") -> None:
        """Add a problem at a key's place."""
        self.problems.append(Finding(level, key, message, self.place(key), kind))

    def _inside_list(self, key: KeyPath) -> bool:
        return any(
            node is not None and isinstance(node.value, list)
            for node in (self.node.at(*key[:length]) for length in range(1, len(key)))
        )


def load(path: str | Path = DEFAULT_CONFIG, *, explicit: bool, flags: Flags = NO_FLAGS) -> Loaded:
    """Read everything and check what needs no plugin; `moored.config.check.check_plugins` does the rest.

    A main file that is not there is an error only when it was asked for (`explicit`). Never raises for what files hold.
    """
    reader = _Reader(Path(os.path.abspath(path)), explicit)  # noqa: PTH100 - Path.absolute keeps ".."
    reader.run()
    node = _with_flags(reader.tree, flags)
    node = _with_ttrpc(node)
    loaded = Loaded(reader.main, node, tuple(reader.files), reader.strict, problems=reader.problems)
    from moored.config.check import check_main

    check_main(loaded)
    return loaded


def load_text(text: str, *, path: str = "config.toml", flags: Flags = NO_FLAGS) -> Loaded:
    """The same for one text without imports, to check a configuration that no file holds yet."""
    reader = _Reader(Path(path), explicit=True)
    reader.take_bytes(text.encode())
    loaded = Loaded(
        reader.main,
        _with_ttrpc(_with_flags(reader.tree, flags)),
        tuple(reader.files),
        reader.strict,
        problems=reader.problems,
    )
    from moored.config.check import check_main

    check_main(loaded)
    return loaded


class _Reader:
    """Walks the queue of files."""

    def __init__(self, main: Path, explicit: bool) -> None:
        self.main = main
        self.tree = grow(defaults())
        self.files: list[LoadedFile] = []
        self.problems: list[Finding] = []
        self.strict = True
        self._explicit = explicit
        self._main_version = VERSION
        self._queue: deque[tuple[Path, Ref]] = deque()
        self._seen: set[Path] = set()

    def run(self) -> None:
        """Read the main file and all that is imported."""
        if not self._explicit and not self.main.exists():
            self._queue_imports(self.main, list(DEFAULT_IMPORTS), DEFAULT)
        else:
            self._queue.append((self.main, Ref(label=str(self.main))))
        while self._queue:
            path, wanted_by = self._queue.popleft()
            if path not in self._seen:
                self._seen.add(path)
                self._file(path, wanted_by)

    def take_bytes(self, data: bytes) -> None:
        """Take one text as the main file, without its imports."""
        try:
            self._document(Document(self.main, data), follow=False)
        except BadToml as fault:
            self._bad_toml(fault)

    def _file(self, path: Path, wanted_by: Ref) -> None:
        try:
            self._document(read(path))
        except BadToml as fault:
            self._bad_toml(fault)
        except OSError as fault:
            reason = (fault.strerror or str(fault)).lower()
            what = f"file {str(path)!r} cannot be read: {reason}"
            self._error(("imports",) if path != self.main else (), what, wanted_by.origin())

    def _document(self, document: Document, *, follow: bool = True) -> None:
        is_main = document.path == self.main
        tree = grow(document.values, document)
        if is_main:
            self.strict = tree.at("strict") is None or document.values["strict"] is not False
        elif tree.at("strict") is not None:
            self._warn(("strict",), "ignored, only the main file's 'strict' counts", tree)
            tree = Node({key: node for key, node in tree.value.items() if key != "strict"}, tree.ref)
        self._migrated(document, tree, is_main)
        if follow:
            self._imports(document, tree, is_main)

    def _migrated(self, document: Document, tree: Node, is_main: bool) -> None:
        try:
            version = version_of(tree)
        except InvalidArgument as fault:
            self._error(("version",), str(fault), tree.origin(("version",)))
            return
        self._check_version(version, tree, is_main)
        if self._plugins_broken(tree):
            return
        newest, notes = migrate(tree)
        self.files.append(LoadedFile(document, version, notes, imported=not is_main))
        for note in notes:
            if note.level == "warning":
                self.problems.append(Finding("warning", note.key, note.message, note.ref.origin()))
        self.tree = merge(self.tree, newest)

    def _check_version(self, version: int, tree: Node, is_main: bool) -> None:
        if is_main:
            self._main_version = version
        elif version > self._main_version:
            message = f"version '{version}' is above the main file's '{self._main_version}', each is migrated by itself"
            self._warn(("version",), message, tree)

    def _plugins_broken(self, tree: Node) -> bool:
        """Whether `[plugins]` or a section in it is no table, which migrations need."""
        plugins = tree.at("plugins")
        if plugins is None:
            return False
        nodes: dict[KeyPath, Node] = {("plugins",): plugins}
        nodes |= {("plugins", key): node for key, node in (plugins.table or {}).items()}
        wrong = [key for key, node in nodes.items() if node.table is None]
        for key in wrong:
            from moored.config.toml import value_text

            self._error(key, f"{value_text(nodes[key].value)} is not a table", tree.origin(key), "type")
        return bool(wrong)

    def _imports(self, document: Document, tree: Node, is_main: bool) -> None:
        given = document.values.get("imports")
        patterns = [item for item in given if isinstance(item, str)] if isinstance(given, list) else []
        if is_main:
            at_default = not self._explicit or str(self.main) == DEFAULT_CONFIG
            if given is None or (at_default and patterns):
                patterns = [*DEFAULT_IMPORTS, *patterns]
        self._queue_imports(document.path, patterns, Ref(document, ("imports",)))

    def _queue_imports(self, parent: Path, patterns: list[str], wanted_by: Ref) -> None:
        for pattern in patterns:
            whole = os.path.normpath(parent.parent / pattern)
            if "*" not in pattern:
                self._queue.append((Path(whole), wanted_by))
                continue
            import glob

            self._queue.extend((Path(match), wanted_by) for match in sorted(glob.glob(whole, include_hidden=True)))  # noqa: PTH207

    def _bad_toml(self, fault: BadToml) -> None:
        self._error((), fault.reason, Origin(str(fault.path), fault.line, column=fault.column))

    def _error(self, key: KeyPath, message: str, origin: Origin, kind: Kind = "value") -> None:
        self.problems.append(Finding("error", key, message, origin, kind))

    def _warn(self, key: KeyPath, message: str, tree: Node) -> None:
        self.problems.append(Finding("warning", key, message, tree.origin(key)))


def _with_flags(tree: Node, flags: Flags) -> Node:
    """Flags replace what files say."""
    for key, name, value in (
        (("root",), "--root", _absolute(flags.root)),
        (("state",), "--state", _absolute(flags.state)),
        (GRPC_ADDRESS, "--address", flags.address),
        (("debug", "level"), "--log-level", flags.log_level),
    ):
        if value is not None:
            tree = _set(tree, key, Node(value, Ref(label=f"flag {name}")))
    return tree


def _with_ttrpc(tree: Node) -> Node:
    """The ttrpc address follows the gRPC one unless a file sets it."""
    grpc, ttrpc = tree.at(*GRPC_ADDRESS), tree.at(*TTRPC_ADDRESS)
    if grpc is None or not isinstance(grpc.value, str) or not grpc.value:
        return tree
    # a value that a migration took from [grpc] address was not set by anybody
    if ttrpc is not None and ttrpc.ref.path != ("grpc", "address"):
        return tree
    return _set(tree, TTRPC_ADDRESS, Node(f"{grpc.value}.ttrpc", grpc.ref))


def _set(tree: Node, path: tuple[str, ...], leaf: Node) -> Node:
    """A tree with one more leaf; the tables on the way are copied."""
    if not path:
        return leaf
    table = dict(tree.table or {})
    table[path[0]] = _set(table.get(path[0], Node({}, leaf.ref)), path[1:], leaf)
    return Node(table, tree.ref)


def _absolute(path: str | None) -> str | None:
    return os.path.abspath(path) if path else path  # noqa: PTH100 - Path.absolute keeps ".."
