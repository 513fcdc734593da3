"""Mark and order of a collection, compared with the obvious ways to compute them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moored.kernel.collect import mark, referrers_first

nodes = st.integers(0, 12)
graphs = st.dictionaries(nodes, st.lists(nodes, max_size=4), max_size=12)


def reached(roots: set[int], graph: dict[int, list[int]]) -> set[int]:
    found = set(roots)
    while more := {target for node in found for target in graph.get(node, [])} - found:
        found |= more
    return found


@given(graphs, st.sets(nodes))
def test_what_is_marked_is_what_is_reached(graph: dict[int, list[int]], roots: set[int]) -> None:
    assert mark(roots, lambda node: graph.get(node, ())) == reached(roots, graph)


@given(graphs, st.sets(nodes), st.sets(nodes))
def test_marking_in_two_steps_is_marking_at_once(graph: dict[int, list[int]], first: set[int], then: set[int]) -> None:
    def edges(node: int) -> list[int]:
        return graph.get(node, [])

    assert mark(then, edges, mark(first, edges)) == reached(first | then, graph)


@given(graphs, graphs, st.sets(nodes))
def test_new_edges_are_seen_from_a_root_that_was_marked_before(
    before: dict[int, list[int]], added: dict[int, list[int]], roots: set[int]
) -> None:
    marked = mark(roots, lambda node: before.get(node, ()))
    after = {node: before.get(node, []) + added.get(node, []) for node in before | added}
    written = set(added)
    assert mark(written, lambda node: after.get(node, ()), marked) == reached(roots | written, after)


@given(st.dictionaries(nodes, st.lists(nodes, max_size=4), min_size=1), st.sets(nodes))
def test_referrers_come_before_what_they_refer_to(graph: dict[int, list[int]], chosen: set[int]) -> None:
    acyclic = {node: [target for target in targets if target > node] for node, targets in graph.items()}
    order = referrers_first(chosen, lambda node: acyclic.get(node, ()))
    assert sorted(order) == sorted(chosen)
    place = {node: at for at, node in enumerate(order)}
    assert all(place[node] < place[target] for node in chosen for target in acyclic.get(node, []) if target in chosen)


@given(graphs, st.sets(nodes))
def test_cycles_lose_nothing(graph: dict[int, list[int]], chosen: set[int]) -> None:
    assert sorted(referrers_first(chosen, lambda node: graph.get(node, ()))) == sorted(chosen)


def test_long_chains_need_no_deep_stack() -> None:
    def edges(node: int) -> list[int]:
        return [node + 1] if node < 100_000 else []

    assert len(mark([0], edges)) == 100_001
    assert referrers_first(range(100_000), edges) == list(range(100_000))
