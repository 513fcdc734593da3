"""Brings metadata of containerd's older schema versions to the present one, inside one update.

    0 -> 1   each snapshot that has a parent is listed in the parent's children
    1 -> 2   content/ingest, a map of refs to the raw store's names, becomes content/ingests/REF/ref
    2 -> 3   nothing
    3 -> 4   NAMESPACE/sandboxes, beside v1, goes to v1/NAMESPACE/sandboxes; all that is beside v1 goes away

What does not fit is passed over, as containerd does, but for what is nested too deeply in a sandbox. Source:
contracts/meta-db.md 2, versions and migrations.
"""

from __future__ import annotations

from typing import Final

from moored.kernel.errors import DataLoss
from moored.kernel.ports.metadata import Bucket
from moored.plugins.metadata.bolt import schema

OLD_INGESTS: Final = b"ingest"
"""Where refs were kept up to version 1."""
PARENT: Final = b"parent"
CHILDREN: Final = b"children"
REF: Final = b"ref"


def migrate(root: Bucket, version: int) -> None:
    """Carry out the steps from a version on; what they have done before is harmless. Raises DataLoss."""
    for number, step in ((1, _link_children), (2, _move_ingests), (4, _move_sandboxes)):
        if version < number:
            step(root)


def _link_children(root: Bucket) -> None:
    for _, namespace in schema.namespaces(root):
        for _, snapshots in schema.records(namespace.bucket(schema.SNAPSHOTS)):
            for key, record in list(snapshots.trees()):
                parent = record.get(PARENT)
                above = snapshots.bucket(parent) if isinstance(parent, bytes) and parent else None
                if above is not None:
                    above.create_bucket_if_missing(CHILDREN).put(key, b"")


def _move_ingests(root: Bucket) -> None:
    for _, namespace in schema.namespaces(root):
        content = namespace.bucket(schema.CONTENT)
        old = None if content is None else content.bucket(OLD_INGESTS)
        if content is None or old is None:
            continue
        ingests = content.create_bucket_if_missing(schema.INGESTS)
        for ref, raw_ref in old.items():
            if raw_ref is not None:
                ingests.create_bucket_if_missing(ref).put(REF, raw_ref)
        content.delete_bucket(OLD_INGESTS)


def _move_sandboxes(root: Bucket) -> None:
    private = [name for name, value in root.items() if value is None and name != schema.SCHEMA]
    for name in private:
        namespace = root.bucket(name)
        sandboxes = None if namespace is None else namespace.bucket(schema.SANDBOXES)
        if sandboxes is not None:
            target = schema.made(root, schema.SCHEMA, name, schema.SANDBOXES)
            for id_, record in schema.records(sandboxes):
                _copy(record, schema.made(target, id_), levels=1)
        root.delete_bucket(name)


def _copy(source: Bucket, target: Bucket, *, levels: int) -> None:
    """Copy the values of a bucket, and of so many levels of buckets in it."""
    for name, value in source.items():
        if value is not None:
            target.put(name, value)
            continue
        below = source.bucket(name)
        assert below is not None
        if not levels:
            raise DataLoss(f"metadata cannot be migrated: bucket {name!r} in a sandbox is nested too deeply")
        _copy(below, target.create_bucket_if_missing(name), levels=levels - 1)
