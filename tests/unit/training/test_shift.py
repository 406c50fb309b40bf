from __future__ import annotations

from collections.abc import Callable
from statistics import median_low
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdtrans.lattice.path import nodes, path_from_frames
from kdtrans.losses.distillation import NodeTargets
from kdtrans.losses.transducer import node_log_probs
from kdtrans.training import shift
from kdtrans.training.shift import ShiftTracker, emission_frames, label_nodes
from tests.unit.lattice.test_recursion import VOCAB, grids
from tests.unit.lattice.twins import every_path, path_score

MANY = 1000  # batches to observe: more than any test shows


def targets_of(paths: list[list[int]], offset: int = 0) -> NodeTargets:
    """Nodes of the teacher's paths; their distributions do not matter here."""
    coordinates = [nodes(torch.tensor(path)) for path in paths]
    t_N, u_N = (torch.cat(values) for values in zip(*coordinates, strict=True))
    b_N = torch.cat([torch.full((len(path),), b) for b, path in enumerate(paths)])
    nothing = torch.zeros(len(t_N), 1)
    return NodeTargets(b_N, t_N - offset, u_N, nothing.long(), nothing)


def emissions(path: list[int]) -> list[int]:
    """Frames on which a path emits its labels, token by token."""
    frames, t = [], 0
    for token in path:
        if token:
            frames.append(t)
        else:
            t += 1
    return frames


def scores_of(logits: Tensor, labels: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """The log-probs that a grid of logits gives to blank and to the labels."""
    return lambda: node_log_probs(logits, labels.reshape(len(labels), -1))


def speaking(frames: list[list[int]], labels: list[list[int]], num_frames: int) -> tuple[Any, ...]:
    """Scores of a student that is sure to emit given labels on given frames, with labels and lengths."""
    widest = max(map(len, labels))
    logits = torch.zeros(len(labels), num_frames, widest + 1, VOCAB)
    logits[..., 0] = 20.0
    for b, (when, what) in enumerate(zip(frames, labels, strict=True)):
        for u, (t, k) in enumerate(zip(when, what, strict=True)):
            logits[b, t, u, k] = 40.0
    padded = torch.tensor([[*what, *[1] * (widest - len(what))] for what in labels])
    lengths = torch.tensor([len(what) for what in labels])
    return scores_of(logits, padded.long()), padded, torch.full((len(labels),), num_frames), lengths


paths_strategy = st.lists(
    st.lists(st.integers(0, VOCAB - 1), max_size=8).map(lambda tokens: [*tokens, 0]), min_size=1, max_size=4
)


@settings(deadline=None, max_examples=15)
@given(paths_strategy, st.integers(0, 2))
def test_label_nodes_are_where_the_paths_emit(paths: list[list[int]], offset: int) -> None:
    utterance, t, u = label_nodes(targets_of(paths, offset))
    expected = [(b, frame - offset, i) for b, path in enumerate(paths) for i, frame in enumerate(emissions(path))]
    assert list(zip(utterance.tolist(), t.tolist(), u.tolist(), strict=True)) == expected


@settings(deadline=None, max_examples=15)
@given(paths_strategy)
def test_emission_frames_are_those_of_the_paths(paths: list[list[int]]) -> None:
    frames = [emissions(path) for path in paths]
    widest = max(map(len, frames))
    labels = torch.tensor(
        [[k for k in path if k] + [1] * (widest - len(f)) for path, f in zip(paths, frames, strict=True)]
    )
    when = torch.tensor([f + [0] * (widest - len(f)) for f in frames])
    num_frames = torch.tensor([path.count(0) for path in paths])
    lengths = torch.tensor([len(f) for f in frames])
    labels, when = labels.reshape(len(paths), widest), when.reshape(len(paths), widest).long()
    padded = path_from_frames(labels.long(), when, num_frames, lengths)
    assert torch.equal(emission_frames(padded, widest), when)


def test_the_shift_is_the_median_over_the_labels_of_enumerated_best_paths() -> None:
    frames, lengths = [5, 4, 5], [2, 3, 1]
    logits, labels, T, U = grids(17, frames, lengths)
    spelled = [labels[b, :length].tolist() for b, length in enumerate(lengths)]
    teacher = [[*spoken, *[0] * num_frames] for spoken, num_frames in zip(spelled, frames, strict=True)]  # frame 0
    late: list[int] = []
    for b, num_frames in enumerate(frames):
        log_probs = logits[b].log_softmax(-1)
        best = max(every_path(num_frames, spelled[b]), key=lambda path: float(path_score(log_probs, path)))
        late += emissions(best)
    tracker = ShiftTracker(MANY)
    tracker.observe(scores_of(logits, labels), labels, T, U, targets_of(teacher))
    assert tracker.frames == median_low(late)


@pytest.mark.parametrize(("lag", "expected"), [(0, 0), (3, 3), (-2, 0)])
def test_a_student_that_lags_is_followed_and_one_that_leads_is_not(lag: int, expected: int) -> None:
    labels = [[1, 2, 3], [4], []]
    when = [[4, 6, 6], [9], []]
    tracker = ShiftTracker(MANY)
    assert tracker.frames == 0
    paths = []
    for what, frames in zip(labels, when, strict=True):
        padded = path_from_frames(
            torch.tensor([what], dtype=torch.long).reshape(1, -1),
            torch.tensor([frames], dtype=torch.long).reshape(1, -1),
            torch.tensor([14]),
            torch.tensor([len(what)]),
        )
        paths.append(padded[0].tolist())
    tracker.observe(*speaking([[t + lag for t in frames] for frames in when], labels, 14), targets_of(paths))
    assert tracker.frames == expected


def observe(tracker: ShiftTracker, late: int, times: int) -> list[int]:
    """Show a student that is so late, and return the shifts after each batch."""
    grid = speaking([[2 + late, 3 + late]], [[1, 2]], 12)
    targets = targets_of([[0, 0, 1, 0, 2, *[0] * 9]])
    shifts = []
    for _ in range(times):
        tracker.observe(*grid, targets)
        shifts.append(tracker.frames)
    return shifts


def test_every_tenth_batch_is_measured_and_the_past_fades() -> None:
    tracker = ShiftTracker(MANY)
    assert observe(tracker, 5, 1) == [5]
    assert observe(tracker, 1, 10) == [5] * 9 + [1]  # the older half of what was seen weighs a little less
    many = ShiftTracker(MANY)
    observe(many, 6, 60)
    shifts = observe(many, 2, 140)
    assert shifts[0] == 6
    assert shifts[-1] == 2


def test_it_measures_as_many_batches_as_it_is_told() -> None:
    tracker = ShiftTracker(2)
    seen = []
    while tracker.measuring:
        seen += observe(tracker, 5, 1)
    assert seen == [5, 5]
    resumed = ShiftTracker(2)
    resumed.load(tracker.state())
    assert not resumed.measuring
    assert resumed.frames == 5


def test_nothing_to_compare_leaves_the_shift_as_it_is() -> None:
    tracker = ShiftTracker(MANY)
    silent = speaking([[]], [[]], 4)
    tracker.observe(silent[0], silent[1].reshape(1, 0).long(), silent[2], silent[3], targets_of([[0, 0, 0, 0]]))
    assert tracker.frames == 0


def test_a_resumed_tracker_goes_on_as_if_nothing_had_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shift, "EVERY", 3)
    lags = [1, 4, 2, 6, 0, 3, 5, 2, 1, 6, 4, 4]
    unbroken, broken = ShiftTracker(MANY), ShiftTracker(MANY)
    for lag in lags:
        expected = observe(unbroken, lag, 2)
        resumed = ShiftTracker(MANY)
        resumed.load(broken.state())
        assert observe(resumed, lag, 2) == expected
        broken = resumed
    assert torch.equal(broken.state()["counts"], unbroken.state()["counts"])
