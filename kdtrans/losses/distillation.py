"""One-best-path distillation (Yang, Li, Woodland 2022, arXiv 2110.03334):

    L_kd = 1/B sum_b sum_{(t, u) in path_b} KL( P_teacher(. | t, u) || P_student(. | t + tau, u) )

The encoder and predictor outputs are gathered at the path's nodes first and joined there only: the same loss and
gradient as indexing the T x U x V grid, without the grid.

Shapes: B utterances, T frames, U labels, J joiner width, V vocabulary, N nodes of the whole batch (no padding),
K stored classes a node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdtrans.config import KdConfig
from kdtrans.contracts import BLANK

TINY = 1.0e-7  # smallest tail mass; below fp32's resolution of 1 - p


@dataclass(frozen=True)
class NodeTargets:
    """The teacher's distributions at the path nodes of a batch, all utterances one after another."""

    utterance_N: Tensor  # index into the batch
    t_N: Tensor  # frame of the student's grid
    u_N: Tensor  # labels emitted before
    ids_NK: Tensor  # the K most probable classes
    logp_NK: Tensor  # their log-probabilities, normalised over the full vocabulary

    def __len__(self) -> int:
        return len(self.t_N)

    def select(self, keep_N: Tensor) -> NodeTargets:
        """The nodes where `keep_N` is true."""
        return NodeTargets(*(getattr(self, name)[keep_N] for name in self.__dataclass_fields__))

    def shifted(self, frames: int, student_frames_B: Tensor) -> NodeTargets:
        """Move every node by a number of frames and drop those that fall off the student's grid (B,)."""
        t_N = self.t_N + frames
        keep_N = (t_N >= 0) & (t_N < student_frames_B[self.utterance_N])
        return NodeTargets(self.utterance_N, t_N, self.u_N, self.ids_NK, self.logp_NK).select(keep_N)

    def to(self, device: torch.device) -> NodeTargets:
        return NodeTargets(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def gather_logits(
    join: Callable[[Tensor, Tensor], Tensor], enc_BTJ: Tensor, pred_BUJ: Tensor, targets: NodeTargets
) -> Tensor:
    """Student logits (N, V) at the targets' nodes from projected encoder and predictor outputs."""
    return join(enc_BTJ[targets.utterance_N, targets.t_N], pred_BUJ[targets.utterance_N, targets.u_N])


def one_best_loss(logits_NV: Tensor, targets: NodeTargets, config: KdConfig, batch: int) -> Tensor:
    """KL from the teacher's to the student's distribution over the stored classes and, for all others, a tail class.

    Args:
        logits_NV: the student's logits at the targets' nodes.
        targets: the teacher's top-k log-probabilities there.
        config: temperature (applied to the stored and tail classes of both), reduction, node weight.
        batch: number of utterances B, the divisor of reduction `sum`.

    Returns:
        A scalar, nats: per utterance (`sum`) or per node (`node`).
    """
    teacher_NC = targets.logp_NK.float()
    student_NC = logits_NV.float().log_softmax(1).gather(1, targets.ids_NK)
    if targets.ids_NK.shape[1] < logits_NV.shape[1]:  # all classes stored: there is no tail to blow up by temperature
        teacher_NC, student_NC = with_tail(teacher_NC), with_tail(student_NC)
    if config.temperature != 1.0:
        teacher_NC = (teacher_NC / config.temperature).log_softmax(1)
        student_NC = (student_NC / config.temperature).log_softmax(1)
    kl_N = (teacher_NC.exp() * (teacher_NC - student_NC)).sum(1)
    if config.node_weight == "nonblank":
        kl_N = kl_N * (1.0 - blank_probability(targets))
    return kl_N.sum() / (batch if config.reduction == "sum" else max(len(targets), 1))


def with_tail(logp_NK: Tensor) -> Tensor:
    """Append the log of the mass that the K classes leave: (N, K) -> (N, K + 1), normalised."""
    mass = logp_NK.logsumexp(1, keepdim=True).clamp(max=-TINY)
    return torch.cat([logp_NK, torch.log(-torch.expm1(mass))], dim=1)


def blank_probability(targets: NodeTargets) -> Tensor:
    """P_teacher(blank) at every node (N,); 0 where blank is not among the stored classes."""
    return torch.where(targets.ids_NK == BLANK, targets.logp_NK.float().exp(), 0.0).sum(1)
