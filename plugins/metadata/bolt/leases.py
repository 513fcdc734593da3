"""Leases of a namespace, kept in `v1/NAMESPACE/leases`, and how the other stores put what they touch under one.

add_to_lease, remove_from_lease run inside an update of the caller, which names the lease of the call it works for.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from moored.kernel.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented
from moored.kernel.filters import Filter, Path, compile_filters, quote
from moored.kernel.namespaces import current_namespace, normalise_labels
from moored.kernel.ports.content import digest_fault
from moored.kernel.ports.events import Exchange
from moored.kernel.ports.leases import Lease, Resource
from moored.kernel.ports.metadata import Bucket, Database
from moored.kernel.records import (
    CREATED_AT,
    LABELS,
    decode_text,
    decode_time,
    encode_text,
    encode_time,
    texts_of,
    value_of,
    write_labels,
)
from moored.plugins.metadata.bolt import schema
from moored.plugins.metadata.bolt.writes import Writes, look

_PLAIN: Final = ("content", "images", "ingests")
"""Resource types that are one bucket, in the order in which they are told."""
_SNAPSHOTS: Final = "snapshots"


def add_to_lease(root: Bucket, namespace: str, lease: str, type_: str, id_: str) -> None:
    """Put an object under a lease; without effect if `lease` is empty. Raises NotFound `lease does not exist`.

    type_ is that of a Resource. Runs inside an update.
    """
    if not lease:
        return
    record = schema.object_bucket(root, namespace, schema.LEASES, lease)
    if record is None:
        raise NotFound("lease does not exist")
    schema.made(record, *type_.split("/", 1)).put(encode_text(id_), b"")


def remove_from_lease(root: Bucket, namespace: str, lease: str, type_: str, id_: str) -> None:
    """Take an object from a lease, without effect where that is empty, unknown or does not hold it."""
    if not lease:
        return
    held = schema.object_bucket(root, namespace, schema.LEASES, lease, *type_.split("/", 1))
    if held is not None:
        held.delete(encode_text(id_))


class NamespacedLeases:
    """`LeaseManager` over the object database."""

    def __init__(self, *, database: Database, exchange: Exchange | None, changed: Callable[[bool], None]) -> None:
        self._database = database
        # Nobody is told of leases.
        self._writes = Writes(database=database, exchange=None, changed=changed)

    async def create(self, id: str, labels: Mapping[str, str]) -> Lease:  # noqa: A002 - the field's term
        """See the port."""
        namespace = current_namespace()
        lease_id = id or new_id()
        kept = normalise_labels(labels)

        def change(root: Bucket) -> Lease:
            leases = schema.made_object_bucket(root, namespace, schema.LEASES)
            if leases.bucket(encode_text(lease_id)) is not None:
                raise AlreadyExists(f"lease {quote(lease_id)}")
            record = leases.create_bucket(encode_text(lease_id))
            now = time.time_ns()
            record.put(CREATED_AT, encode_time(now))
            write_labels(record, kept)
            return Lease(id=lease_id, labels=kept, created_at=now)

        return await self._writes.run(change)

    async def delete(self, id: str) -> None:  # noqa: A002 - the field's term
        """See the port."""
        namespace = current_namespace()

        def change(root: Bucket) -> None:
            _record(root, namespace, id)
            schema.made_object_bucket(root, namespace, schema.LEASES).delete_bucket(encode_text(id))

        await self._writes.run(change, deletes=True)

    async def list(self, filters: Sequence[str] = ()) -> list[Lease]:
        """See the port."""
        namespace = current_namespace()
        wanted = compile_filters(filters)
        return await look(self._database, lambda root: _matching(root, namespace, wanted))

    async def add(self, lease: str, resource: Resource) -> None:
        """See the port."""
        namespace = current_namespace()

        def change(root: Bucket) -> None:
            record = _record(root, namespace, lease)
            schema.made(record, *_bucket_path(resource)).put(encode_text(resource.id), b"")

        await self._writes.run(change)

    async def remove(self, lease: str, resource: Resource) -> None:
        """See the port."""
        namespace = current_namespace()

        def change(root: Bucket) -> None:
            held = schema.path(_record(root, namespace, lease), *_bucket_path(resource))
            if held is not None:
                held.delete(encode_text(resource.id))

        await self._writes.run(change, deletes=True)

    async def resources(self, lease: str) -> Sequence[Resource]:
        """See the port."""
        namespace = current_namespace()
        return await look(self._database, lambda root: list(held_by(_record(root, namespace, lease))))


class LeaseFields:
    """A lease as filters see it."""

    __slots__ = ("_lease",)

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    def field(self, path: Path) -> tuple[str, bool]:
        """See `kernel.filters.Adaptor`."""
        match path[0]:
            case "id":
                return self._lease.id, bool(self._lease.id)
            case "labels":
                key = ".".join(path[1:])
                return self._lease.labels.get(key, ""), key in self._lease.labels
            case _:
                return "", False


def new_id() -> str:
    """Make up a lease's id in containerd's form: the nanosecond of the second, and 24 random bits."""
    return f"{time.time_ns() % 10**9}-{base64.urlsafe_b64encode(secrets.token_bytes(3)).decode()}"


def held_by(record: Bucket) -> Iterator[Resource]:
    """Yield what the lease in a record holds, in the order content, images, ingests, snapshots."""
    for kind in _PLAIN:
        held = record.bucket(encode_text(kind))
        if held is not None:
            yield from (Resource(kind, decode_text(key)) for key, _ in held.items())
    for snapshotter, held in schema.records(record.bucket(schema.SNAPSHOTS)):
        yield from (Resource(f"{_SNAPSHOTS}/{snapshotter}", decode_text(key)) for key, _ in held.items())


def _record(root: Bucket, namespace: str, lease: str) -> Bucket:
    record = schema.object_bucket(root, namespace, schema.LEASES, lease)
    if record is None:
        raise NotFound(f"lease {quote(lease)}")
    return record


def _matching(root: Bucket, namespace: str, wanted: Filter) -> list[Lease]:
    found: list[Lease] = []
    for id_, record in schema.trees(schema.object_bucket(root, namespace, schema.LEASES)):
        created = decode_time(value_of(record, CREATED_AT))
        lease = Lease(id=id_, labels=texts_of(record, LABELS), created_at=created)
        if wanted.matches_all or wanted.match(LeaseFields(lease)):
            found.append(lease)
    return found


def _bucket_path(resource: Resource) -> list[str]:
    """Give where a lease keeps a resource of such a type. Raises InvalidArgument, Unimplemented."""
    parts = resource.type.split("/")
    if parts[0] == _SNAPSHOTS:
        if len(parts) != 2:
            raise InvalidArgument(f"invalid snapshot resource type {resource.type}")
    elif parts[0] not in _PLAIN:
        raise Unimplemented(f"resource type {resource.type} not supported yet")
    elif len(parts) != 1:
        raise InvalidArgument(f"invalid resource type {resource.type}")
    elif parts[0] == "content" and (fault := digest_fault(resource.id)):
        raise InvalidArgument(f"invalid content resource id {resource.id}: {fault}")
    return parts
