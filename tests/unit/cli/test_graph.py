"""The graph in its three forms: golden texts, valid syntax whatever the names, a stable order."""

from __future__ import annotations

import random
import re
import shutil
import subprocess

import pytest

from moored.api.cli.graph import COLOURS, build, dot, legend, mermaid, tree
from moored.api.cli.records import MISSING, STATUSES
from moored.api.cli.render import Screen
from unit.cli.canned import EVENT, METADATA, SNAPSHOTTER, plugin, plugins

BOLT = f"{METADATA}.bolt"
EVIL = 'io.x.v1.a"]; -> \\N <b>#quot;|end\n%%{}'


def drawn(graph, focus=None):
    return Screen(80).text(*tree(graph, focus))


def evil():
    found = [plugin("io.x.v1", EVIL[8:]), plugin("io.y.v1", "end", "timed-out", depends_on=(EVIL,))]
    assert found[0].uri == EVIL
    return build(found)


def test_the_whole_tree_begins_with_what_nothing_needs():
    assert drawn(build(plugins())) == (
        "io.containerd.grpc.v1.cri  blocked\n"
        "├── io.containerd.grpc.v1.images  blocked\n"
        "│   ├── io.containerd.metadata.v1.bolt  failed\n"
        "│   │   ├── io.containerd.content.v1.content\n"
        "│   │   └── io.containerd.event.v1.exchange  (after)\n"
        "│   ├── io.containerd.snapshotter.v1.native\n"
        "│   └── io.containerd.snapshotter.v1.zfs  skipped\n"
        "└── io.containerd.snapshotter.v1.native  (*)\n"
        "io.containerd.grpc.v1.transfer  blocked\n"
        "└── io.containerd.transfer.v1  missing\n"
        "io.containerd.nri.v1.nri  disabled\n"
    )


def test_a_focus_shows_what_is_below_and_above_it():
    graph = build(plugins()).around(BOLT)

    assert drawn(graph, BOLT) == (
        "io.containerd.metadata.v1.bolt  failed\n"
        "├── io.containerd.content.v1.content\n"
        "└── io.containerd.event.v1.exchange  (after)\n"
        "\n"
        "needed by\n"
        "io.containerd.metadata.v1.bolt  failed\n"
        "└── io.containerd.grpc.v1.images  blocked\n"
        "    └── io.containerd.grpc.v1.cri  blocked\n"
    )
    assert f"{SNAPSHOTTER}.native" not in graph.nodes


def test_a_cycle_is_drawn_once_round():
    found = [
        plugin("io.a.v1", "a", depends_on=("io.b.v1.b",)),
        plugin("io.b.v1", "b", depends_on=("io.a.v1.a",)),
        plugin("io.c.v1", "c"),
    ]

    assert drawn(build(found)) == "io.c.v1.c\nio.a.v1.a\n└── io.b.v1.b\n    └── io.a.v1.a  (*)\n"


def test_a_shared_part_is_drawn_once_however_many_ways_lead_to_it():
    """Forty stages of two plugins, each of which needs both of the next: 2**40 ways from top to bottom."""
    found = [
        plugin(f"io.s{stage:02}.v1", name, depends_on=tuple(f"io.s{stage + 1:02}.v1.{to}" for to in "ab" if stage < 39))
        for stage in range(40)
        for name in "ab"
    ]

    rows = drawn(build(found)).splitlines()

    whole = [row for row in rows if not row.endswith("(*)")]
    assert len(rows) == 2 + 39 * 4
    assert sorted(row.split()[-1] for row in whole) == sorted(node.uri for node in found)


def test_the_legend_explains_the_marks_that_occur():
    assert legend("x  (*)") == "(*) drawn in full above"
    assert legend("x  (after)") == "(after) starts after it, does not require it"
    assert legend("x") == ""


def test_mermaid_golden():
    assert mermaid(build(plugins()).around(BOLT), BOLT) == (
        "flowchart TD\n"
        '    n0["io.containerd.content.v1.content"]:::status_ok\n'
        '    n1["io.containerd.event.v1.exchange"]:::status_ok\n'
        '    n2["io.containerd.grpc.v1.cri<br/>blocked"]:::status_blocked\n'
        '    n3["io.containerd.grpc.v1.images<br/>blocked"]:::status_blocked\n'
        '    n4["io.containerd.metadata.v1.bolt<br/>failed"]:::status_failed\n'
        "    n2 --> n3\n"
        "    n3 --> n4\n"
        "    n4 --> n0\n"
        "    n4 -.-> n1\n"
        "    classDef status_ok fill:#d7f0d7,stroke:#2e7d32,color:#222222\n"
        "    classDef status_failed fill:#ffd6d6,stroke:#c62828,color:#222222\n"
        "    classDef status_blocked fill:#f3dcf5,stroke:#8e24aa,color:#222222\n"
        "    style n4 stroke-width:3px\n"
    )


MERMAID = re.compile(
    r"flowchart TD\n"
    r'(?:    (?P<node>n\d+)\["(?:[A-Za-z0-9 ._:-]|#\d+;|<br/>)+"\]:::status_[a-z_]+\n)*'
    r"(?:    n\d+ (?:-->|-\.->) n\d+\n)*"
    r"(?:    classDef status_[a-z_]+ (?:[a-z-]+:[#a-z0-9 ]+)(?:,[a-z-]+:[#a-z0-9 ]+)*\n)*"
    r"(?:    style n\d+ stroke-width:3px\n)?"
)


@pytest.mark.parametrize("graph", [build([]), build(plugins()), evil()], ids=["empty", "canned", "evil names"])
def test_mermaid_is_valid_whatever_the_names(graph):
    text = mermaid(graph)

    assert MERMAID.fullmatch(text)
    assert set(re.findall(r":::(\w+)", text)) == set(re.findall(r"classDef (\w+)", text))
    assert set(re.findall(r"-> (n\d+)", text)) <= set(re.findall(r"(n\d+)\[", text))


def test_dot_golden():
    graph = build(plugins()).around(f"{EVENT}.exchange").part({f"{EVENT}.exchange", BOLT})

    assert dot(graph, BOLT) == (
        "digraph plugins {\n"
        "    rankdir=TB;\n"
        '    node [shape=box, style="rounded,filled", fontname="sans-serif", fontcolor="#222222"];\n'
        '    "io.containerd.event.v1.exchange" [label="io.containerd.event.v1.exchange", class="status_ok", '
        'fillcolor="#d7f0d7", color="#2e7d32"];\n'
        '    "io.containerd.metadata.v1.bolt" [label="io.containerd.metadata.v1.bolt\\nfailed", '
        'class="status_failed", fillcolor="#ffd6d6", color="#c62828", penwidth=3];\n'
        '    "io.containerd.metadata.v1.bolt" -> "io.containerd.event.v1.exchange" [style=dashed];\n'
        "}\n"
    )


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs graphviz")
@pytest.mark.parametrize("graph", [build([]), build(plugins()), evil()], ids=["empty", "canned", "evil names"])
def test_graphviz_reads_the_dot_output_as_meant(graph):
    read = subprocess.run(["dot", "-Tplain"], input=dot(graph), capture_output=True, text=True, timeout=60, check=True)

    assert read.stderr == ""
    assert len(re.findall(r"^node ", read.stdout, re.MULTILINE)) == len(graph.nodes)
    assert len(re.findall(r"^edge ", read.stdout, re.MULTILINE)) == len(graph.edges())
    assert len(re.findall(r"^edge .* dashed ", read.stdout, re.MULTILINE)) == sum(soft for _, _, soft in graph.edges())


def test_no_quote_of_a_name_ends_a_dot_string():
    for row in dot(evil()).splitlines():
        assert len(re.findall(r'(?<!\\)(?:\\\\)*"', row)) % 2 == 0


def test_the_order_of_the_answer_does_not_show():
    shuffled = random.Random(7).sample(plugins(), k=len(plugins()))
    one, other = build(plugins()), build(shuffled)

    assert drawn(one) == drawn(other)
    assert mermaid(one) == mermaid(other)
    assert dot(one) == dot(other)
    assert one.document() == other.document()


def test_the_json_document_names_nodes_and_edges():
    document = build(plugins()).around(BOLT).document()

    assert document["nodes"][0] == {"name": "io.containerd.content.v1.content", "status": "ok"}
    assert {"from": BOLT, "to": f"{EVENT}.exchange", "soft": True} in document["edges"]
    assert len(document["edges"]) == 4


def test_every_status_has_a_colour():
    assert set(COLOURS) == {*STATUSES, MISSING, "unknown"}
    assert "status_unknown" in mermaid(build([plugin("io.x.v1", "x", "unknown")]))
