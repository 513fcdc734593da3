"""Writes `moored/api/client/sync.py`, the client library's sync twin, from the asynchronous classes; --check compares.

Each public method of a class in TWINS gets one of the same name, signature and docstring that passes the call through
the portal. What the annotations say decides how: coroutines are awaited, asynchronous iterators become iterators,
context managers context managers, and objects of these classes their twins.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import re
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
CLIENT = CHECKOUT / "api" / "client"
TARGET = CLIENT / "sync.py"
TWINS = {
    "stdio": ("Output", "Input"),
    "server": ("Server", "Daemon"),
    "namespaces": ("Namespaces",),
    "images": ("Images",),
    "content": ("Reader", "Writer", "Content"),
    "leases": ("Leases",),
    "snapshots": ("Snapshots",),
    "diffs": ("Diffs",),
    "events": ("Events",),
    "tasks": ("Process", "Task"),
    "containers": ("Container", "Containers"),
    "sandboxes": ("Sandbox", "Sandboxes"),
    "mounts": ("Mounts",),
    "client": ("Client",),
}
NAMES = {name for names in TWINS.values() for name in names}
HEAD = '''"""The client library for programs without an event loop: the same classes and methods, whose calls wait.

    from moored.api.client.sync import Client

    with Client() as client:
        for image in client.images.list():
            print(image.name)

Any threads may use one client. Functions that a call is given (`progress`, for example) are called on the client's own
thread, and must not call the client. Written by contrib/dev/syncgen.py; do not edit.
"""
'''
RENAMED = {"__aenter__": "__enter__", "__aexit__": "__exit__", "__aiter__": "__iter__"}
ITERATORS = {"AsyncGenerator", "AsyncIterator"}


@dataclass
class Names:
    """What the written module imports: each name of it stands for one thing, whatever the sources call that."""

    found: dict[str, tuple[str, str]] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)

    def name(self, module: str, name: str) -> str:
        """Give the name under which a thing is imported."""
        for alias in (name, f"{module.rpartition('.')[2]}_{name}"):
            if alias not in NAMES and self.found.setdefault(alias, (module, name)) == (module, name):
                return alias
        raise SystemExit(f"{module}.{name} has no free name")

    def text(self) -> str:
        """Give the import statements, sorted."""
        plain = [f"import {name}" + (f" as {alias}" if alias != name else "") for alias, name in self.modules.items()]
        froms: dict[str, list[str]] = {}
        for alias, (module, name) in self.found.items():
            froms.setdefault(module, []).append(name if alias == name else f"{name} as {alias}")
        own = [f"from {module} import {', '.join(sorted(names))}" for module, names in froms.items()]
        return "\n".join([*sorted(plain), *sorted(own)])


class Source:
    """One module of asynchronous classes, and what its names mean."""

    def __init__(self, module: str, names: Names) -> None:
        self.module = f"moored.api.client.{module}"
        self.tree = ast.parse((CLIENT / f"{module}.py").read_text(encoding="utf-8"))
        self._names = names
        self._from: dict[str, tuple[str, str]] = {}
        self._modules: dict[str, str] = {}
        guarded = [part for node in self.tree.body if isinstance(node, ast.If) for part in node.body]
        for node in [*self.tree.body, *guarded]:
            if isinstance(node, ast.ImportFrom) and node.module:
                for one in node.names:
                    self._from[one.asname or one.name] = (node.module, one.name)
            elif isinstance(node, ast.Import):
                for one in node.names:
                    self._modules[one.asname or one.name] = one.name

    def classes(self) -> dict[str, ast.ClassDef]:
        """Give its classes by name."""
        return {node.name: node for node in self.tree.body if isinstance(node, ast.ClassDef)}

    def named(self, name: str) -> str:
        """Give the name that stands in the written module for one of this module."""
        if name in NAMES and (name not in self._from or self._from[name][0].startswith("moored.api.client.")):
            return name
        if name in self._from:
            return self._names.name(*self._from[name])
        if name in self._modules:
            self._names.modules[name] = self._modules[name]
            return name
        return name if hasattr(builtins, name) else self._names.name(self.module, name)


class Plain(ast.NodeTransformer):
    """Turns an annotation or default of a source into the written module's."""

    def __init__(self, source: Source, names: Names) -> None:
        self._source = source
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.AST:
        kind = {"AsyncGenerator": "Iterator", "AsyncIterator": "Iterator", "AsyncIterable": "Iterable"}.get(node.id)
        if kind is not None:
            return ast.Name(self._names.name("collections.abc", kind))
        return ast.Name(self._source.named(node.id))

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id == "Awaitable":
            return ast.Name("object")
        return self.generic_visit(node)


def contains(node: ast.AST | None, *names: str) -> bool:
    return node is not None and any(isinstance(one, ast.Name) and one.id in names for one in ast.walk(node))


def item(node: ast.expr) -> ast.expr:
    """Give X of `Something[X]`."""
    assert isinstance(node, ast.Subscript), ast.unparse(node)
    return node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice


class Writer:
    """Writes the twin of one class."""

    def __init__(self, source: Source, names: Names) -> None:
        self._source = source
        self._names = names

    def text(self, node: ast.ClassDef) -> str:
        bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in NAMES]
        self._names.found[f"Async{node.name}"] = (self._source.module, node.name)
        lines = [
            f"class {node.name}({', '.join(bases or ['Twin'])}):",
            *self._docstring(node),
            "",
            f"    _async: Async{node.name}",
        ]
        for part in node.body:
            if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)) and self._is_public(node.name, part):
                lines += ["", *self._method(node.name, part)]
        return "\n".join(lines)

    def _is_public(self, owner: str, part: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
        return not part.name.startswith("_") or part.name in RENAMED or (owner == "Client" and part.name == "__init__")

    def _docstring(self, node: ast.AST) -> list[str]:
        assert isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        text = ast.get_docstring(node)
        if not text:
            return []
        text = re.sub(r"\basync (with|for)\b", r"\1", text)
        lines = f'"""{text}'.split("\n")
        end = ['"""'] if len(lines) > 1 else []
        if not end:
            lines[-1] += '"""'
        indented = [f"    {line}" if line else "" for line in [*lines, *end]]
        return [f"    {line}" if line and not isinstance(node, ast.ClassDef) else line for line in indented]

    def _plain(self, node: ast.AST) -> str:
        copy = ast.parse(ast.unparse(node), mode="eval").body
        return ast.unparse(Plain(self._source, self._names).visit(copy))

    def _method(self, owner: str, part: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
        decorators = {one.id for one in part.decorator_list if isinstance(one, ast.Name)}
        name = RENAMED.get(part.name, part.name)
        parameters, passed = self._parameters(part.args)
        returned = self._returned(part.returns, block="asynccontextmanager" in decorators)
        lines = ["    @property"] if "property" in decorators else []
        lines += [f"    def {name}({', '.join(['self', *parameters])}) -> {returned}:"]
        if owner == "Client" and part.name in {"__init__", "__aenter__", "__aexit__"}:
            return [*lines, *self._docstring(part), *self._life(part.name, passed)]
        call = f"self._async.{part.name}" + ("" if "property" in decorators else f"({', '.join(passed)})")
        body = self._body(part, call, decorators)
        return [*lines, *self._docstring(part), f"        {body}"]

    def _life(self, name: str, passed: list[str]) -> list[str]:
        """Give the bodies that make, start and stop the portal."""
        if name == "__init__":
            return ["        self._portal = Portal()", f"        self._async = AsyncClient({', '.join(passed)})"]
        if name == "__aenter__":
            start = "        self._portal.start()"
            return [start, "        self._portal.call(lambda: self._async.__aenter__())", "        return self"]
        leave = f"            self._portal.call(lambda: self._async.__aexit__({', '.join(passed)}))"
        return ["        try:", leave, "        finally:", "            self._portal.stop()"]

    def _parameters(self, given: ast.arguments) -> tuple[list[str], list[str]]:
        """Give the parameters as they are written, and what is passed on for them."""
        texts, passed = [], []
        positional = given.args[1:]
        defaults: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults))
        defaults += list(given.defaults)
        for argument, default in zip(positional, defaults, strict=True):
            texts.append(self._parameter(argument, default))
            passed.append(self._passed(argument))
        if given.vararg:
            texts.append("*" + self._parameter(given.vararg, None))
            passed.append(f"*{given.vararg.arg}")
        elif given.kwonlyargs:
            texts.append("*")
        for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
            texts.append(self._parameter(argument, default))
            passed.append(f"{argument.arg}={self._passed(argument)}")
        return texts, passed

    def _parameter(self, argument: ast.arg, default: ast.expr | None) -> str:
        assert argument.annotation is not None
        text = f"{argument.arg}: {self._plain(argument.annotation)}"
        return text if default is None else f"{text} = {self._plain(default)}"

    def _passed(self, argument: ast.arg) -> str:
        if contains(argument.annotation, "AsyncIterable"):
            return f"fed({argument.arg})"
        return f"awaited({argument.arg})" if contains(argument.annotation, "Awaitable") else argument.arg

    def _returned(self, node: ast.expr | None, *, block: bool) -> str:
        assert node is not None
        if block:
            self._names.name("contextlib", "AbstractContextManager")
            return f"AbstractContextManager[{self._plain(item(node))}]"
        if isinstance(node, ast.Subscript) and contains(node.value, *ITERATORS):
            return f"{self._names.name('collections.abc', 'Iterator')}[{self._plain(item(node))}]"
        return self._plain(node)

    def _body(self, part: ast.FunctionDef | ast.AsyncFunctionDef, call: str, decorators: set[str]) -> str:
        node = part.returns
        assert node is not None
        if "property" in decorators:
            return f"return {self._wrapped(node, call)}"
        if "asynccontextmanager" in decorators:
            return f"return {self._mapped('block', item(node), call)}"
        if isinstance(node, ast.Subscript) and contains(node.value, *ITERATORS):
            return f"return {self._mapped('iterate', item(node), call)}"
        if part.name == "__aenter__":
            return f"self._portal.call(lambda: {call})\n        return self"
        how = "call" if isinstance(part, ast.AsyncFunctionDef) else "run"
        done = f"self._portal.{how}(lambda: {call})"
        return done if isinstance(node, ast.Constant) and node.value is None else f"return {self._wrapped(node, done)}"

    def _mapped(self, how: str, node: ast.expr, call: str) -> str:
        wrapped = self._wrapped(node, "one")
        if wrapped == "one":
            return f"self._portal.{how}(lambda: {call})"
        name = {"block": "mapped_block", "iterate": "mapped"}[how]
        return f"self._portal.{name}(lambda: {call}, lambda one: {wrapped})"

    def _wrapped(self, node: ast.expr, value: str) -> str:
        """Give the expression that makes a value what callers get."""
        if isinstance(node, ast.Name) and node.id in NAMES and self._source.named(node.id) == node.id:
            return f"{node.id}._of(self._portal, {value})"
        if isinstance(node, ast.BinOp) and isinstance(node.left, ast.Name) and contains(node.left, *NAMES):
            return f"{node.left.id}._maybe(self._portal, {value})"
        if isinstance(node, ast.Subscript):
            if contains(node.value, *ITERATORS):
                return f"self._portal.iterate(lambda: {value})"
            if contains(node.value, "list") and contains(item(node), *NAMES):
                return f"[{self._wrapped(item(node), 'one')} for one in {value}]"
        return value


def generated() -> str:
    """Give the text of the module."""
    names = Names()
    for name in ("Portal", "Twin", "awaited", "fed"):
        names.name("moored.api.client.portal", name)
    classes = []
    for module, wanted in TWINS.items():
        source = Source(module, names)
        found = source.classes()
        classes += [Writer(source, names).text(found[name]) for name in wanted]
    body = "\n\n\n".join(classes)
    return f"{HEAD}\nfrom __future__ import annotations\n\n{names.text()}\n\n\n{body}\n"


def main() -> int:
    """Write, or compare; the exit status."""
    parser = argparse.ArgumentParser(description=textwrap.dedent(__doc__ or ""))
    parser.add_argument("--check", action="store_true", help="only say whether the file is as it would be written")
    check = parser.parse_args().check
    text = generated()
    if check:
        same = TARGET.exists() and TARGET.read_text(encoding="utf-8") == text
        print(
            "api/client/sync.py is current" if same else "api/client/sync.py is not current: run contrib/dev/syncgen.py"
        )
        return 0 if same else 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
