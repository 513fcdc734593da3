"""Mark and order of a garbage collection, on any graph: no stores, no clocks, no locks.

An object is white until something reached is found to refer to it, grey while what it refers to is still to be looked
at, black after that. What stays white is garbage.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TypeAlias, TypeVar

N = TypeVar("N")

Edges: TypeAlias = Callable[[N], Iterable[N]]
"""What an object refers to; objects that do not exist refer to nothing."""


def mark(roots: Iterable[N], edges: Edges[N], marked: set[N] | None = None) -> set[N]:
    """Give all that the roots reach, themselves included.

    With `marked`, a finished earlier result, that set is extended and given back: what it reached is not looked at
    again, so an object whose edges have changed since must be among the roots, which always are.
    """
    black: set[N] = set() if marked is None else marked
    grey: list[N] = []
    for root in roots:
        black.add(root)
        grey.append(root)
    # Being in the set stands for grey and black; the list holds what is still grey.
    while grey:
        for target in edges(grey.pop()):
            if target not in black:
                black.add(target)
                grey.append(target)
    return black


def referrers_first(objects: Collection[N], edges: Edges[N]) -> list[N]:
    """Order objects so that each comes before those of them that it refers to, as far as there are no cycles.

    What is removed in this order leaves, at every moment, no object that has lost something it refers to.
    """
    among = objects if isinstance(objects, set | frozenset) else set(objects)
    entered: set[N] = set()
    finished: list[N] = []
    for start in objects:
        if start in entered:
            continue
        entered.add(start)
        path = [(start, iter(edges(start)))]
        while path:
            at, targets = path[-1]
            for target in targets:
                if target in among and target not in entered:
                    entered.add(target)
                    path.append((target, iter(edges(target))))
                    break
            else:
                path.pop()
                finished.append(at)
    finished.reverse()
    return finished
