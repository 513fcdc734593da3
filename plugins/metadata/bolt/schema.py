"""Where each object's record lies in the metadata store: containerd's schema, version 4, buckets made on demand.

    v1/version                                   zigzag 4
    v1/NAMESPACE/labels                          map
    v1/NAMESPACE/images/NAME                     createdat updatedat target{digest mediatype size} labels annotations
    v1/NAMESPACE/containers/ID                   createdat updatedat spec image snapshotter snapshotKey sandboxid
                                                 runtime{name options} extensions labels
    v1/NAMESPACE/snapshots/SNAPSHOTTER/KEY       name parent createdat updatedat children labels
    v1/NAMESPACE/content/blob/DIGEST             size createdat updatedat labels
    v1/NAMESPACE/content/ingests/REF             ref expireat expected
    v1/NAMESPACE/leases/ID                       createdat labels content ingests images snapshots{SNAPSHOTTER} mounts
    v1/NAMESPACE/sandboxes/ID                    createdat updatedat spec sandboxer runtime extensions labels
    v1/NAMESPACE/mounts/NAME                     id createdat updatedat lease labels active{N} system{N}

containerd has the mounts, and the leases' hold on them, in a file of their own (mounts.db). A namespace exists while
its bucket does; an absent bucket means the same as an empty one. Source: contracts/meta-db.md 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from moored.kernel.errors import FailedPrecondition
from moored.kernel.ports.metadata import Bucket, Tree
from moored.kernel.records import decode_text, decode_zigzag, encode_text, encode_zigzag

SCHEMA: Final = b"v1"
VERSION: Final = b"version"
CURRENT_VERSION: Final = 4

LABELS: Final = b"labels"
IMAGES: Final = b"images"
CONTAINERS: Final = b"containers"
SNAPSHOTS: Final = b"snapshots"
CONTENT: Final = b"content"
BLOB: Final = b"blob"
INGESTS: Final = b"ingests"
LEASES: Final = b"leases"
SANDBOXES: Final = b"sandboxes"
MOUNTS: Final = b"mounts"


def prepare(root: Bucket) -> None:
    """Write the schema's version into a new store, bring an old one up to it. Raises FailedPrecondition, DataLoss."""
    top = root.bucket(SCHEMA)
    stored = None if top is None else top.get(VERSION)
    version = decode_zigzag(stored) if stored else 0
    if version > CURRENT_VERSION:
        raise FailedPrecondition(f"metadata has schema version '{version}', wanted '{CURRENT_VERSION}' or less")
    if version == CURRENT_VERSION:
        return
    if top is not None:
        from moored.plugins.metadata.bolt.migrations import migrate

        migrate(root, version)
    made(root, SCHEMA).put(VERSION, encode_zigzag(CURRENT_VERSION))


def path(root: Bucket, *names: str | bytes, create: bool = False) -> Bucket | None:
    """Give the bucket at a path below the root; if one is missing make them all (`create`) or give None.

    Raises Unknown `bucket name required` and `incompatible value` when it makes them.
    """
    at: Bucket | None = root
    for name in names:
        if at is None:
            return None
        key = encode_text(name) if isinstance(name, str) else name
        at = at.create_bucket_if_missing(key) if create else at.bucket(key)
    return at


def made(root: Bucket, *names: str | bytes) -> Bucket:
    """Give the bucket at a path below the root, made if need be. Raises as `path`."""
    bucket = path(root, *names, create=True)
    assert bucket is not None
    return bucket


def namespace_bucket(root: Bucket, namespace: str, create: bool = False) -> Bucket | None:
    """Give the bucket of a namespace; one that is missing is made (`create`) or None."""
    return path(root, SCHEMA, namespace, create=create)


def object_bucket(root: Bucket, namespace: str, *names: str | bytes) -> Bucket | None:
    """Give the bucket at a path below a namespace, None if there is none."""
    return path(root, SCHEMA, namespace, *names)


def made_object_bucket(root: Bucket, namespace: str, *names: str | bytes) -> Bucket:
    """Give the bucket at a path below a namespace, made if need be. Raises as `path`."""
    return made(root, SCHEMA, namespace, *names)


def namespaces(root: Bucket) -> Iterator[tuple[str, Bucket]]:
    """Yield every namespace's name and bucket, by name."""
    yield from records(root.bucket(SCHEMA))


def records(bucket: Bucket | None) -> Iterator[tuple[str, Bucket]]:
    """Yield the name of every bucket in a bucket, and that one, by name; values are passed over."""
    if bucket is None:
        return
    for key, value in bucket.items():
        below = bucket.bucket(key) if value is None else None
        if below is not None:
            yield decode_text(key), below


def trees(bucket: Bucket | None) -> Iterator[tuple[str, Tree]]:
    """Yield the name of every bucket in a bucket, and all that is in that one, by name."""
    if bucket is None:
        return
    for key, tree in bucket.trees():
        yield decode_text(key), tree


def is_empty(bucket: Bucket | None) -> bool:
    """Return whether there is no bucket, or nothing in it."""
    return bucket is None or bucket.cursor().first() is None
