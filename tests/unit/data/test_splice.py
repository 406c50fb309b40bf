"""Spliced utterances are utterances: their parts are those of two, and their paths are paths."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kdtrans.data.batches import Batch
from kdtrans.data.splice import Cut, Splice, exchanged
from kdtrans.losses.distillation import NodeTargets, joined_targets

V, CHANNELS, WIDTH = 6, 3, 2
SPACE = 2
STARTS_WORD = torch.tensor([token == SPACE for token in range(V)])
LABELS = [[SPACE, 3, 4, SPACE, 5], [SPACE, 3, SPACE, 4, SPACE, 5, 5], [SPACE, 4], [SPACE, 3, SPACE, 5]]


def make(seed: int, frames: list[int], labels: list[list[int]]) -> Batch:
    """Random features and paths; every distribution tells its utterance and its place in the path."""
    draw = np.random.default_rng(seed)
    features = [torch.from_numpy(draw.normal(size=(4 * count - 1, CHANNELS))) for count in frames]
    parts = []
    for b, (count, tokens) in enumerate(zip(frames, labels, strict=True)):
        emitted = sorted(draw.integers(count, size=len(tokens)).tolist())
        t, u = zip(*nodes(count, emitted), strict=True)
        logp_NK = torch.stack([torch.full((len(t),), float(b)), torch.arange(len(t)).float()], 1)
        ids_NK = torch.zeros_like(logp_NK).long()
        parts.append(NodeTargets(torch.full((len(t),), b), torch.tensor(t), torch.tensor(u), ids_NK, logp_NK))
    return Batch(
        utt_ids=[f"utt{b}" for b in range(len(frames))],
        features_BFC=pad_sequence(features, batch_first=True),
        lengths_B=torch.tensor([len(one) for one in features]),
        labels_BU=pad_sequence([torch.tensor(one) for one in labels], batch_first=True),
        label_lengths_B=torch.tensor([len(one) for one in labels]),
        targets=joined_targets(parts),
        teacher_frames_B=torch.tensor(frames),
        seconds=1.0,
        teacher_totals_B=torch.zeros(len(frames)),
        teacher_BTJ=pad_sequence(
            [torch.from_numpy(draw.normal(size=(count, WIDTH))) for count in frames], batch_first=True
        ),
    )


def nodes(frames: int, emitted: list[int]) -> list[tuple[int, int]]:
    """A path's nodes: it waits on (t, u) for a blank, and stays on the frame of a label."""
    found, u = [], 0
    for t in range(frames):
        while u < len(emitted) and emitted[u] == t:
            found.append((t, u))
            u += 1
        found.append((t, u))
    return found


def batch_of(seed: int) -> Batch:
    return make(seed, [30, 34, 12, 25], LABELS)


def same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def rows(values: Tensor, lengths: Tensor) -> list[tuple[float, ...]]:
    """All real rows of a padded tensor."""
    return [tuple(row) for one, length in zip(values, lengths.tolist(), strict=True) for row in one[:length].tolist()]


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_and_paths_stay_paths(seed: int) -> None:
    batch = batch_of(seed)
    spliced = Splice(1.0, STARTS_WORD)(batch, np.random.default_rng(seed))
    assert spliced.targets is not None
    assert batch.targets is not None
    assert spliced.teacher_BTJ is not None
    assert batch.teacher_BTJ is not None
    assert spliced.teacher_frames_B is not None
    assert batch.teacher_frames_B is not None
    for before, after in (
        (rows(batch.features_BFC, batch.lengths_B), rows(spliced.features_BFC, spliced.lengths_B)),
        (rows(batch.teacher_BTJ, batch.teacher_frames_B), rows(spliced.teacher_BTJ, spliced.teacher_frames_B)),
        (batch.targets.logp_NK.tolist(), spliced.targets.logp_NK.tolist()),
    ):
        assert Counter(map(tuple, before)) == Counter(map(tuple, after))
    assert spliced.teacher_totals_B is None
    for b, (frames, labels) in enumerate(zip(spliced.teacher_frames_B, spliced.label_lengths_B, strict=True)):
        mine = spliced.targets.select(spliced.targets.utterance_N == b)
        path = list(zip(mine.t_N.tolist(), mine.u_N.tolist(), strict=True))
        steps = [(t - s, u - v) for (s, v), (t, u) in itertools.pairwise(path)]
        assert path[0] == (0, 0)
        assert path[-1] == (frames - 1, labels)
        assert set(steps) <= {(1, 0), (0, 1)}
        assert spliced.lengths_B[b] == 4 * frames - 1


@pytest.mark.parametrize("seed", range(20))
def test_labels_move_with_the_nodes_and_features_that_spell_them(seed: int) -> None:
    """Each label's node is the one that emitted it, and lies on the features that it lay on."""
    batch = batch_of(seed)
    spliced = Splice(1.0, STARTS_WORD)(batch, np.random.default_rng(seed))

    def emissions(of: Batch) -> list[tuple[float, ...]]:
        assert of.targets is not None
        found = []
        for b, length in enumerate(of.label_lengths_B.tolist()):
            mine = of.targets.select(of.targets.utterance_N == b)
            for u in range(length):
                last = int((mine.u_N == u).nonzero()[-1])
                features = of.features_BFC[b, 4 * int(mine.t_N[last])]
                found.append((int(of.labels_BU[b, u]), *mine.logp_NK[last].tolist(), *features.tolist()))
        return found

    assert Counter(emissions(batch)) == Counter(emissions(spliced))


def test_exchanging_twice_changes_nothing() -> None:
    batch = batch_of(3)
    splice = Splice(1.0, STARTS_WORD)
    cuts = [splice.boundaries(batch, b)[0] if b != 2 else Cut(0, 0) for b in range(4)]
    partners = [1, 0, 2, 3]
    once = exchanged(batch, partners, cuts)
    twice = exchanged(once, partners, cuts)
    assert once.utt_ids == ["utt0 + utt1", "utt1 + utt0", "utt2", "utt3"]
    assert not torch.equal(once.lengths_B, batch.lengths_B)
    for name in ("features_BFC", "lengths_B", "labels_BU", "label_lengths_B", "teacher_frames_B", "teacher_BTJ"):
        assert same(getattr(twice, name), getattr(batch, name)), name
    assert twice.targets is not None
    assert batch.targets is not None
    for one, other in zip(vars(twice.targets).values(), vars(batch.targets).values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("seed", range(20))
def test_cuts_are_between_words_on_the_quietest_frame(seed: int) -> None:
    batch = batch_of(seed)
    assert batch.targets is not None
    for b, labels in enumerate(LABELS):
        mine = batch.targets.select(batch.targets.utterance_N == b)
        emitted = [int(mine.t_N[mine.u_N == u][-1]) for u in range(len(labels))]
        loudness = batch.features_BFC[b].mean(1)
        expected = []
        for u in range(1, len(labels)):
            between = range(emitted[u - 1] + 1, emitted[u] + 1)
            if labels[u] == SPACE and between:
                expected.append(Cut(min(between, key=lambda t: float(loudness[4 * t])), u))
        assert Splice(1.0, STARTS_WORD).boundaries(batch, b) == expected


def test_one_word_has_no_boundary_and_stays_whole() -> None:
    batch = make(1, [12, 30], [[SPACE, 4], [SPACE, 3, SPACE, 5]])
    spliced = Splice(1.0, STARTS_WORD)(batch, np.random.default_rng(1))
    assert torch.equal(spliced.features_BFC, batch.features_BFC)
    assert torch.equal(spliced.labels_BU, batch.labels_BU)
    assert spliced.utt_ids == batch.utt_ids


def test_the_share_is_that_of_pairs() -> None:
    batch, random = batch_of(2), np.random.default_rng(1)
    batch = replace(batch, utt_ids=["a", "b", "c", "d"])
    changed = sum("+" in " ".join(Splice(0.25, STARTS_WORD)(batch, random).utt_ids) for _ in range(400))
    some = 1 - 0.75  # of two pairs one has an utterance of one word, so that never both are spliced
    assert changed == pytest.approx(400 * some, abs=60)
    assert Splice(0.0, STARTS_WORD)(batch, random).utt_ids == batch.utt_ids


def test_a_tail_of_silence_goes_with_the_end_that_it_belongs_to() -> None:
    """Features behind the last frame of a path, as a streaming student has them."""
    batch = make(2, [20, 24], [[SPACE, 3, SPACE, 5], [SPACE, 4, SPACE, 3]])
    assert batch.teacher_frames_B is not None
    longer = pad_sequence(
        [
            torch.cat([one[:length], torch.full((8, CHANNELS), float(b))])
            for b, (one, length) in enumerate(zip(batch.features_BFC, batch.lengths_B, strict=True))
        ],
        batch_first=True,
    )
    batch = replace(batch, features_BFC=longer, lengths_B=batch.lengths_B + 8)
    spliced = Splice(1.0, STARTS_WORD)(batch, np.random.default_rng(1))
    assert spliced.utt_ids == ["utt0 + utt1", "utt1 + utt0"]
    ends = [float(spliced.features_BFC[b, length - 1, 0]) for b, length in enumerate(spliced.lengths_B)]
    assert ends == [1.0, 0.0]
