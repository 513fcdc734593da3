"""What every `Database` does; each check takes a fresh one, and `CHECKS` lists them all."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from moored.kernel.conformance import fails_with, refuses
from moored.kernel.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unknown,
)
from moored.kernel.ports.metadata import MAX_KEY, MAX_NAME, Bucket, Cursor, Database, Entry

Check = Callable[[Database], Awaitable[None]]

TOP: Final = b"v1"
LENGTHS: Final = (1, 2, 100, 470, 471, 500, 501, 502, 503, 504, 510, 511, 512, 1003, 1004, 1005, 4096, MAX_KEY)
"""Name lengths around the key limits of the stores that may lie below."""


def top(root: Bucket) -> Bucket:
    """Give the bucket in which the checks work, made if need be."""
    return root.create_bucket_if_missing(TOP)


def tree(bucket: Bucket) -> dict[bytes, object]:
    """Give all that is in a bucket: values, and for buckets the pair of sequence number and tree."""
    found: dict[bytes, object] = {}
    for name, value in bucket.items():
        below = bucket.bucket(name)
        found[name] = value if below is None else (below.sequence(), tree(below))
    return found


def contents(db: Database) -> dict[bytes, object]:
    """Give all that is committed."""
    with db.view() as root:
        return tree(root)


async def check_new_database_is_empty(db: Database) -> None:
    """There is a root without entries."""
    with db.view() as root:
        assert list(root.items()) == []
        assert root.cursor().first() is None
        assert root.cursor().last() is None
        assert root.sequence() == 0


async def check_value_is_read_back(db: Database) -> None:
    """Put, overwrite, empty values, delete, and delete of nothing."""

    def change(root: Bucket) -> None:
        bucket = top(root)
        bucket.put(b"a", b"1")
        bucket.put(b"b", b"")
        bucket.put(b"c", b"3")
        bucket.put(b"a", b"one")
        bucket.delete(b"c")
        bucket.delete(b"never there")
        bucket.delete(b"")
        assert bucket.get(b"a") == b"one", "a write is seen in its own transaction"

    await db.update(change)
    assert contents(db) == {TOP: (0, {b"a": b"one", b"b": b""})}
    with db.view() as root:
        bucket = root.bucket(TOP)
        assert bucket is not None
        assert bucket.get(b"b") == b""
        assert bucket.get(b"c") is None
        assert bucket.get(b"") is None
        assert bucket.get(TOP) is None


async def check_any_bytes_are_names(db: Database) -> None:
    """NUL, slash, high bytes, and names that begin alike."""
    odd = [b"\0", b"\0\0", b"\0\1", b"/", b"a", b"a\0", b"a\0b", b"a\1", b"\xff", b"\xff\xff" * 300, "ключ".encode()]

    def change(root: Bucket) -> None:
        for name in odd:
            top(root).put(name, name)

    await db.update(change)
    with db.view() as root:
        assert list(_top(root).items()) == [(name, name) for name in sorted(odd)]


async def check_buckets_nest(db: Database) -> None:
    """A bucket in a bucket, found again, and removed with all that is in it."""

    def change(root: Bucket) -> None:
        ns = top(root).create_bucket(b"ns")
        ns.create_bucket(b"images").create_bucket(b"i1").put(b"k", b"v")
        ns.create_bucket_if_missing(b"images").put(b"plain", b"x")
        ns.create_bucket(b"empty")

    await db.update(change)
    images = {b"i1": (0, {b"k": b"v"}), b"plain": b"x"}
    assert contents(db) == {TOP: (0, {b"ns": (0, {b"empty": (0, {}), b"images": (0, images)})})}
    await db.update(lambda root: top(root).delete_bucket(b"ns"))
    assert contents(db) == {TOP: (0, {})}
    await db.update(lambda root: top(root).create_bucket(b"ns").put(b"k", b"new"))
    assert contents(db) == {TOP: (0, {b"ns": (0, {b"k": b"new"})})}


async def check_trees_hold_all_at_once(db: Database) -> None:
    """The tree of a bucket, and those of the buckets in it, in the order of their names and without sequences."""

    def change(root: Bucket) -> None:
        for number in range(40):
            record = top(root).create_bucket(b"%02d" % number)
            record.put(b"k", b"v")
            record.create_bucket(b"labels").put(b"a", b"b")
            record.set_sequence(number)
        top(root).put(b"10 is a value", b"1")
        assert top(root).tree()[b"07"] == record_tree, "what was just written is in it"
        assert next(iter(top(root).trees())) == (b"00", record_tree)

    record_tree = {b"k": b"v", b"labels": {b"a": b"b"}}
    await db.update(change)
    with db.view() as root:
        bucket = _top(root)
        assert list(bucket.trees()) == [(b"%02d" % number, record_tree) for number in range(40)]
        assert bucket.tree() == {b"10 is a value": b"1"} | {b"%02d" % number: record_tree for number in range(40)}
        below = bucket.bucket(b"03")
        assert below is not None
        assert below.tree() == record_tree
        assert list(below.trees()) == [(b"labels", {b"a": b"b"})]
        assert root.tree() == {TOP: bucket.tree()}


async def check_deep_nesting_works(db: Database) -> None:
    """64 levels, removed in one call."""

    def change(root: Bucket) -> None:
        bucket = top(root)
        for _ in range(64):
            bucket.put(b"here", b"1")
            bucket = bucket.create_bucket(b"down")

    await db.update(change)
    await db.update(lambda root: root.delete_bucket(TOP))
    assert contents(db) == {}


async def check_value_and_bucket_exclude_each_other(db: Database) -> None:
    """`incompatible value`, and None from the reads."""

    def change(root: Bucket) -> None:
        bucket = top(root)
        bucket.put(b"value", b"1")
        bucket.create_bucket(b"bucket").put(b"k", b"v")
        refuses(Unknown, lambda: bucket.put(b"bucket", b"1"), "incompatible value")
        refuses(Unknown, lambda: bucket.delete(b"bucket"), "incompatible value")
        refuses(Unknown, lambda: bucket.create_bucket(b"value"), "incompatible value")
        refuses(Unknown, lambda: bucket.create_bucket_if_missing(b"value"), "incompatible value")
        refuses(Unknown, lambda: bucket.delete_bucket(b"value"), "incompatible value")
        assert bucket.get(b"bucket") is None
        assert bucket.bucket(b"value") is None

    await db.update(change)
    assert contents(db) == {TOP: (0, {b"value": b"1", b"bucket": (0, {b"k": b"v"})})}


async def check_names_are_checked(db: Database) -> None:
    """Empty and overlong names, taken and missing ones."""

    def change(root: Bucket) -> None:
        bucket = top(root)
        refuses(Unknown, lambda: bucket.put(b"", b"v"), "key required")
        refuses(Unknown, lambda: bucket.put(b"k" * (MAX_KEY + 1), b"v"), "key too large")
        refuses(Unknown, lambda: bucket.create_bucket(b""), "bucket name required")
        refuses(Unknown, lambda: bucket.create_bucket_if_missing(b""), "bucket name required")
        refuses(Unknown, lambda: bucket.create_bucket(b"b" * (MAX_NAME + 1)), "key too large")
        refuses(AlreadyExists, lambda: root.create_bucket(TOP), "bucket already exists")
        refuses(NotFound, lambda: bucket.delete_bucket(b"missing"), "bucket not found")
        refuses(NotFound, lambda: bucket.delete_bucket(b""), "bucket not found")
        assert bucket.bucket(b"missing") is None
        assert bucket.bucket(b"") is None

    await db.update(change)
    assert contents(db) == {TOP: (0, {})}


async def check_root_holds_only_buckets(db: Database) -> None:
    """As bbolt's files do."""
    await fails_with(InvalidArgument, db.update(lambda root: root.put(b"k", b"v")))
    assert contents(db) == {}


async def check_long_names_keep_their_order(db: Database) -> None:
    """Names of all lengths with one beginning, as values and as buckets, read forwards, backwards and by seek."""
    names = sorted({b"n" * length + tail for length in LENGTHS for tail in (b"", b"\0", b"a", b"\xff", b"\0\xff")})
    names = [name for name in names if len(name) <= MAX_KEY]

    def change(root: Bucket) -> None:
        for name in reversed(names):
            if name.endswith(b"a"):
                top(root).create_bucket(name).put(b"in", name)
            else:
                top(root).put(name, name)

    await db.update(change)
    entries: list[Entry] = [(name, None if name.endswith(b"a") else name) for name in names]
    with db.view() as root:
        bucket = _top(root)
        assert list(bucket.items()) == entries
        assert _backwards(bucket.cursor()) == entries[::-1]
        for entry in entries:
            _check_neighbours(bucket, entries, entry[0])
            below = bucket.bucket(entry[0])
            assert (below.get(b"in") if below else bucket.get(entry[0])) == entry[0]


def _check_neighbours(bucket: Bucket, entries: list[Entry], name: bytes) -> None:
    for target in (name, name + b"\0", name[:-1], name[:-1] + bytes([max(name[-1] - 1, 0)]), name + b"\xff" * 600):
        wanted = next((entry for entry in entries if entry[0] >= target), None)
        assert bucket.cursor().seek(target) == wanted, f"seek({target[:20]!r}.. of {len(target)} bytes)"
        cursor = bucket.cursor()
        if cursor.seek(target) is not None:
            place = entries.index(wanted) if wanted else 0
            assert cursor.prev() == (entries[place - 1] if place else None)


async def check_long_names_leave_nothing_behind(db: Database) -> None:
    """All are deleted in one way or another, then new ones of the same names are empty."""
    names = [b"n" * length for length in LENGTHS]

    def fill(root: Bucket) -> None:
        for name in names:
            top(root).create_bucket(name).put(b"k", b"v")

    await db.update(fill)
    await db.update(lambda root: _delete_buckets(top(root), names[::2]))
    assert contents(db) == {TOP: (0, {name: (0, {b"k": b"v"}) for name in names[1::2]})}
    await db.update(lambda root: root.delete_bucket(TOP))
    await db.update(lambda root: [top(root).create_bucket(name) for name in names])
    assert contents(db) == {TOP: (0, {name: (0, {}) for name in names})}
    await db.update(lambda root: _delete_buckets(top(root), names))
    assert contents(db) == {TOP: (0, {})}


async def check_bucket_names_pass_the_key_limit(db: Database) -> None:
    """Only the keys of values are limited to MAX_KEY."""
    name = b"i" * (MAX_KEY + 1)
    await db.update(lambda root: top(root).create_bucket(name).put(b"k", b"v"))
    assert contents(db) == {TOP: (0, {name: (0, {b"k": b"v"})})}


async def check_large_values_are_kept(db: Database) -> None:
    """Some megabytes in one value."""
    value = bytes(range(256)) * (3 << 12)
    await db.update(lambda root: top(root).put(b"k", value))
    assert contents(db) == {TOP: (0, {b"k": value})}


async def check_cursor_walks_both_ways(db: Database) -> None:
    """First, last, next, prev, seek, the ends, and a bucket's None."""

    def change(root: Bucket) -> None:
        for name in (b"b", b"d", b"f"):
            top(root).put(name, name.upper())
        top(root).create_bucket(b"e")

    await db.update(change)
    b, d, e, f = (b"b", b"B"), (b"d", b"D"), (b"e", None), (b"f", b"F")
    with db.view() as root:
        cursor = _top(root).cursor()
        assert cursor.next() == b, "without a position next is first"
        assert [cursor.next(), cursor.next(), cursor.next()] == [d, e, f]
        assert cursor.next() is None
        assert cursor.prev() == e, "the end leaves the position at the last entry"
        assert [cursor.prev(), cursor.prev()] == [d, b]
        assert cursor.prev() is None
        assert cursor.next() == d
        assert [cursor.seek(b""), cursor.seek(b"c"), cursor.seek(b"d"), cursor.seek(b"d\0")] == [b, d, d, e]
        assert cursor.seek(b"g") is None
        assert cursor.next() == f, "a seek that finds nothing leaves the position"
        assert [cursor.first(), cursor.last()] == [b, f]
        assert _top(root).cursor().prev() == f, "without a position prev is last"


async def check_items_take_a_prefix(db: Database) -> None:
    """Exactly the names that start with it."""
    names = [b"a", b"a/", b"a/1", b"a/2", b"a0", b"b", b"\xff", b"\xff\xff"]
    await db.update(lambda root: _put_all(top(root), names))
    with db.view() as root:
        bucket = _top(root)
        assert [name for name, _ in bucket.items(b"a/")] == [b"a/", b"a/1", b"a/2"]
        assert [name for name, _ in bucket.items(b"\xff")] == [b"\xff", b"\xff\xff"]
        assert list(bucket.items(b"c")) == []


async def check_cursor_deletes(db: Database) -> None:
    """Values go at the position and the walk goes on; buckets stay."""

    def change(root: Bucket) -> None:
        bucket = top(root)
        for name in (b"a", b"b", b"c" * 700, b"c" * 701, b"d"):
            bucket.put(name, b"v")
        bucket.create_bucket(b"e")
        cursor = bucket.cursor()
        refuses(FailedPrecondition, cursor.delete)
        entry = cursor.first()
        while entry is not None:
            if entry[1] is not None:
                cursor.delete()
                cursor.delete()
            entry = cursor.next()
        refuses(Unknown, cursor.delete, "incompatible value")

    await db.update(change)
    assert contents(db) == {TOP: (0, {b"e": (0, {})})}


async def check_walk_sees_changes_ahead(db: Database) -> None:
    """The position is a name, so that adding and removing on the way is well defined."""

    def change(root: Bucket) -> list[bytes]:
        bucket = top(root)
        for name in (b"a", b"c", b"e" * 600, b"e" * 601):
            bucket.put(name, b"v")
        seen: list[bytes] = []
        for name, _ in bucket.items():  # noqa: PERF102 - no dict
            seen.append(name)
            if name == b"a":
                bucket.put(b"b", b"v")
                bucket.delete(b"c")
                bucket.delete(b"e" * 600)
                bucket.put(b"e" * 602, b"v")
            bucket.delete(name)
        return seen

    assert await db.update(change) == [b"a", b"b", b"e" * 601, b"e" * 602]
    assert contents(db) == {TOP: (0, {})}


async def check_sequences_count(db: Database) -> None:
    """Each bucket has its own; emptying keeps it, a new bucket starts at zero."""

    def change(root: Bucket) -> None:
        bucket = top(root)
        assert [bucket.next_sequence(), bucket.next_sequence()] == [1, 2]
        inner = bucket.create_bucket(b"inner")
        inner.set_sequence(2**64 - 1)
        assert inner.sequence() == 2**64 - 1
        assert inner.next_sequence() == 0
        inner.set_sequence(2**63)
        refuses(InvalidArgument, lambda: inner.set_sequence(-1))
        refuses(InvalidArgument, lambda: inner.set_sequence(2**64))
        inner.put(b"k", b"v")
        inner.delete(b"k")

    await db.update(change)
    assert contents(db) == {TOP: (2, {b"inner": (2**63, {})})}
    await db.update(lambda root: top(root).delete_bucket(b"inner"))
    await db.update(lambda root: top(root).create_bucket(b"inner"))
    assert contents(db) == {TOP: (2, {b"inner": (0, {})})}


async def check_root_is_found_in_an_update(db: Database) -> None:
    """By any of the update's buckets, with what it has changed."""

    def change(root: Bucket) -> bytes | None:
        bucket = top(root)
        bucket.put(b"k", b"v")
        return top(db.root_in(bucket)).get(b"k")

    assert await db.update(change) == b"v"
    assert db.file is db.file


async def check_failed_update_is_rolled_back(db: Database) -> None:
    """All of it, sequence numbers included, and the caller gets the very error."""
    reason = KeyError("enough")
    await db.update(lambda root: top(root).put(b"k", b"old"))

    def change(root: Bucket) -> None:
        bucket = top(root)
        bucket.put(b"k", b"new")
        bucket.put(b"l" * 2000, b"new")
        bucket.next_sequence()
        bucket.create_bucket(b"b").put(b"k", b"v")
        root.create_bucket(b"v2")
        raise reason

    (outcome,) = await asyncio.gather(db.update(change), return_exceptions=True)
    assert outcome is reason
    assert contents(db) == {TOP: (0, {b"k": b"old"})}


async def check_each_caller_gets_its_own_outcome(db: Database) -> None:
    """Of many updates at once the failing ones fail alone, and the order is that of the calls."""
    order: list[int] = []

    def change(number: int) -> Callable[[Bucket], int]:
        def run(root: Bucket) -> int:
            order.append(number)
            bucket = top(root)
            bucket.put(b"%03d" % number, b"v")
            if number % 3 == 0:
                raise NotFound(f"no {number}")
            return int.from_bytes(b"%d" % bucket.next_sequence(), "big")

        return run

    async def one(number: int) -> bool:
        try:
            await db.update(change(number))
        except NotFound as error:
            return error.text != f"no {number}"
        return True

    outcomes = await asyncio.gather(*(one(number) for number in range(100)))
    assert outcomes == [number % 3 != 0 for number in range(100)]
    assert order == sorted(order)
    survivors = [number for number in range(100) if number % 3]
    assert contents(db) == {TOP: (len(survivors), {b"%03d" % number: b"v" for number in survivors})}


async def check_stop_iteration_is_an_error(db: Database) -> None:
    """An update that lets StopIteration out fails instead of hanging its caller."""

    def change(root: Bucket) -> None:
        top(root)
        raise StopIteration(1)

    await fails_with(Internal, db.update(change))
    assert contents(db) == {}


async def check_update_gives_the_result(db: Database) -> None:
    """Whatever it is."""
    marker = object()
    assert await db.update(lambda _: marker) is marker


async def check_updates_run_one_at_a_time(db: Database) -> None:
    """No increment is lost, however many run."""

    def change(root: Bucket) -> None:
        bucket = top(root)
        bucket.put(b"n", b"%d" % (int(bucket.get(b"n") or b"0") + 1))

    await asyncio.gather(*(db.update(change) for _ in range(200)))
    assert contents(db) == {TOP: (0, {b"n": b"200"})}


async def check_view_is_a_snapshot(db: Database) -> None:
    """What is committed later does not appear in it; views may overlap."""
    await db.update(lambda root: top(root).put(b"k", b"1"))
    with db.view() as before:
        await db.update(lambda root: top(root).put(b"k", b"2"))
        with db.view() as after:
            assert _top(before).get(b"k") == b"1"
            assert _top(after).get(b"k") == b"2"
        assert list(_top(before).items()) == [(b"k", b"1")]


async def check_view_works_on_another_thread(db: Database) -> None:
    """The whole view, from begin to end."""
    await db.update(lambda root: top(root).put(b"k", b"1"))
    assert await asyncio.to_thread(contents, db) == {TOP: (0, {b"k": b"1"})}


async def check_view_refuses_writes(db: Database) -> None:
    """`tx not writable` from each method that changes something."""
    await db.update(lambda root: top(root).put(b"k", b"v"))
    await db.update(lambda root: top(root).create_bucket(b"b"))
    with db.view() as root:
        bucket = _top(root)
        cursor = bucket.cursor()
        cursor.first()
        for call in (
            lambda: bucket.put(b"k", b"v"),
            lambda: bucket.delete(b"k"),
            lambda: bucket.create_bucket(b"c"),
            lambda: bucket.create_bucket_if_missing(b"b"),
            lambda: bucket.delete_bucket(b"b"),
            bucket.next_sequence,
            lambda: bucket.set_sequence(1),
            cursor.delete,
        ):
            refuses(Internal, call, "tx not writable")


async def check_handles_die_with_their_transaction(db: Database) -> None:
    """Views and updates, also failed ones."""
    kept: list[Bucket] = []
    await db.update(lambda root: kept.append(top(root)))

    def change(root: Bucket) -> None:
        kept.append(top(root))
        raise NotFound("no")

    await fails_with(NotFound, db.update(change))
    with db.view() as root:
        kept += [root, _top(root)]
        cursor = root.cursor()
    for bucket in kept:
        refuses(Internal, lambda bucket=bucket: bucket.get(b"k"), "tx closed")  # type: ignore[misc]
        refuses(Internal, lambda bucket=bucket: bucket.put(b"k", b"v"), "tx closed")  # type: ignore[misc]
        refuses(Internal, bucket.sequence, "tx closed")
        refuses(Internal, lambda bucket=bucket: list(bucket.items()), "tx closed")  # type: ignore[misc]
    refuses(Internal, cursor.first, "tx closed")


async def check_handle_of_a_deleted_bucket_is_refused(db: Database) -> None:
    """Its own and those below it, also when a new bucket has the name."""

    def change(root: Bucket) -> None:
        bucket = top(root).create_bucket(b"b")
        below = bucket.create_bucket(b"below")
        top(root).delete_bucket(b"b")
        new = top(root).create_bucket(b"b")
        for stale in (bucket, below):
            refuses(NotFound, lambda stale=stale: stale.put(b"k", b"v"), "bucket not found")  # type: ignore[misc]
            refuses(NotFound, lambda stale=stale: stale.get(b"k"), "bucket not found")  # type: ignore[misc]
        new.put(b"k", b"new")

    await db.update(change)
    assert contents(db) == {TOP: (0, {b"b": (0, {b"k": b"new"})})}


async def check_cancelled_update_is_whole(db: Database) -> None:
    """It happened or it did not, and later ones work."""

    def change(root: Bucket) -> None:
        top(root).put(b"a", b"1")
        top(root).put(b"b", b"1")

    tasks = [asyncio.create_task(db.update(change)) for _ in range(20)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await db.update(lambda root: top(root).put(b"c", b"1"))
    found = contents(db)[TOP]
    assert found in ((0, {b"c": b"1"}), (0, {b"a": b"1", b"b": b"1", b"c": b"1"}))


async def check_counters_are_told(db: Database) -> None:
    """Updates count, failed ones do not."""
    before = db.stats()
    await db.update(top)
    await fails_with(NotFound, db.update(lambda root: root.delete_bucket(b"missing")))
    after = db.stats()
    assert after.updates == before.updates + 1
    assert 1 <= after.commits <= after.updates
    assert after.waiting == 0
    assert after.failed is None
    assert not after.full


async def check_backup_refuses_what_exists(db: Database) -> None:
    """And makes what does not."""
    with tempfile.TemporaryDirectory() as folder:
        await fails_with(AlreadyExists, db.backup(Path(folder)))
        await db.backup(Path(folder) / "copy")
        assert (Path(folder) / "copy").is_dir()


async def check_closed_database_is_unavailable(db: Database) -> None:
    """Every call but stats and close."""
    await db.update(top)
    await db.close()
    await db.close()
    await fails_with(Unavailable, db.update(top))
    await fails_with(Unavailable, db.backup(Path("/nonexistent/copy")))
    refuses(Unavailable, lambda: db.view().__enter__())
    assert db.stats().failed is not None


async def check_close_finishes_what_was_accepted(db: Database) -> None:
    """Updates that were called before close end well or are refused, none hangs."""
    threads = threading.active_count()
    tasks = [asyncio.create_task(db.update(top)) for _ in range(20)]
    await asyncio.sleep(0)
    await db.close()
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, Unavailable) or not isinstance(outcome, BaseException) for outcome in outcomes)
    assert threading.active_count() <= threads + 1, "the pool thread that closes may stay, the writer may not"


def _put_all(bucket: Bucket, names: list[bytes]) -> None:
    for name in names:
        bucket.put(name, b"")


def _delete_buckets(bucket: Bucket, names: list[bytes]) -> None:
    for name in names:
        bucket.delete_bucket(name)


def _top(root: Bucket) -> Bucket:
    bucket = root.bucket(TOP)
    assert bucket is not None
    return bucket


def _backwards(cursor: Cursor) -> list[Entry]:
    found: list[Entry] = []
    entry = cursor.last()
    while entry is not None:
        found.append(entry)
        entry = cursor.prev()
    return found


CHECKS: Final[tuple[Check, ...]] = tuple(
    value for name, value in sorted(globals().items()) if name.startswith("check_") and callable(value)
)
"""All checks, for `for check in CHECKS: await check(fresh_database)`."""
