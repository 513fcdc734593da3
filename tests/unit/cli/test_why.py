"""Explanations lead to the root cause, name everybody concerned and end even where records contradict each other."""

from __future__ import annotations

import dataclasses

from moored.api.cli import records
from moored.api.cli.render import Screen
from moored.api.cli.why import explain, shown
from unit.cli.canned import CONTENT, GRPC, METADATA, SNAPSHOTTER, TRANSFER, plugin, plugins


def told(name, width=120):
    found = plugins()
    return Screen(width).text(*shown(explain(records.find(found, name), found)))


def explained(name, found):
    return explain(records.find(found, name), found)


def test_a_blocked_plugin_is_drawn_down_to_the_root_cause():
    assert told("cri") == (
        "io.containerd.grpc.v1.cri  blocked\n"
        "  reason       requires io.containerd.grpc.v1: io.containerd.grpc.v1.images is blocked\n"
        "  from         moored 0.1.0\n"
        "  entry point  moored.plugins.cri.plugin:plugin\n"
        "\n"
        "blocked by\n"
        "└── io.containerd.grpc.v1.cri  blocked\n"
        "    └── io.containerd.grpc.v1.images  blocked\n"
        "        └── io.containerd.metadata.v1.bolt  failed: "
        "OSError: [Errno 28] No space left on device  (root cause)\n"
        "next: moorctl plugins why io.containerd.metadata.v1.bolt\n"
        "\n"
        "requires\n"
        "├── io.containerd.grpc.v1\n"
        "│   └── io.containerd.grpc.v1.images  blocked\n"
        "└── io.containerd.snapshotter.v1\n"
        "    └── io.containerd.snapshotter.v1.native  ok\n"
    )


def test_a_failed_plugin_is_shown_with_its_traceback_and_those_it_keeps_from_starting():
    assert told("bolt") == (
        "io.containerd.metadata.v1.bolt  failed\n"
        "  reason       OSError: [Errno 28] No space left on device\n"
        "  from         moored 0.1.0\n"
        "  entry point  moored.plugins.bolt.plugin:plugin\n"
        "  import       3ms\n"
        "  start        1.2s\n"
        "  flags        required\n"
        "\n"
        "requires\n"
        "└── io.containerd.content.v1\n"
        "    └── io.containerd.content.v1.content  ok\n"
        "\n"
        "starts after\n"
        "└── io.containerd.event.v1\n"
        "    └── io.containerd.event.v1.exchange  ok\n"
        "\n"
        "required by\n"
        "└── io.containerd.grpc.v1.images  blocked\n"
        "\n"
        "keeps from starting\n"
        "├── io.containerd.grpc.v1.images  blocked\n"
        "└── io.containerd.grpc.v1.cri  blocked\n"
        "\n"
        "traceback\n"
        "  Traceback (most recent call last):\n"
        '    File "bolt.py", line 7, in open_\n'
        "  OSError: [Errno 28] No space left on device\n"
    )


def test_a_type_that_nothing_provides_is_a_root_cause():
    text = told("transfer")

    assert f"└── {TRANSFER}  missing: no installed plugin provides it  (root cause)\n" in text
    assert f"next: install a plugin of type {TRANSFER}\n" in text


def test_a_plugin_that_runs_has_no_cause_and_keeps_nobody_from_starting():
    explanation = explained("native", plugins())

    assert explanation.causes == ()
    assert explanation.blocks == ()
    assert [other.id for other in explanation.dependents] == ["images", "cri"]


def test_one_provider_that_runs_is_enough():
    """zfs was skipped, native runs; so images is blocked by the metadata store alone."""
    assert explained("images", plugins()).roots() == [f"{METADATA}.bolt"]
    assert explained("zfs", plugins()).blocks == ()


def test_all_causes_are_named_not_only_the_first():
    found = [
        plugin(CONTENT, "content", "failed", reason="x"),
        plugin(SNAPSHOTTER, "a", "skipped", reason="y"),
        plugin(SNAPSHOTTER, "b", "disabled", reason="z"),
        plugin(
            GRPC,
            "g",
            "blocked",
            requires=(CONTENT, SNAPSHOTTER, TRANSFER),
            depends_on=(f"{CONTENT}.content", f"{SNAPSHOTTER}.a", f"{SNAPSHOTTER}.b"),
        ),
    ]

    assert explained("g", found).roots() == [f"{CONTENT}.content", f"{SNAPSHOTTER}.a", f"{SNAPSHOTTER}.b", TRANSFER]


def test_a_cause_shared_by_two_is_drawn_in_full_once():
    found = [
        plugin("io.a.v1", "a", "failed", reason="x"),
        plugin("io.m.v1", "m", "blocked", requires=("io.a.v1",), depends_on=("io.a.v1.a",)),
        plugin("io.b.v1", "b", "blocked", requires=("io.m.v1",), depends_on=("io.m.v1.m",)),
        plugin("io.c.v1", "c", "blocked", requires=("io.m.v1",), depends_on=("io.m.v1.m",)),
        plugin("io.d.v1", "d", "blocked", requires=("io.b.v1", "io.c.v1"), depends_on=("io.b.v1.b", "io.c.v1.c")),
    ]

    explanation = explained("d", found)

    assert explanation.roots() == ["io.a.v1.a"]
    assert Screen().text(*shown(explanation)).count("io.m.v1.m  blocked  (*)") == 1


def test_plugins_that_block_each_other_end_the_drawing():
    found = [
        plugin("io.a.v1", "a", "blocked", requires=("io.b.v1",), depends_on=("io.b.v1.b",)),
        plugin("io.b.v1", "b", "blocked", requires=("io.a.v1",), depends_on=("io.a.v1.a",)),
    ]

    text = Screen().text(*shown(explained("a", found)))

    assert "        └── io.a.v1.a  blocked  (*)\n" in text


def test_the_daemon_s_own_chain_is_shown_where_edges_explain_nothing():
    found = [plugin(GRPC, "g", "blocked", blocked_by=("io.x.v1.x", "io.y.v1")), plugin("io.x.v1", "x", "failed")]

    assert explained("g", found).roots() == ["io.y.v1"]
    assert explained("x", found).blocks == (found[0],)


def test_the_json_document_has_the_documented_keys():
    document = explained("cri", plugins()).document()

    assert list(document) == ["plugin", "requires", "after", "causes", "root_causes", "dependents", "blocks"]
    assert document["plugin"] == dataclasses.asdict(records.find(plugins(), "cri"))
    assert document["requires"][0]["providers"][0]["uri"] == f"{GRPC}.images"
    assert document["causes"][0]["because"][0] == {
        "name": f"{METADATA}.bolt",
        "status": "failed",
        "reason": "OSError: [Errno 28] No space left on device",
        "because": [],
    }
    assert document["root_causes"] == [f"{METADATA}.bolt"]
