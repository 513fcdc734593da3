"""The namespaces themselves: each a bucket in `v1`, with its labels in a bucket of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from moored.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from moored.kernel.filters import quote
from moored.kernel.namespaces import normalise_labels, validate_identifier, validate_labels
from moored.kernel.payloads import NamespaceCreate, NamespaceDelete, NamespaceUpdate
from moored.kernel.ports.events import Exchange
from moored.kernel.ports.metadata import Bucket, Database
from moored.kernel.records import encode_text, read_labels, write_labels
from moored.plugins.metadata.bolt import schema
from moored.plugins.metadata.bolt.writes import Writes, look


class Namespaces:
    """`NamespaceStore` over the object database."""

    def __init__(self, *, database: Database, exchange: Exchange | None, changed: Callable[[bool], None]) -> None:
        self._database = database
        self._writes = Writes(database=database, exchange=exchange, changed=changed)

    async def list(self) -> list[tuple[str, Mapping[str, str]]]:
        """See the port."""
        return await look(
            self._database, lambda root: [(name, read_labels(record)) for name, record in schema.namespaces(root)]
        )

    async def labels(self, name: str) -> Mapping[str, str]:
        """See the port."""
        with self._database.view() as root:
            record = schema.namespace_bucket(root, name)
            return {} if record is None else read_labels(record)

    async def create(self, name: str, labels: Mapping[str, str]) -> None:
        """See the port."""
        validate_identifier(name)
        validate_labels(labels, "namespace.Labels")

        def change(root: Bucket) -> None:
            top = schema.made(root, schema.SCHEMA)
            if top.bucket(encode_text(name)) is not None:
                raise AlreadyExists(f"namespace {quote(name)}")
            write_labels(top.create_bucket(encode_text(name)), labels)

        await self._writes.run(
            change, lambda _: ("/namespaces/create", NamespaceCreate(name=name, labels=labels), name)
        )

    async def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> None:
        """See the port."""
        validate_identifier(name)
        changes = _named(labels, paths) if paths else labels
        validate_labels(changes, "namespace.Labels")

        def change(root: Bucket) -> None:
            record = schema.made(root, schema.SCHEMA, name)
            write_labels(record, normalise_labels({**read_labels(record), **changes}) if paths else changes)

        await self._writes.run(
            change, lambda _: ("/namespaces/update", NamespaceUpdate(name=name, labels=labels), name)
        )

    async def delete(self, name: str) -> None:
        """See the port."""

        def change(root: Bucket) -> None:
            record = schema.namespace_bucket(root, name)
            if record is None:
                raise NotFound(f"namespace {quote(name)}")
            if left := kinds_left(record):
                raise FailedPrecondition(f"namespace {quote(name)} must be empty, but it still has {', '.join(left)}")
            schema.made(root, schema.SCHEMA).delete_bucket(encode_text(name))

        await self._writes.run(change, lambda _: ("/namespaces/delete", NamespaceDelete(name=name), name), deletes=True)


def kinds_left(record: Bucket) -> list[str]:
    """Give the kinds of objects that keep a namespace from being removed; leases, ingests and sandboxes do not."""
    kinds = (
        ("images", (schema.IMAGES,)),
        ("blobs", (schema.CONTENT, schema.BLOB)),
        ("containers", (schema.CONTAINERS,)),
    )
    left = [kind for kind, names in kinds if not schema.is_empty(schema.path(record, *names))]
    for snapshotter, snapshots in schema.records(record.bucket(schema.SNAPSHOTS)):
        if not schema.is_empty(snapshots):
            left.append(f"snapshots on {quote(snapshotter)} snapshotter")
    return left


def _named(labels: Mapping[str, str], paths: Sequence[str]) -> dict[str, str]:
    """Give the labels that paths name, with an empty value where there is none."""
    changes: dict[str, str] = {}
    for path in paths:
        start, dot, key = path.partition(".")
        if (start, dot) != ("labels", "."):
            raise InvalidArgument(f"cannot update {quote(path)} field", bare=True)
        changes[key] = labels.get(key, "")
    return changes
