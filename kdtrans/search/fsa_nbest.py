"""The best label sequences of k2's lattice. k2 itself has the best path, and random ones."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from kdtrans.contracts import BLANK

FINAL = -1  # the label of k2's final arcs


class Arc(NamedTuple):
    """An arc of a lattice; it takes a frame, unless it is a final one."""

    source: int
    target: int
    label: int
    score: float  # what paths are ranked by


class Partial(NamedTuple):
    """The best path to a state with certain labels."""

    score: float
    prefix: int  # number of its labels, the same for the same ones
    arc: int  # its last one; -1 where it begins
    before: Partial | None


def best_paths(arcs: list[Arc], count: int) -> list[list[int]]:
    """The paths of the best label sequences, each its best one: a path is the numbers of its arcs.

    Exact: of all paths to a state with the same labels only the best can be part of such a path, and of the sequences
    that lead to it only the `count` best, since whatever follows, they stay different and in their order.

    Args:
        arcs: of one utterance's lattice, sorted by source; from state 0 every target is greater than its source, and
            final arcs lead to the last state.
        count: sequences wanted.

    Returns:
        Up to `count` paths, the best first; of equal scores the one that was found first.
    """
    prefixes: dict[tuple[int, int], int] = {}  # of (prefix, label)
    reached: dict[int, dict[int, Partial]] = defaultdict(dict)  # of each state, by prefix
    reached[0][0] = Partial(0.0, 0, -1, None)
    kept: list[Partial] = []
    state = -1
    for number, (source, target, label, score) in enumerate(arcs):
        if source != state:
            state, kept = source, _best(reached.pop(source, {}), count)
        here = reached[target]
        for partial in kept:
            prefix = partial.prefix
            if label not in (BLANK, FINAL):
                prefix = prefixes.setdefault((prefix, label), len(prefixes) + 1)
            total = partial.score + score
            if prefix not in here or total > here[prefix].score:
                here[prefix] = Partial(total, prefix, number, partial)
    ends = _best(reached[arcs[-1].target], count) if arcs else []
    return [list(_arcs_of(partial))[::-1] for partial in ends]


def lattice_arcs(lattice: Any) -> list[tuple[list[Arc], int]]:
    """Each utterance's arcs, and the number of its first one among all of the lattice's (a k2.Fsa of several)."""
    columns = [*lattice.arcs.values()[:, :3].T.tolist(), lattice.scores.double().tolist()]
    every = [Arc(*values) for values in zip(*columns, strict=True)]
    states, arcs = lattice.arcs.row_splits(1).tolist(), lattice.arcs.row_splits(2).tolist()
    firsts = [arcs[state] for state in states]
    return [(every[first:last], first) for first, last in itertools.pairwise(firsts)]


def _best(partials: dict[int, Partial], count: int) -> list[Partial]:
    return heapq.nlargest(count, partials.values(), key=lambda partial: partial.score)


def _arcs_of(partial: Partial) -> Iterator[int]:
    """Numbers of a path's arcs, the last one first."""
    current: Partial | None = partial
    while current is not None and current.arc >= 0:
        yield current.arc
        current = current.before
