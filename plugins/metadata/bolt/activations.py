"""Activated mounts of all namespaces, kept in `v1/NAMESPACE/mounts`, and what a collection does with them.

The sequence of `v1` numbers them. A record without the bucket `active` is one that is being made, or was when the
daemon was killed. Source: contracts/meta-db.md 3 (mounts.db).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from moored.kernel.errors import AlreadyExists, NotFound
from moored.kernel.filters import quote
from moored.kernel.namespaces import current_lease, current_namespace, normalise_labels
from moored.kernel.ports.metadata import Bucket, Database
from moored.kernel.ports.mounts import Activation, ActiveMount, Labels, Mount, Recorded, Sweep
from moored.kernel.records import (
    CREATED_AT,
    decode_text,
    decode_time,
    decode_uvarint,
    encode_text,
    encode_time,
    encode_uvarint,
    put_times,
    read_labels,
    write_labels,
)
from moored.plugins.metadata.bolt import schema
from moored.plugins.metadata.bolt.leases import remove_from_lease
from moored.plugins.metadata.bolt.leftovers import Swept
from moored.plugins.metadata.bolt.writes import Writes, look

LEASED: Final = "mounts"
"""The bucket of a lease that names what it holds; clients are not told of it."""

ID: Final = b"id"
LEASE: Final = b"lease"
ACTIVE: Final = b"active"
SYSTEM: Final = b"system"
TYPE: Final = b"type"
SOURCE: Final = b"source"
TARGET: Final = b"target"
OPTIONS: Final = b"options"
MOUNT_POINT: Final = b"mp"
MOUNTED_AT: Final = b"mat"


class NamespacedActivations:
    """`ActivationRecords` over the object database, and a raw store for collections: what is swept are mounts."""

    def __init__(self, *, database: Database, changed: Callable[[bool], None]) -> None:
        self.dirty = True
        """Always: a look costs little, and what nobody recorded may be mounted too."""
        self._database = database
        # Nobody is told of mounts.
        self._writes = Writes(database=database, exchange=None, changed=changed)
        self._sweeps: list[Sweep] = []

    async def begin(self, name: str, labels: Labels) -> int:
        """See the port."""
        namespace, lease, kept = current_namespace(), current_lease(), normalise_labels(labels)

        def change(root: Bucket) -> int:
            mounts = schema.made_object_bucket(root, namespace, schema.MOUNTS)
            if name and mounts.bucket(encode_text(name)) is not None:
                raise AlreadyExists(f"mount {quote(name)}")
            record = mounts.create_bucket(encode_text(name))
            number = schema.made(root, schema.SCHEMA).next_sequence()
            now = time.time_ns()
            record.put(ID, encode_uvarint(number))
            put_times(record, now, now)
            write_labels(record, kept)
            if lease:
                record.put(LEASE, encode_text(lease))
                held = schema.object_bucket(root, namespace, schema.LEASES, lease)
                if held is not None:  # one that is not there is not asked for: the mount goes with a collection
                    schema.made(held, LEASED).put(encode_text(name), b"")
            return number

        return await self._writes.run(change)

    async def finish(self, activation: Activation) -> None:
        """See the port."""
        namespace = current_namespace()

        def change(root: Bucket) -> None:
            record = schema.object_bucket(root, namespace, schema.MOUNTS, activation.name)
            if record is None:
                raise NotFound(f"missing mount {quote(activation.name)} bucket")
            put_times(record, decode_time(record.get(CREATED_AT)), time.time_ns())
            active = record.create_bucket(ACTIVE)
            for index, one in enumerate(activation.active):
                _write_active(active.create_bucket(bytes((index,))), one)
            if activation.system:
                system = record.create_bucket(SYSTEM)
                for index, mount in enumerate(activation.system):
                    _write_system(system.create_bucket(bytes((index,))), mount)

        await self._writes.run(change)

    async def remove(self, name: str) -> Recorded:
        """See the port."""
        namespace = current_namespace()

        def change(root: Bucket) -> Recorded:
            record = schema.object_bucket(root, namespace, schema.MOUNTS, name)
            if record is None:
                raise NotFound(f"missing mount {quote(name)} bucket")
            found = _read(name, record)
            _remove(root, namespace, name, record)
            return found

        return await self._writes.run(change)

    async def get(self, name: str) -> Recorded:
        """See the port."""
        namespace = current_namespace()
        with self._database.view() as root:
            record = schema.object_bucket(root, namespace, schema.MOUNTS, name) if name else None
            if record is None:
                raise NotFound(f"mount {quote(name)} not found", bare=True)
            return _read(name, record)

    async def list(self) -> list[Recorded]:
        """See the port."""
        namespace = current_namespace()

        def read(root: Bucket) -> list[Recorded]:
            mounts = schema.object_bucket(root, namespace, schema.MOUNTS)
            return [_read(name, record) for name, record in schema.records(mounts)]

        return await look(self._database, read)

    async def numbers(self) -> frozenset[int]:
        """See the port."""
        return await look(self._database, lambda root: frozenset(_number(record) for *_, record in _all(root)))

    async def restart(self, standing: Callable[[Recorded], bool]) -> None:
        """See the port."""

        def change(root: Bucket) -> None:
            for namespace, name, record in list(_all(root)):
                found = _read(name, record)
                if not (found.complete and standing(found)):
                    _remove(root, namespace, name, record)

        await self._writes.run(change)

    def on_sweep(self, sweep: Sweep) -> Callable[[], None]:
        """See the port."""

        def end() -> None:
            with suppress(ValueError):
                self._sweeps.remove(sweep)

        self._sweeps.append(sweep)
        return end

    async def sweep(self) -> Swept:
        """Have unmounted what no record names."""
        swept = Swept(0, whole=True)
        for sweep in tuple(self._sweeps):
            swept += Swept(0, whole=await sweep())
        self.dirty = True
        return swept


def _all(root: Bucket) -> Iterator[tuple[str, str, Bucket]]:
    for namespace, below in schema.namespaces(root):
        for name, record in schema.records(below.bucket(schema.MOUNTS)):
            yield namespace, name, record


def _remove(root: Bucket, namespace: str, name: str, record: Bucket) -> None:
    remove_from_lease(root, namespace, decode_text(record.get(LEASE) or b""), LEASED, name)
    schema.made_object_bucket(root, namespace, schema.MOUNTS).delete_bucket(encode_text(name))


def _number(record: Bucket) -> int:
    stored = record.get(ID)
    return decode_uvarint(stored) if stored else 0


def _read(name: str, record: Bucket) -> Recorded:
    active = record.bucket(ACTIVE)
    activation = Activation(
        name=name,
        active=tuple(_read_active(one) for _, one in schema.records(active)),
        system=tuple(_read_system(one) for _, one in schema.records(record.bucket(SYSTEM))),
        labels=read_labels(record),
    )
    return Recorded(_number(record), activation, complete=active is not None)


def _write_active(bucket: Bucket, one: ActiveMount) -> None:
    bucket.put(TYPE, encode_text(one.mount.type))
    bucket.put(MOUNT_POINT, encode_text(one.mount_point))
    if one.mounted_at is not None:
        bucket.put(MOUNTED_AT, encode_time(one.mounted_at))


def _read_active(bucket: Bucket) -> ActiveMount:
    at = bucket.get(MOUNTED_AT)
    return ActiveMount(
        mount=Mount(type=_text(bucket, TYPE), source=""),
        mount_point=_text(bucket, MOUNT_POINT),
        mounted_at=decode_time(at) if at is not None else None,
    )


def _write_system(bucket: Bucket, mount: Mount) -> None:
    for key, text in ((TYPE, mount.type), (SOURCE, mount.source), (TARGET, mount.target)):
        bucket.put(key, encode_text(text))
    if mount.options:
        bucket.put(OPTIONS, encode_text("\0".join(mount.options)))


def _read_system(bucket: Bucket) -> Mount:
    options = bucket.get(OPTIONS)
    return Mount(
        type=_text(bucket, TYPE),
        source=_text(bucket, SOURCE),
        target=_text(bucket, TARGET),
        options=tuple(decode_text(options).split("\0")) if options else (),
    )


def _text(bucket: Bucket, key: bytes) -> str:
    return decode_text(bucket.get(key) or b"")
