"""Sandboxes of a namespace: records kept in `v1/NAMESPACE/sandboxes`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from moored.kernel.errors import AlreadyExists, InvalidArgument, NotFound, Unknown
from moored.kernel.filters import Filter, Path, compile_filters, quote
from moored.kernel.namespaces import current_namespace, normalise_labels, validate_identifier
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.metadata import Bucket, Database, Tree
from moored.kernel.ports.sandboxes import Sandbox
from moored.kernel.records import (
    LABELS,
    below_of,
    decode_any,
    encode_any,
    encode_text,
    put_times,
    text_of,
    texts_of,
    times_of,
    value_of,
    write_labels,
)
from moored.plugins.metadata.bolt import schema
from moored.plugins.metadata.bolt.containers import read_extensions, write_extensions
from moored.plugins.metadata.bolt.writes import Writes, look

MUTABLE: Final = ("labels", "extensions", "spec", "runtime")
"""What an update without paths replaces."""

_SPEC: Final = b"spec"
_SANDBOXER: Final = b"sandboxer"
_RUNTIME: Final = b"runtime"
_NAME: Final = b"name"
_OPTIONS: Final = b"options"


class NamespacedSandboxes:
    """`SandboxStore` over the object database."""

    def __init__(self, *, database: Database, changed: Callable[[bool], None]) -> None:
        self._database = database
        self._writes = Writes(database=database, exchange=None, changed=changed)

    async def get(self, id: str) -> Sandbox:  # noqa: A002 - the field's term
        """See the port."""
        namespace = current_namespace()
        with self._database.view() as root:
            return _stored(_existing(root, namespace), id)

    async def list(self, filters: Sequence[str] = ()) -> list[Sandbox]:
        """See the port."""
        namespace = current_namespace()
        wanted = compile_filters(filters)
        return await look(self._database, lambda root: _matching(root, namespace, wanted))

    async def create(self, sandbox: Sandbox) -> Sandbox:
        """See the port."""
        namespace = current_namespace()
        validate_identifier(sandbox.id, "failed to validate sandbox: invalid sandbox ID")
        created = replace(sandbox, labels=normalise_labels(sandbox.labels))

        def change(root: Bucket) -> Sandbox:
            sandboxes = schema.made_object_bucket(root, namespace, schema.SANDBOXES)
            if sandboxes.bucket(encode_text(sandbox.id)) is not None:
                raise AlreadyExists(f"write error: sandbox bucket {quote(sandbox.id)} already exists")
            now = time.time_ns()
            return _write(sandboxes, replace(created, created_at=now, updated_at=now))

        return await self._writes.run(change)

    async def update(self, sandbox: Sandbox, paths: Sequence[str] = ()) -> Sandbox:
        """See the port."""
        namespace = current_namespace()

        def change(root: Bucket) -> Sandbox:
            sandboxes = _existing(root, namespace)
            stored = _stored(sandboxes, sandbox.id)
            if not paths and stored.runtime != sandbox.runtime:
                raise InvalidArgument("sandbox.Runtime.Name field is immutable")
            asked = masked(stored, sandbox, paths or MUTABLE)
            return _write(sandboxes, replace(asked, labels=normalise_labels(asked.labels), updated_at=time.time_ns()))

        return await self._writes.run(change)

    async def delete(self, id: str) -> None:  # noqa: A002 - the field's term
        """See the port."""
        namespace = current_namespace()

        def change(root: Bucket) -> None:
            sandboxes = _existing(root, namespace)
            if not id or sandboxes.bucket(encode_text(id)) is None:
                raise NotFound(f"failed to delete sandbox {quote(id)}")
            sandboxes.delete_bucket(encode_text(id))

        await self._writes.run(change)  # containerd does not count it as a deletion that calls for a collection


class SandboxFields:
    """The sandbox in a record as filters see it."""

    __slots__ = ("_id", "record")

    def __init__(self, id_: str, record: Tree) -> None:
        self._id = id_
        self.record = record

    def field(self, path: Path) -> tuple[str, bool]:
        """See `kernel.filters.Adaptor`."""
        match path[0]:
            case "id":
                return self._id, bool(self._id)
            case "labels":
                found = below_of(self.record, LABELS) or {}
                key = encode_text(".".join(path[1:]))
                return text_of(found, key), key in found
            case _:
                return "", False


def read_sandbox(id_: str, record: Tree) -> Sandbox:
    """Read the sandbox in a record; what is missing is empty. Raises DataLoss, Unknown for one without runtime."""
    created, updated = times_of(record)
    runtime = below_of(record, _RUNTIME)
    if runtime is None:
        raise Unknown(f"failed to read bucket {quote(id_)}: no runtime bucket")
    return Sandbox(
        id=id_,
        runtime=text_of(runtime, _NAME),
        runtime_options=_any(runtime, _OPTIONS),
        spec=_any(record, _SPEC),
        sandboxer=text_of(record, _SANDBOXER),
        labels=texts_of(record, LABELS),
        extensions=read_extensions(record),
        created_at=created,
        updated_at=updated,
    )


def masked(stored: Sandbox, given: Sandbox, paths: Sequence[str]) -> Sandbox:
    """Give the stored sandbox with what the paths name taken from the given one, path after path.

    A spec and runtime options are never taken away. Raises InvalidArgument `cannot update "P" field on sandbox "ID"`.
    """
    sandbox = stored
    for path in paths:
        start, dot, key = path.partition(".")
        match start, dot:
            case "labels", ".":
                sandbox = replace(sandbox, labels={**sandbox.labels, key: given.labels.get(key, "")})
            case "extensions", ".":
                others = {name: value for name, value in sandbox.extensions.items() if name != key}
                named = {key: given.extensions[key]} if key in given.extensions else {}
                sandbox = replace(sandbox, extensions={**others, **named})
            case "labels", "":
                sandbox = replace(sandbox, labels=given.labels)
            case "extensions", "":
                sandbox = replace(sandbox, extensions=given.extensions)
            case "spec", "":
                sandbox = replace(sandbox, spec=given.spec or sandbox.spec)
            case "runtime", "":
                options = given.runtime_options or sandbox.runtime_options
                sandbox = replace(sandbox, runtime=given.runtime, runtime_options=options)
            case _:
                raise InvalidArgument(f"cannot update {quote(path)} field on sandbox {quote(stored.id)}")
    return sandbox


def _existing(root: Bucket, namespace: str) -> Bucket:
    sandboxes = schema.object_bucket(root, namespace, schema.SANDBOXES)
    if sandboxes is None:
        raise NotFound("no sandbox buckets")
    return sandboxes


def _stored(sandboxes: Bucket, id_: str) -> Sandbox:
    record = sandboxes.bucket(encode_text(id_)) if id_ else None
    if record is None:
        raise NotFound(f"bucket {quote(id_)} not found")
    return read_sandbox(id_, record.tree())


def _matching(root: Bucket, namespace: str, wanted: Filter) -> list[Sandbox]:
    records = schema.trees(schema.object_bucket(root, namespace, schema.SANDBOXES))
    return [
        read_sandbox(id_, record)
        for id_, record in records
        if wanted.matches_all or wanted.match(SandboxFields(id_, record))
    ]


def _write(sandboxes: Bucket, sandbox: Sandbox) -> Sandbox:
    record = sandboxes.create_bucket_if_missing(encode_text(sandbox.id))
    put_times(record, sandbox.created_at, sandbox.updated_at)
    write_labels(record, sandbox.labels)
    write_extensions(record, sandbox.extensions)
    if sandbox.spec is not None:
        record.put(_SPEC, encode_any(sandbox.spec))
    record.put(_SANDBOXER, encode_text(sandbox.sandboxer))
    runtime = record.create_bucket_if_missing(_RUNTIME)
    runtime.put(_NAME, encode_text(sandbox.runtime))
    if sandbox.runtime_options is not None:
        runtime.put(_OPTIONS, encode_any(sandbox.runtime_options))
    return sandbox


def _any(record: Tree, key: bytes) -> TypedBytes | None:
    value = value_of(record, key)
    return None if value is None else decode_any(value)
