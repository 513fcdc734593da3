"""The records of blobs and ingests: what is done to them inside one transaction, whose root bucket comes first.

    v1/NAMESPACE/content/blob/DIGEST      what a namespace knows of a blob; the bytes are shared by all
    v1/NAMESPACE/content/ingests/REF      which ingest of the raw store is meant, `NAMESPACE/N/REF`, and until when it
                                          is kept; of a *shared* one, the blob that stands in for its bytes (expected)

Source: contracts/meta-db.md 2, semantics 2.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from moored.kernel.errors import InvalidArgument, NotFound
from moored.kernel.filters import Filter, MappingAdaptor, quote
from moored.kernel.namespaces import normalise_labels, validate_labels
from moored.kernel.ports.content import Digest, Info, digest_fault
from moored.kernel.ports.metadata import Bucket, Tree
from moored.kernel.records import (
    LABELS,
    decode_text,
    decode_zigzag,
    encode_text,
    encode_time,
    encode_zigzag,
    put_times,
    text_of,
    texts_of,
    times_of,
    value_of,
    write_labels,
)
from moored.plugins.metadata.bolt import schema
from moored.plugins.metadata.bolt.leases import add_to_lease, remove_from_lease

SHAREABLE: Final = b"containerd.io/namespace.shareable"
"""Label of namespaces whose blobs all may have, also where the policy keeps namespaces apart."""
INGEST_LIFE: Final = 24 * 3600 * 10**9
"""Nanoseconds that an ingest without a lease is kept after its last opening."""
LABELS_PREFIX: Final = "info.Labels"
"""What errors about labels begin with."""

_CONTENT_TYPE: Final = "content"
_INGESTS_TYPE: Final = "ingests"
_SIZE: Final = b"size"
_REF: Final = b"ref"
_EXPIRE_AT: Final = b"expireat"
_EXPECTED: Final = b"expected"


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom a store works: the namespace, and the lease ("" without one) that holds what is written."""

    namespace: str
    lease: str


@dataclass(frozen=True, slots=True)
class IngestRecord:
    """raw_ref names the raw store's ingest; expected is empty unless it is shared. made: there was none before."""

    raw_ref: str
    expected: str
    made: bool = False


# --- blobs ------------------------------------------------------------------------------------------------------------


def find_blob(root: Bucket, namespace: str, digest: str) -> Info | None:
    """Give what a namespace knows of a blob, None if nothing."""
    record = schema.object_bucket(root, namespace, schema.CONTENT, schema.BLOB, digest)
    return None if record is None else _info(digest, record.tree())


def read_blob(root: Bucket, namespace: str, digest: str) -> Info:
    """Give what a namespace knows of a blob. Raises NotFound."""
    if (info := find_blob(root, namespace, digest)) is None:
        raise NotFound(f"content {digest}")
    return info


def blobs_after(
    root: Bucket, namespace: str, after: bytes | None, limit: int, wanted: Filter
) -> tuple[list[Info], bytes | None]:
    """Give those of the next `limit` records behind a key (None: the first ones) that match, and the last key seen.

    The key is None when there are no more. Names that are no digests are passed over.
    """
    blobs = schema.object_bucket(root, namespace, schema.CONTENT, schema.BLOB)
    if blobs is None:
        return [], None
    cursor = blobs.cursor()
    entry = cursor.first() if after is None else cursor.seek(after)
    if entry is not None and entry[0] == after:
        entry = cursor.next()
    found: list[Info] = []
    last = None
    for _ in range(limit):
        if entry is None:
            return found, None
        last = entry[0]
        record = blobs.bucket(last)
        if record is not None and not digest_fault(text := decode_text(last)):
            info = _info(text, record.tree())
            if wanted.match(MappingAdaptor({"digest": text, "labels": info.labels})):
                found.append(info)
        entry = cursor.next()
    return found, last


def write_blob(root: Bucket, caller: Caller, info: Info) -> None:
    """Write a blob's record, over the one that may be there, and put the blob under the caller's lease."""
    record = schema.made_object_bucket(root, caller.namespace, schema.CONTENT, schema.BLOB, info.digest)
    put_times(record, info.created_at, info.updated_at)
    write_labels(record, info.labels)
    record.put(_SIZE, encode_zigzag(info.size))
    lease_blob(root, caller, info.digest)


def lease_blob(root: Bucket, caller: Caller, digest: str) -> None:
    """Put a blob under the caller's lease. Raises NotFound `lease does not exist`."""
    add_to_lease(root, caller.namespace, caller.lease, _CONTENT_TYPE, digest)


def check_lease(root: Bucket, caller: Caller) -> None:
    """Raise NotFound `lease does not exist` if the caller names a lease that there is not."""
    if caller.lease and schema.object_bucket(root, caller.namespace, schema.LEASES, caller.lease) is None:
        raise NotFound("lease does not exist")


def relabel_blob(root: Bucket, namespace: str, digest: str, labels: Mapping[str, str], paths: Sequence[str]) -> Info:
    """Replace a blob's labels or those that paths name, as the port's `update`."""
    stored = read_blob(root, namespace, digest)
    kept = dict(stored.labels) if paths else labels
    for path in paths:
        field, dot, key = path.partition(".")
        if path == "labels":
            kept = dict(labels)
        elif (field, dot) == ("labels", "."):
            kept = {**kept, key: labels.get(key, "")}
        else:
            raise InvalidArgument(f"cannot update {quote(path)} field on content info {quote(digest)}")
    validate_labels(kept, LABELS_PREFIX)
    info = Info(
        digest=stored.digest,
        size=stored.size,
        created_at=stored.created_at,
        updated_at=time.time_ns(),
        labels=normalise_labels(kept),
    )
    write_blob(root, Caller(namespace, ""), info)
    return info


def delete_blob(root: Bucket, caller: Caller, digest: str) -> None:
    """Remove a blob's record and take the blob from the caller's lease. Raises NotFound."""
    read_blob(root, caller.namespace, digest)
    schema.made_object_bucket(root, caller.namespace, schema.CONTENT, schema.BLOB).delete_bucket(encode_text(digest))
    remove_from_lease(root, caller.namespace, caller.lease, _CONTENT_TYPE, digest)


def is_shareable(root: Bucket, digest: str) -> bool:
    """Return whether a namespace that shares its blobs with all has this one."""
    for name, record in schema.namespaces(root):
        labels = record.bucket(LABELS)
        if labels is not None and labels.get(SHAREABLE) == b"true" and find_blob(root, name, digest) is not None:
            return True
    return False


def _info(digest: str, record: Tree) -> Info:
    created, updated = times_of(record)
    size = value_of(record, _SIZE)
    return Info(
        digest=Digest(digest),
        size=decode_zigzag(size) if size else 0,
        created_at=created,
        updated_at=updated,
        labels=texts_of(record, LABELS),
    )


# --- ingests ----------------------------------------------------------------------------------------------------------


def open_ingest(root: Bucket, caller: Caller, ref: str, expected: str) -> IngestRecord:
    """Record that a ref is opened now, and put it under the caller's lease.

    expected is the blob that stands in for its bytes, or empty. Raises NotFound `lease does not exist`.
    """
    made = find_ingest(root, caller.namespace, ref) is None
    record = schema.made_object_bucket(root, caller.namespace, schema.CONTENT, schema.INGESTS, ref)
    add_to_lease(root, caller.namespace, caller.lease, _INGESTS_TYPE, ref)
    raw_ref = record.get(_REF)
    if not raw_ref:
        raw_ref = encode_text(f"{caller.namespace}/{record.next_sequence()}/{ref}")
        record.put(_REF, raw_ref)
    if not caller.lease:
        record.put(_EXPIRE_AT, encode_time(time.time_ns() + INGEST_LIFE))
    if expected:
        record.put(_EXPECTED, encode_text(expected))
    else:
        record.delete(_EXPECTED)
    return IngestRecord(decode_text(raw_ref), expected, made)


def find_ingest(root: Bucket, namespace: str, ref: str) -> IngestRecord | None:
    """Give the record of a ref, None without one."""
    record = schema.object_bucket(root, namespace, schema.CONTENT, schema.INGESTS, ref)
    return None if record is None else _ingest(record.tree())


def read_ingest(root: Bucket, namespace: str, ref: str) -> IngestRecord:
    """Give the record of a ref. Raises NotFound."""
    found = find_ingest(root, namespace, ref)
    if found is None or not found.raw_ref:
        raise NotFound(f"ingest ref {ref!r}")
    return found


def unshare_ingest(root: Bucket, namespace: str, ref: str) -> None:
    """Record that an ingest has bytes of its own now; without effect if its record is gone."""
    record = schema.object_bucket(root, namespace, schema.CONTENT, schema.INGESTS, ref)
    if record is not None:
        record.delete(_EXPECTED)


def delete_ingest(root: Bucket, caller: Caller, ref: str) -> None:
    """Remove the record of a ref, without effect if there is none, and take it from the caller's lease."""
    ingests = schema.object_bucket(root, caller.namespace, schema.CONTENT, schema.INGESTS)
    if ingests is not None and ingests.bucket(encode_text(ref)) is not None:
        ingests.delete_bucket(encode_text(ref))
    remove_from_lease(root, caller.namespace, caller.lease, _INGESTS_TYPE, ref)


def ingests_of(root: Bucket, namespace: str) -> dict[str, str]:
    """Give the refs of a namespace by the names of their ingests in the raw store."""
    ingests = schema.object_bucket(root, namespace, schema.CONTENT, schema.INGESTS)
    return {_ingest(record).raw_ref: ref for ref, record in schema.trees(ingests)}


def _ingest(record: Tree) -> IngestRecord:
    return IngestRecord(text_of(record, _REF), text_of(record, _EXPECTED))


# --- what the raw store is asked to keep ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Named:
    """What the records of all namespaces name in the raw store."""

    digests: frozenset[str]
    raw_refs: frozenset[str]


def named(root: Bucket) -> Named:
    """Give all blobs, those that shared ingests expect included, and all ingests that have a record."""
    digests: set[str] = set()
    raw_refs: set[str] = set()
    for _, namespace in schema.namespaces(root):
        held = schema.path(namespace, schema.CONTENT, schema.BLOB)
        digests.update(decode_text(name) for name, value in (held.items() if held else ()) if value is None)
        for _, record in schema.trees(schema.path(namespace, schema.CONTENT, schema.INGESTS)):
            ingest = _ingest(record)
            raw_refs.add(ingest.raw_ref)
            digests.add(ingest.expected)
    return Named(frozenset(digests), frozenset(raw_refs))


def is_named_blob(root: Bucket, digest: str) -> bool:
    """Return whether any record names the blob."""
    for _, namespace in schema.namespaces(root):
        if schema.path(namespace, schema.CONTENT, schema.BLOB, digest) is not None:
            return True
        ingests = schema.trees(schema.path(namespace, schema.CONTENT, schema.INGESTS))
        if any(_ingest(record).expected == digest for _, record in ingests):
            return True
    return False


def is_named_ingest(root: Bucket, raw_ref: str) -> bool:
    """Return whether a record names the raw store's ingest."""
    namespace, _, rest = raw_ref.partition("/")
    found = find_ingest(root, namespace, rest.partition("/")[2])
    return found is not None and found.raw_ref == raw_ref
