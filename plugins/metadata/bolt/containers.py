"""Containers of a namespace: records kept in `v1/NAMESPACE/containers`."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from moored.kernel.errors import AlreadyExists, InvalidArgument, NotFound
from moored.kernel.filters import Filter, Path, compile_filters, quote
from moored.kernel.namespaces import current_namespace, normalise_labels, validate_identifier, validate_labels
from moored.kernel.payloads import ContainerCreate, ContainerDelete, ContainerUpdate, Packed, Runtime
from moored.kernel.ports.containers import Container, TypedBytes
from moored.kernel.ports.events import Exchange
from moored.kernel.ports.metadata import Bucket, Database, Tree
from moored.kernel.records import (
    LABELS,
    below_of,
    decode_any,
    decode_text,
    encode_any,
    encode_text,
    put_times,
    text_of,
    texts_of,
    times_of,
    value_of,
    write_labels,
)
from moored.plugins.metadata.bolt import schema, wire
from moored.plugins.metadata.bolt.writes import Event, Writes, look

MUTABLE: Final = ("labels", "spec", "extensions", "image", "snapshotkey")
"""What an update without paths replaces."""

_SPEC: Final = b"spec"
_RUNTIME: Final = b"runtime"
_NAME: Final = b"name"
_OPTIONS: Final = b"options"
_EXTENSIONS: Final = b"extensions"
_IMAGE: Final = b"image"
_SNAPSHOTTER: Final = b"snapshotter"
_SNAPSHOT_KEY: Final = b"snapshotKey"
_SANDBOX: Final = b"sandboxid"


class NamespacedContainers:
    """`ContainerStore` over the object database."""

    def __init__(self, *, database: Database, exchange: Exchange | None, changed: Callable[[bool], None]) -> None:
        self._database = database
        self._writes = Writes(database=database, exchange=exchange, changed=changed)

    async def get(self, id: str) -> Container:  # noqa: A002 - the field's term
        """See the port."""
        namespace = current_namespace()
        with self._database.view() as root:
            record = schema.object_bucket(root, namespace, schema.CONTAINERS, id)
            if record is None:
                raise NotFound(f"container {quote(id)} in namespace {quote(namespace)}")
            return read_container(id, record.tree())

    async def encoded(self, filters: Sequence[str] = ()) -> list[bytes]:
        """Do as `list`, each as a message of containerd's API."""
        namespace = current_namespace()
        wanted = compile_filters(filters)
        return await look(self._database, lambda root: _encoded(root, namespace, wanted))

    async def list(self, filters: Sequence[str] = ()) -> list[Container]:
        """See the port."""
        namespace = current_namespace()
        wanted = compile_filters(filters)
        return await look(self._database, lambda root: _matching(root, namespace, wanted))

    async def stream(self, filters: Sequence[str] = ()) -> AsyncGenerator[Container]:
        """See the port."""
        # Copied out first: a view that lasted as long as the slowest client would keep every page from reuse.
        found = await self.list(filters)
        found.reverse()
        while found:
            yield found.pop()

    async def create(self, container: Container) -> Container:
        """See the port."""
        namespace = current_namespace()
        _validate(container, "create container failed validation")
        created = replace(container, labels=normalise_labels(container.labels))

        def change(root: Bucket) -> Container:
            containers = schema.made_object_bucket(root, namespace, schema.CONTAINERS)
            try:
                record = containers.create_bucket(encode_text(container.id))
            except AlreadyExists:
                raise AlreadyExists(f"container {quote(container.id)}") from None
            now = time.time_ns()
            return _write(record, replace(created, created_at=now, updated_at=now))

        return await self._writes.run(change, lambda made: ("/containers/create", _create_event(made), namespace))

    async def update(self, container: Container, paths: Sequence[str] = ()) -> Container:
        """See the port."""
        namespace = current_namespace()
        if not container.id:
            raise InvalidArgument("must specify a container id")

        def change(root: Bucket) -> Container:
            containers = schema.object_bucket(root, namespace, schema.CONTAINERS)
            if containers is None:
                raise NotFound(f"cannot update container {quote(container.id)} in namespace {quote(namespace)}")
            record = containers.bucket(encode_text(container.id))
            if record is None:
                raise NotFound(f"container {quote(container.id)}")
            stored = read_container(container.id, record.tree())
            if not paths:
                _check_immutable(stored, container)
            asked = masked(stored, container, paths or MUTABLE)
            _validate(asked, "update failed validation")
            updated = replace(asked, labels=normalise_labels(asked.labels), updated_at=time.time_ns())
            return _write(record, updated)

        def event(made: Container) -> Event:
            payload = ContainerUpdate(id=made.id, image=made.image, labels=made.labels, snapshot_key=made.snapshot_key)
            return "/containers/update", payload, namespace

        return await self._writes.run(change, event)

    async def delete(self, id: str) -> None:  # noqa: A002 - the field's term
        """See the port."""
        namespace = current_namespace()

        def change(root: Bucket) -> None:
            containers = schema.object_bucket(root, namespace, schema.CONTAINERS)
            if containers is None:
                raise NotFound(f"cannot delete container {quote(id)} in namespace {quote(namespace)}")
            if containers.bucket(encode_text(id)) is None:
                raise NotFound(f"container {id}")
            containers.delete_bucket(encode_text(id))

        await self._writes.run(
            change, lambda _: ("/containers/delete", ContainerDelete(id=id), namespace), deletes=True
        )


class ContainerFields:
    """The container in a record as filters see it; the record is read when more than the id is asked for."""

    __slots__ = ("_container", "_id", "_record")

    def __init__(self, id_: str, record: Tree) -> None:
        self._id = id_
        self._record = record
        self._container: Container | None = None

    @property
    def container(self) -> Container:
        """The whole of it. Raises DataLoss."""
        if self._container is None:
            self._container = read_container(self._id, self._record)
        return self._container

    def field(self, path: Path) -> tuple[str, bool]:
        """See `kernel.filters.Adaptor`."""
        match path[0]:
            case "id":
                value = self._id
            case "runtime" if path[1:2] == ("name",):
                value = self.container.runtime
            case "image":
                value = self.container.image
            case "labels":
                found = below_of(self._record, LABELS) or {}
                key = encode_text(".".join(path[1:]))
                return text_of(found, key), key in found
            case _:
                value = ""
        return value, bool(value)


def read_container(id_: str, record: Tree) -> Container:
    """Read the container in a record; what is missing is empty. Raises DataLoss."""
    created, updated = times_of(record)
    runtime = below_of(record, _RUNTIME) or {}
    return Container(
        id=id_,
        image=text_of(record, _IMAGE),
        runtime=text_of(runtime, _NAME),
        runtime_options=_any(runtime, _OPTIONS),
        spec=_any(record, _SPEC),
        snapshotter=text_of(record, _SNAPSHOTTER),
        snapshot_key=text_of(record, _SNAPSHOT_KEY),
        sandbox=text_of(record, _SANDBOX),
        labels=texts_of(record, LABELS),
        extensions=read_extensions(record),
        created_at=created,
        updated_at=updated,
    )


def read_extensions(record: Tree) -> dict[str, TypedBytes]:
    """Give the extensions of a record. Raises DataLoss."""
    found = below_of(record, _EXTENSIONS)
    if not found:
        return {}
    return {decode_text(key): decode_any(value) for key, value in found.items() if isinstance(value, bytes)}


def write_extensions(record: Bucket, extensions: Mapping[str, TypedBytes]) -> None:
    """Replace the extensions of a record."""
    if record.bucket(_EXTENSIONS) is not None:
        record.delete_bucket(_EXTENSIONS)
    if extensions:
        bucket = record.create_bucket(_EXTENSIONS)
        for key, value in extensions.items():
            bucket.put(encode_text(key), encode_any(value))


def masked(stored: Container, given: Container, paths: Sequence[str]) -> Container:
    """Give the stored container with what the paths name taken from the given one, path after path.

    A spec is never taken away: where the given one has none the stored one stays. An extension that `extensions.KEY`
    names and the given one lacks is removed. Raises InvalidArgument `cannot update "P" field on "ID"`.
    """
    container = stored
    for path in paths:
        start, dot, key = path.partition(".")
        match start, dot:
            case "labels", ".":
                container = replace(container, labels={**container.labels, key: given.labels.get(key, "")})
            case "extensions", ".":
                others = {name: value for name, value in container.extensions.items() if name != key}
                named = {key: given.extensions[key]} if key in given.extensions else {}
                container = replace(container, extensions={**others, **named})
            case "labels", "":
                container = replace(container, labels=given.labels)
            case "extensions", "":
                container = replace(container, extensions=given.extensions)
            case "spec", "":
                container = replace(container, spec=given.spec or container.spec)
            case "image", "":
                container = replace(container, image=given.image)
            case "snapshotkey", "":
                container = replace(container, snapshot_key=given.snapshot_key)
            case _:
                raise InvalidArgument(f"cannot update {quote(path)} field on {quote(stored.id)}")
    return container


def _check_immutable(stored: Container, given: Container) -> None:
    if stored.snapshotter != given.snapshotter:
        raise InvalidArgument("container.Snapshotter field is immutable")
    if stored.runtime != given.runtime:
        raise InvalidArgument("container.Runtime.Name field is immutable")


def _validate(container: Container, context: str) -> None:
    validate_identifier(container.id, f"{context}: container.ID")
    if "" in container.extensions:
        raise InvalidArgument(f"{context}: container.Extension keys must not be zero-length")
    validate_labels(container.labels, f"{context}: containers.Labels")
    if not container.runtime:
        raise InvalidArgument(f"{context}: container.Runtime.Name must be set")
    if container.snapshot_key and not container.snapshotter:
        raise InvalidArgument(f"{context}: container.Snapshotter must be set if container.SnapshotKey is set")


def _matching(root: Bucket, namespace: str, wanted: Filter) -> list[Container]:
    records = schema.trees(schema.object_bucket(root, namespace, schema.CONTAINERS))
    if wanted.matches_all:
        return list(itertools.starmap(read_container, records))
    return [fields.container for fields in itertools.starmap(ContainerFields, records) if wanted.match(fields)]


def _encoded(root: Bucket, namespace: str, wanted: Filter) -> list[bytes]:
    containers = schema.object_bucket(root, namespace, schema.CONTAINERS)
    if containers is None:
        return []
    if wanted.matches_all:
        return list(itertools.starmap(wire.container, containers.trees()))
    return [
        wire.container(id_, record)
        for id_, record in containers.trees()
        if wanted.match(ContainerFields(decode_text(id_), record))
    ]


def _write(record: Bucket, container: Container) -> Container:
    put_times(record, container.created_at, container.updated_at)
    if container.spec is not None:
        record.put(_SPEC, encode_any(container.spec))
    record.put(_IMAGE, encode_text(container.image))
    record.put(_SNAPSHOTTER, encode_text(container.snapshotter))
    record.put(_SNAPSHOT_KEY, encode_text(container.snapshot_key))
    record.put(_SANDBOX, encode_text(container.sandbox))
    runtime = record.create_bucket_if_missing(_RUNTIME)
    runtime.put(_NAME, encode_text(container.runtime))
    if container.runtime_options is not None:
        runtime.put(_OPTIONS, encode_any(container.runtime_options))
    write_extensions(record, container.extensions)
    write_labels(record, container.labels)
    return container


def _create_event(container: Container) -> ContainerCreate:
    options = container.runtime_options
    packed = None if options is None else Packed(options.type_url, options.value)
    runtime = Runtime(name=container.runtime, options=packed)
    return ContainerCreate(id=container.id, image=container.image, runtime=runtime)


def _any(record: Tree, key: bytes) -> TypedBytes | None:
    value = value_of(record, key)
    return None if value is None else decode_any(value)
