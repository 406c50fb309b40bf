"""Distillation losses over the whole lattice, the baselines of the one-best path.

    full_lattice: KL over all V classes at every (t, u): what the one-best loss approximates
    collapsed: KL over {y_{u+1}, blank, rest} at every (t, u) (Panchapagesan et al. 2020, arXiv 2011.06110)
    full_sum: |log P_teacher(y | x) - log P_student(y | x)| (arXiv 2303.05958)

The first two work on the real cells of the grid, gathered from the padded batch: no padding can enter a sum or a mean.

Shapes: B utterances, T frames, U labels, V vocabulary with blank = 0, N real cells of the whole batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kdtrans.config import KdConfig
from kdtrans.contracts import BLANK
from kdtrans.lattice.recursion import IMPOSSIBLE
from kdtrans.losses.distillation import divergence, reduced, widened
from kdtrans.losses.transducer import on_grid


class Cells(NamedTuple):
    """Cells of a batch's grids, all utterances one after another."""

    utterance_N: Tensor
    t_N: Tensor
    u_N: Tensor


def real_cells(frames_B: Tensor, lengths_B: Tensor) -> Cells:
    """Every (t, u) with t < frames_B and u <= lengths_B."""
    real_BTU = on_grid(frames_B, lengths_B, int(frames_B.max()), int(lengths_B.max()) + 1)
    return Cells(*real_BTU.nonzero(as_tuple=True))


def next_labels(labels_BU: Tensor, lengths_B: Tensor, cells: Cells) -> Tensor:
    """The label that a path emits next from every cell (N,), BLANK where all labels are emitted."""
    if labels_BU.shape[1] == 0:
        return torch.zeros_like(cells.u_N)
    label_N = labels_BU[cells.utterance_N, cells.u_N.clamp(max=labels_BU.shape[1] - 1)]
    return torch.where(cells.u_N < lengths_B[cells.utterance_N], label_N, BLANK)


def full_lattice_loss(teacher_NV: Tensor, student_NV: Tensor, config: KdConfig, batch: int) -> Tensor:
    """KL from the teacher's to the student's distribution over all classes.

    Args:
        teacher_NV: the teacher's logits at the real cells.
        student_NV: the student's logits there.
        config: temperature, reduction, node weight.
        batch: number of utterances B, the divisor of reduction `sum`.

    Returns:
        A scalar, nats: per utterance (`sum`) or per cell (`node`).
    """
    teacher_NV, student_NV = widened(teacher_NV).log_softmax(1), widened(student_NV).log_softmax(1)
    kl_N = divergence(teacher_NV, student_NV, config.temperature)
    return reduced(kl_N, lambda: teacher_NV[:, BLANK].exp(), config, batch)


def collapsed_loss(teacher_NV: Tensor, student_NV: Tensor, next_N: Tensor, config: KdConfig, batch: int) -> Tensor:
    """KL over three classes: the next label, blank, and the rest; over {blank, rest} where no label follows.

    Args:
        teacher_NV: the teacher's logits at the real cells.
        student_NV: the student's logits there.
        next_N: the label that follows, BLANK where none does.
        config: temperature (applied to the three classes), reduction, node weight.
        batch: number of utterances B, the divisor of reduction `sum`.

    Returns:
        A scalar, nats: per utterance (`sum`) or per cell (`node`).
    """
    teacher_N3, student_N3 = collapse(teacher_NV, next_N), collapse(student_NV, next_N)
    kl_N = divergence(teacher_N3, student_N3, config.temperature)
    return reduced(kl_N, lambda: teacher_N3[:, 1].exp(), config, batch)


def collapse(logits_NV: Tensor, next_N: Tensor) -> Tensor:
    """Log-probabilities (N, 3) of the next label (impossible where it is BLANK), of blank, and of all others together.

    The others are summed themselves: 1 - P(label) - P(blank) cancels where a model is certain, and its gradient worse.
    """
    logits_NV, next_N1 = widened(logits_NV), next_N[:, None]
    label_N1 = logits_NV.gather(1, next_N1).masked_fill(next_N1 == BLANK, IMPOSSIBLE)
    blank_N1 = logits_NV[:, BLANK, None]
    named_N2 = torch.cat([next_N1, torch.full_like(next_N1, BLANK)], dim=1)
    rest_N1 = logits_NV.scatter(1, named_N2, IMPOSSIBLE).logsumexp(1, keepdim=True)
    return torch.cat([label_N1, blank_N1, rest_N1], dim=1) - logits_NV.logsumexp(1, keepdim=True)


def full_sum_loss(teacher_totals_B: Tensor, student_totals_B: Tensor) -> Tensor:
    """Distance of the labels' log-probabilities over all paths; utterances whose teacher's is nan count as 0.

    Args:
        teacher_totals_B: the teacher's log P(labels | audio), nats.
        student_totals_B: the student's.

    Returns:
        A scalar, nats per utterance.
    """
    known_B = ~teacher_totals_B.isnan()
    return (teacher_totals_B - student_totals_B)[known_B].abs().sum() / len(known_B)
