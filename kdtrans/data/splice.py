"""Utterances that exchange their ends between two words: speech that nobody said, with the teacher's word for it.

The teacher's path says on which frames words end and begin, and what the teacher thinks on every frame: cut there,
a piece of audio keeps its labels and its distributions. So few utterances give many word sequences, and a small
student cannot learn the few by heart. (With the alignments of a further model: Lam et al. 2021, arXiv 2104.01393.)

Shapes: B utterances, F feature frames (10 ms), C channels, V vocabulary, N path nodes of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kdtrans.data.batches import Batch
from kdtrans.losses.distillation import NodeTargets, joined_targets
from kdtrans.models.streaming import FEATURES_A_FRAME


class Cut(NamedTuple):
    """Where an utterance is cut: its tail begins with this frame (40 ms) and this label."""

    frame: int
    label: int


@dataclass(frozen=True)
class Splice:
    """What makes batches of spliced utterances out of batches.

    Args:
        share: of the pairs of utterances in a batch that exchange their ends.
        starts_word_V: whether a token is the first of a word.
    """

    share: float
    starts_word_V: Tensor

    def __call__(self, batch: Batch, random: np.random.Generator) -> Batch:
        """The batch in which random pairs have exchanged their ends; one without a word boundary stays whole.

        Of the first of a pair the boundary is drawn, of the second the one nearest in time is taken, so that lengths
        stay nearly the same. All utterances need targets.
        """
        order = random.permutation(len(batch.utt_ids)).tolist()
        partners, cuts = list(range(len(order))), [Cut(0, 0)] * len(order)  # one that exchanges with itself is whole
        for first, second in zip(order[::2], order[1::2], strict=False):
            if random.random() >= self.share:
                continue
            choice, theirs = self.boundaries(batch, first), self.boundaries(batch, second)
            if not choice or not theirs:
                continue
            cuts[first] = cut = choice[random.integers(len(choice))]
            cuts[second] = min(theirs, key=lambda other: abs(other.frame - cut.frame))
            partners[first], partners[second] = second, first
        return exchanged(batch, partners, cuts)

    def boundaries(self, batch: Batch, utterance: int) -> list[Cut]:
        """Where an utterance may be cut: between two words, on the quietest frame behind the first one's last label."""
        assert batch.targets is not None, "no path says where words begin: splicing needs targets"
        labels = batch.labels_BU[utterance, : batch.label_lengths_B[utterance]]
        t_N, u_N = (of[batch.targets.utterance_N == utterance] for of in (batch.targets.t_N, batch.targets.u_N))
        loudness_F = batch.features_BFC[utterance].mean(1)
        found = []
        for label in (self.starts_word_V[labels[1:]].nonzero()[:, 0] + 1).tolist():
            # The path waits with `label` labels from the frame that emits the last of them to that of the next one.
            frames = t_N[u_N == label][1:]
            frames = frames[FEATURES_A_FRAME * frames < batch.lengths_B[utterance]]  # a teacher may have some more
            if len(frames):
                quietest = loudness_F[FEATURES_A_FRAME * frames].argmin()
                found.append(Cut(int(frames[quietest]), label))
        return found


def exchanged(batch: Batch, partners: list[int], cuts: list[Cut]) -> Batch:
    """Each utterance up to its cut, and its partner's from there on.

    Args:
        batch: whose utterances have targets.
        partners: of each utterance, another or itself.
        cuts: of each utterance.
    """
    assert batch.targets is not None
    assert batch.teacher_frames_B is not None
    pairs = list(enumerate(partners))
    frames, labels = (torch.tensor(places) for places in zip(*cuts, strict=True))

    def joined(rows_BL: Tensor, cut_B: Tensor, length_B: Tensor) -> list[Tensor]:
        at, end = cut_B.tolist(), length_B.tolist()
        return [torch.cat([rows_BL[mine, : at[mine]], rows_BL[other, at[other] : end[other]]]) for mine, other in pairs]

    def length(cut_B: Tensor, length_B: Tensor) -> Tensor:
        return cut_B + (length_B - cut_B)[partners]

    features, features_B = FEATURES_A_FRAME * frames, batch.lengths_B
    output_BTJ, teacher_B = batch.teacher_BTJ, batch.teacher_frames_B
    return replace(
        batch,
        utt_ids=[" + ".join(dict.fromkeys([batch.utt_ids[mine], batch.utt_ids[other]])) for mine, other in pairs],
        features_BFC=pad_sequence(joined(batch.features_BFC, features, features_B), batch_first=True),
        lengths_B=length(features, features_B),
        labels_BU=pad_sequence(joined(batch.labels_BU, labels, batch.label_lengths_B), batch_first=True),
        label_lengths_B=length(labels, batch.label_lengths_B),
        targets=_joined_paths(batch.targets, partners, cuts),
        teacher_frames_B=length(frames, teacher_B),
        teacher_totals_B=None,  # nobody knows what the whole lattice of such an utterance has
        teacher_BTJ=None
        if output_BTJ is None
        else pad_sequence(joined(output_BTJ, frames, teacher_B), batch_first=True),
    )


def _joined_paths(targets: NodeTargets, partners: list[int], cuts: list[Cut]) -> NodeTargets:
    """The nodes of each utterance before its cut, and its partner's behind it, moved to where the first ones end."""
    parts = []
    for mine, other in enumerate(partners):
        head = targets.select((targets.utterance_N == mine) & (targets.t_N < cuts[mine].frame))
        tail = targets.select((targets.utterance_N == other) & (targets.t_N >= cuts[other].frame))
        t_N = tail.t_N + (cuts[mine].frame - cuts[other].frame)
        u_N = tail.u_N + (cuts[mine].label - cuts[other].label)
        parts += [head, replace(tail, utterance_N=torch.full_like(tail.utterance_N, mine), t_N=t_N, u_N=u_N)]
    return joined_targets(parts)
