"""Merging and migrating trees of any content: later wins, nothing is invented, places stay true."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from moored.config.load import load
from moored.config.merge import merge
from moored.config.migrate import migrate
from moored.config.origin import grow
from moored.config.source import Document
from moored.config.toml import write

NAMES = st.sampled_from(["a", "b", "c.d"])
SCALARS = st.one_of(st.integers(0, 2), st.booleans(), st.sampled_from(["", "x", "y"]))
LISTS = st.lists(st.sampled_from(["p", "q", "r"]), max_size=3)
SECTIONS = st.recursive(
    st.one_of(SCALARS, LISTS), lambda below: st.dictionaries(NAMES, below, max_size=3), max_leaves=6
).filter(lambda value: isinstance(value, dict))
# a key has one type in all files, as one schema reads them
TABLES = st.fixed_dictionaries(
    {},
    optional={
        "oom_score": st.integers(0, 3),
        "root": st.sampled_from(["", "/x", "/y"]),
        "disabled_plugins": LISTS,
        "debug": st.fixed_dictionaries(
            {}, optional={"level": st.sampled_from(["", "info"]), "log_trace_id": st.booleans()}
        ),
        "timeouts": st.dictionaries(NAMES, st.sampled_from(["0s", "1s"]), max_size=3),
        "proxy_plugins": st.dictionaries(
            NAMES,
            st.dictionaries(st.sampled_from(["type", "address"]), st.sampled_from(["", "x"]), max_size=2),
            max_size=2,
        ),
        "plugins": st.dictionaries(st.sampled_from(["io.a.v1.a", "io.b.v1.b"]), SECTIONS, max_size=2),
    },
)


def plain(value):
    """Equality that tells true from 1."""
    return repr(value)


@given(TABLES)
def test_a_file_merged_with_itself_is_itself(table):
    tree = grow(table)

    once, twice = merge(grow({}), tree), merge(merge(grow({}), tree), tree)

    assert plain(twice.plain()) == plain(once.plain())


@given(TABLES)
def test_an_empty_file_changes_nothing(table):
    assert plain(merge(grow(table), grow({})).plain()) == plain(table)
    assert plain(merge(grow({}), grow(table)).plain()) == plain(table)


@given(TABLES, TABLES, TABLES)
def test_it_does_not_matter_which_two_are_merged_first(one, two, three):
    a, b, c = grow(one), grow(two), grow(three)

    left, right = merge(merge(a, b), c).plain(), merge(a, merge(b, c)).plain()

    # inside of [plugins] a later scalar replaces a table, and what is merged first decides what it replaces
    if not _clashes(one.get("plugins"), two.get("plugins"), three.get("plugins")):
        assert left == right


def _clashes(*values):
    present = [value for value in values if value is not None]
    tables = [value for value in present if isinstance(value, dict)]
    if len(tables) not in {0, len(present)}:
        return True
    keys = {key for table in tables for key in table}
    return any(_clashes(*(table.get(key) for table in tables)) for key in keys)


@given(TABLES, TABLES)
def test_a_later_value_wins_in_plugins_and_a_later_nonzero_above_them(earlier, later):
    merged = merge(grow(earlier), grow(later))

    for path, value in _leaves(later):
        if path[0] in {"plugins", "timeouts"} or (value and not isinstance(value, list)):
            assert plain(merged.at(*path).plain()) == plain(value)
        elif isinstance(value, list):
            assert set(value) <= set(merged.at(*path).plain())


@settings(max_examples=60, deadline=None)
@given(st.lists(TABLES, min_size=1, max_size=3))
def test_a_place_is_a_file_that_holds_the_key(tables):
    trees = []
    for number, table in enumerate(tables):
        document = Document(Path(f"f{number}"), write(table).encode())
        trees.append(grow(document.values, document))
    merged = trees[0]
    for tree in trees[1:]:
        merged = merge(merged, tree)

    for path, _ in _leaves(merged.plain()):
        origin = merged.origin(path)
        number = int(origin.file.removeprefix("f"))
        line = write(tables[number]).split("\n")[origin.line - 1]
        assert trees[number].at(*path) is not None
        assert path[-1] in line


CRI = "io.containerd.grpc.v1.cri"
OLD = st.fixed_dictionaries(
    {"version": st.sampled_from([1, 2, 3])},
    optional={
        "disabled_plugins": st.lists(st.sampled_from(["cri", "leases", "a.b"]), max_size=2),
        "grpc": st.dictionaries(
            st.sampled_from(["address", "uid", "gid", "tcp_address", "tcp_tls_ca", "max_recv_message_size", "other"]),
            st.sampled_from(["", "/x", 0, 5]),
        ),
        "ttrpc": st.dictionaries(st.sampled_from(["address", "uid"]), st.sampled_from(["", "/y", 0, 6])),
        "debug": st.dictionaries(st.sampled_from(["address", "uid", "level"]), st.sampled_from(["", "/z", 0, 7])),
        "metrics": st.dictionaries(
            st.sampled_from(["address", "grpc_histogram"]), st.sampled_from(["", "m", True, False])
        ),
        "plugins": st.dictionaries(
            st.sampled_from(
                [
                    "cri",
                    "cgroups",
                    "leases",
                    CRI,
                    "io.containerd.cri.v1.runtime",
                    "io.containerd.cri.v1.images",
                    "io.containerd.runtime.v2.task",
                    "io.containerd.shim.v1.manager",
                ]
            ),
            st.dictionaries(
                st.sampled_from(["sandbox_image", "registry", "cni", "containerd", "sched_core", "enable_cdi", "env"]),
                st.one_of(
                    st.sampled_from([0, 1, "x", True]),
                    st.dictionaries(
                        st.sampled_from(["bin_dir", "bin_dirs", "snapshotter", "runtimes"]),
                        SECTIONS | SCALARS,
                        max_size=2,
                    ),
                ),
                max_size=3,
            ),
            max_size=4,
        ),
    },
)


@settings(max_examples=150, deadline=None)
@given(OLD)
def test_migrating_never_fails_and_migrated_is_migrated(table):
    document = Document(Path("f"), write(table).encode())

    tree, _ = migrate(grow(document.values, document))
    again, notes = migrate(tree)

    assert tree.plain()["version"] == 4
    assert (again.plain(), notes) == (tree.plain(), ())


@settings(max_examples=150, deadline=None)
@given(OLD)
def test_a_value_that_migration_takes_away_is_moved_or_named(table):
    """Each value that is not zero is still there, or a note stands at its line or at its table's.

    A value that gives way to an equal one under another name is not lost.
    """
    document = Document(Path("f"), write(table).encode())
    tree, notes = migrate(grow(document.values, document))

    kept = {tree.origin(path).line for path, _ in _leaves(tree.plain())}
    named = {note.ref.origin().line for note in notes}
    for path, value in _leaves(document.values):
        if value and path[0] not in {"version", "disabled_plugins"}:
            lines = {document.line(path[:length]) for length in range(2, len(path) + 1)}
            twin = any(
                other[-1] == path[-1] and same == value for other, same in _leaves(document.values) if other != path
            )
            assert twin or lines & (kept | named), path


@settings(max_examples=60, deadline=None)
@given(OLD)
def test_loading_any_old_file_raises_nothing(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("c") / "config.toml"
    path.write_text(write(table))

    loaded = load(path, explicit=True)

    assert all(problem.origin.file or problem.origin.label for problem in loaded.problems)


def _leaves(value, path=()):
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _leaves(item, (*path, key))
        else:
            yield (*path, key), item
