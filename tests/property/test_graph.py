"""The dependency graph against simple, slow definitions of the same things, on random sets of plugins."""

from __future__ import annotations

import itertools
import time
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from moored.kernel.graph import Needs, Plan, resolve

TYPES = [f"t{number}" for number in range(15)]
NOWHERE = "nowhere"


@st.composite
def plugin_sets(draw: st.DrawFn) -> dict[str, Needs]:
    """Up to 40 plugins in up to 15 types; requires and after may name their own type and one that nobody provides."""
    types = draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=40))
    named = st.lists(st.sampled_from([*TYPES, NOWHERE]), max_size=3).map(tuple)
    return {f"{kind}.p{i}": Needs(kind, draw(named), draw(named)) for i, kind in enumerate(types)}


@st.composite
def layered_sets(draw: st.DrawFn) -> dict[str, Needs]:
    """Plugins that need only types of a lower number, so that there can be no cycle."""
    ranks = draw(st.lists(st.integers(0, len(TYPES) - 1), min_size=1, max_size=40))

    def below(rank: int) -> tuple[str, ...]:
        return tuple(draw(st.lists(st.sampled_from(TYPES[:rank]), max_size=3))) if rank else ()

    return {f"{TYPES[rank]}.p{i}": Needs(TYPES[rank], below(rank), below(rank)) for i, rank in enumerate(ranks)}


def providers(nodes: dict[str, Needs], uri: str, kinds: tuple[str, ...]) -> set[str]:
    return {other for other, needs in nodes.items() if needs.type in kinds and other != uri}


def reachable(nodes: dict[str, Needs]) -> dict[str, set[str]]:
    """For each plugin every plugin that it leads to by one edge or more, by widening until nothing is new."""
    reach = {uri: providers(nodes, uri, needs.requires + needs.after) for uri, needs in nodes.items()}
    grew = True
    while grew:
        grew = False
        for uri, found in reach.items():
            wider = found.union(*(reach[other] for other in found))
            grew = grew or len(wider) > len(found)
            reach[uri] = wider
    return reach


def tangles(reach: dict[str, set[str]]) -> set[frozenset[str]]:
    """The sets of more than one plugin that all lead to each other."""
    return {frozenset(b for b in reach[a] if a in reach[b]) for a in reach if a in reach[a]}


@given(plugin_sets())
def test_edges_are_the_other_plugins_of_the_declared_types(nodes: dict[str, Needs]) -> None:
    plan = resolve(nodes)

    for uri, needs in nodes.items():
        hard, after = providers(nodes, uri, needs.requires), providers(nodes, uri, needs.after)
        assert sorted(plan.hard[uri]) == sorted(hard)
        assert sorted(plan.soft[uri]) == sorted(after - hard)
        assert plan.edges(uri) == plan.hard[uri] + plan.soft[uri]


@given(plugin_sets())
def test_order_respects_every_hard_and_soft_edge(nodes: dict[str, Needs]) -> None:
    plan = resolve(nodes)

    position = {uri: number for number, uri in enumerate(plan.order)}
    for uri in plan.order:
        assert all(position[before] < position[uri] for before in plan.edges(uri))


@given(plugin_sets())
def test_order_holds_once_each_plugin_that_is_neither_in_nor_behind_a_cycle(nodes: dict[str, Needs]) -> None:
    plan = resolve(nodes)

    reach = reachable(nodes)
    on_cycle = {uri for uri in nodes if uri in reach[uri]}
    free = {uri for uri in nodes if uri not in on_cycle and not reach[uri] & on_cycle}
    assert sorted(plan.order) == sorted(free)


@given(plugin_sets())
def test_cycles_are_one_closed_walk_without_repeats_for_each_tangle(nodes: dict[str, Needs]) -> None:
    plan = resolve(nodes)

    expected = tangles(reachable(nodes))
    for cycle in plan.cycles:
        assert cycle[0] == cycle[-1]
        assert len(set(cycle)) == len(cycle) - 1 >= 2
        assert all(after in plan.edges(before) for before, after in itertools.pairwise(cycle))
    homes = [next(tangle for tangle in expected if set(cycle) <= tangle) for cycle in plan.cycles]
    assert len(homes) == len(set(homes)) == len(expected)


@given(plugin_sets())
def test_cycle_is_a_shortest_one_of_its_tangle(nodes: dict[str, Needs]) -> None:
    plan = resolve(nodes)

    for cycle in plan.cycles:
        tangle = next(tangle for tangle in tangles(reachable(nodes)) if cycle[0] in tangle)
        assert len(cycle) - 1 == min(steps_back_to(start, plan) for start in tangle)


def steps_back_to(start: str, plan: Plan) -> int:
    steps, front = 1, set(plan.edges(start))
    while start not in front:
        steps, front = steps + 1, {further for uri in front for further in plan.edges(uri)}
    return steps


@given(layered_sets())
def test_no_cycle_is_told_of_an_acyclic_graph(nodes: dict[str, Needs]) -> None:
    plan = resolve(nodes)

    assert plan.cycles == ()
    assert len(plan.order) == len(nodes)


@given(plugin_sets())
def test_missing_are_exactly_the_required_types_without_another_provider(nodes: dict[str, Needs]) -> None:
    plan = resolve(nodes)

    expected = {
        uri: [kind for kind in dict.fromkeys(needs.requires) if not providers(nodes, uri, (kind,))]
        for uri, needs in nodes.items()
    }
    assert {uri: list(kinds) for uri, kinds in plan.missing.items()} == {u: k for u, k in expected.items() if k}


@given(plugin_sets(), st.randoms(use_true_random=False))
def test_plan_does_not_depend_on_the_order_of_the_input(nodes: dict[str, Needs], random: Random) -> None:
    shuffled = list(nodes.items())
    random.shuffle(shuffled)

    assert resolve(dict(shuffled)) == resolve(nodes)


def test_equal_choices_are_ordered_by_name() -> None:
    nodes = {"b.x": Needs("b"), "a.x": Needs("a", after=("c",)), "c.x": Needs("c"), "d.x": Needs("d")}

    assert resolve(nodes).order == ("b.x", "c.x", "a.x", "d.x")


def test_plugin_that_requires_its_own_type_depends_on_the_others_only() -> None:
    alone = resolve({"a.x": Needs("a", requires=("a",))})
    two = resolve({"a.x": Needs("a", requires=("a",)), "a.y": Needs("a")})

    assert (alone.order, alone.missing, alone.cycles) == (("a.x",), {"a.x": ("a",)}, ())
    assert (two.order, two.missing, two.hard["a.x"]) == (("a.y", "a.x"), {}, ("a.y",))


def test_chain_of_thousands_resolves_without_recursion() -> None:
    length = 5000
    nodes = {f"t{i}.p": Needs(f"t{i}", requires=(f"t{i + 1}",) if i + 1 < length else ()) for i in range(length)}

    plan = resolve(nodes)

    assert plan.order == tuple(f"t{i}.p" for i in reversed(range(length)))


def test_thousands_of_plugins_in_few_types_resolve_quickly() -> None:
    nodes = {
        f"t{i % 15}.p{i}": Needs(f"t{i % 15}", tuple(TYPES[: i % 15][-2:]), tuple(TYPES[: i % 15])) for i in range(2000)
    }
    began = time.process_time()

    plan = resolve(nodes)

    assert len(plan.order) == len(nodes)
    assert time.process_time() - began < 10


def test_large_tangle_is_named_quickly() -> None:
    ring = {f"t{i % 15}.p{i}": Needs(f"t{i % 15}", (TYPES[(i + 1) % 15],)) for i in range(600)}
    knot = {f"t{i % 15}.p{i}": Needs(f"t{i % 15}", tuple(TYPES)) for i in range(600)}
    began = time.process_time()

    cycles = (*resolve(ring).cycles, *resolve(knot).cycles)

    assert [len(cycle) for cycle in cycles] == [16, 3]
    assert time.process_time() - began < 10
