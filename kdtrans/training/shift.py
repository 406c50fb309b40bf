"""tau, measured: how many frames later than the teacher the student emits its labels (beyond the paper).

It is measured at the start of training, before distillation begins, and then stays. A student that is distilled with a
shift emits with that shift, whichever it is, so that a measurement that goes on confirms whatever it began with
(seen on AN4: starting from 0 it stayed at 0, and cost a third to a half of what distillation gains). Frames of a tail
of silence do not count meanwhile: with them, labels in the midst of an utterance are twice as late (13 frames on AN4).

The student's emission frames are those of its own Viterbi path through its grid; the teacher's stand in the targets.
The median of the differences is the shift.

Shapes: B utterances, T frames, U labels, V vocabulary, M labels that are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdtrans.contracts import BLANK
from kdtrans.lattice.recursion import viterbi
from kdtrans.losses.distillation import NodeTargets

EVERY = 10  # batches; a Viterbi path costs about as much as the transducer loss
WIDEST = 250  # frames, 10 s; what lies beyond counts as that much
MEMORY = 0.95  # of a measurement when the next comes: some thousand labels count


class ShiftTracker:
    """The running median of student minus teacher emission frames, over the labels of the last few measured batches.

    Its state is part of the checkpoint, so that a resumed run shifts like an unbroken one.

    Args:
        batches: how many it observes; then the shift stays.
    """

    def __init__(self, batches: int) -> None:
        self.frames = 0  # the shift: the median, but at least 0
        self._last = batches
        self._batches = 0
        self._counts = torch.zeros(2 * WIDEST + 1, dtype=torch.float64)  # of differences -WIDEST .. WIDEST, fading

    @property
    def measuring(self) -> bool:
        """Whether the student is still watched, and not to be distilled yet."""
        return self._batches < self._last

    @torch.no_grad()
    def observe(
        self,
        scores: Callable[[], tuple[Tensor, Tensor]],
        labels_BU: Tensor,
        frames_B: Tensor,
        lengths_B: Tensor,
        targets: NodeTargets,
    ) -> None:
        """Take in a training batch, of which every tenth is measured.

        Args:
            scores: gives the student's log-probs of blank (B, T, U + 1) and of the next label (B, T, U); called only
                where the batch is measured.
            labels_BU: the labels, padded.
            frames_B: the student's frames.
            lengths_B: labels of each utterance.
            targets: the teacher's nodes on the student's grid, not shifted.
        """
        self._batches += 1
        if (self._batches - 1) % EVERY:
            return
        path_BN, _ = viterbi(*scores(), labels_BU, frames_B, lengths_B)
        utterance_M, t_M, u_M = label_nodes(targets)
        late_M = emission_frames(path_BN, labels_BU.shape[1])[utterance_M, u_M] - t_M
        found = torch.bincount(late_M.clamp(-WIDEST, WIDEST) + WIDEST, minlength=len(self._counts))
        self._counts = MEMORY * self._counts + found.cpu()
        reached = self._counts.cumsum(0)
        self.frames = max(0, int(torch.searchsorted(reached, reached[-1] / 2)) - WIDEST)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"frames": self.frames, "batches": self._batches, "counts": self._counts}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a kept state."""
        self.frames, self._batches, self._counts = state["frames"], state["batches"], state["counts"].clone()


def is_measured(shift: int | ShiftTracker) -> bool:
    """Whether tau is still being measured, and nothing may be distilled yet."""
    return isinstance(shift, ShiftTracker) and shift.measuring


def frames_of(shift: int | ShiftTracker) -> int:
    """tau in frames, as far as it is known."""
    return shift.frames if isinstance(shift, ShiftTracker) else shift


def label_nodes(targets: NodeTargets) -> tuple[Tensor, Tensor, Tensor]:
    """Utterance, frame and label index (M,) of the nodes that emit a label: the next node is one label further."""
    here, after = slice(None, -1), slice(1, None)
    emits = (targets.u_N[after] == targets.u_N[here] + 1) & (targets.t_N[after] == targets.t_N[here])
    emits &= targets.utterance_N[after] == targets.utterance_N[here]
    return targets.utterance_N[here][emits], targets.t_N[here][emits], targets.u_N[here][emits]


def emission_frames(path_BN: Tensor, num_labels: int) -> Tensor:
    """The frame (B, U) on which each label of padded paths is emitted; padded labels get 0."""
    is_label_BN = path_BN != BLANK
    utterance_M, position_M = is_label_BN.nonzero(as_tuple=True)
    u_M = is_label_BN.cumsum(1)[utterance_M, position_M] - 1
    emission_BU = path_BN.new_zeros(len(path_BN), num_labels)
    emission_BU[utterance_M, u_M] = position_M - u_M  # the blanks before a label are the frames before it
    return emission_BU
