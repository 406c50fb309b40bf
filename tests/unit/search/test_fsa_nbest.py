"""The best label sequences of a lattice against all of its paths."""

from __future__ import annotations

import itertools
import random

import pytest

from kdtrans.search.fsa_nbest import FINAL, Arc, best_paths


def make(seed: int, frames: int, width: int) -> list[Arc]:
    """A lattice whose states are those of a frame, one behind the other; labels and blanks repeat among its arcs."""
    draw = random.Random(seed)
    layers = [[0], *([1 + frame * width + place for place in range(width)] for frame in range(frames))]
    arcs = [
        Arc(source, target, draw.randint(0, 2), draw.uniform(-3.0, 0.0))
        for sources, targets in itertools.pairwise(layers)
        for source in sources
        for target in targets
        if draw.random() < 0.7
    ]
    return arcs + [Arc(state, 1 + frames * width, FINAL, 0.0) for state in layers[-1]]


def twin(arcs: list[Arc]) -> list[tuple[float, tuple[int, ...]]]:
    """Score and labels of every label sequence by its best path, best first, from all paths."""
    last = arcs[-1].target
    best = dict[tuple[int, ...], float]()

    def walk(state: int, labels: tuple[int, ...], score: float) -> None:
        if state == last:
            best[labels] = max(score, best.get(labels, score))
        for arc in (arc for arc in arcs if arc.source == state):
            walk(arc.target, labels + ((arc.label,) if arc.label > 0 else ()), score + arc.score)

    walk(0, (), 0.0)
    return sorted(((score, labels) for labels, score in best.items()), reverse=True)


@pytest.mark.parametrize("count", [1, 3, 1000])
@pytest.mark.parametrize("seed", range(20))
def test_they_are_the_best_of_all(seed: int, count: int) -> None:
    arcs = make(seed, frames=4, width=3)
    found = [[arcs[number] for number in path] for path in best_paths(arcs, count)]
    expected = twin(arcs)[:count]
    assert [tuple(arc.label for arc in path if arc.label > 0) for path in found] == [labels for _, labels in expected]
    assert [sum(arc.score for arc in path) for path in found] == pytest.approx([score for score, _ in expected])


def test_a_path_is_connected() -> None:
    arcs = make(1, frames=5, width=2)
    for path in best_paths(arcs, 5):
        states = [arcs[number].source for number in path] + [arcs[path[-1]].target]
        assert states[0] == 0
        assert states[1:] == [arcs[number].target for number in path]
        assert states[-1] == arcs[-1].target


def test_a_lattice_without_a_way_through_has_no_path() -> None:
    assert best_paths([], 3) == []
    assert best_paths([Arc(0, 1, 2, -1.0), Arc(2, 3, FINAL, 0.0)], 3) == []
