"""One-best-path distillation (Yang, Li, Woodland 2022, arXiv 2110.03334):

    L_kd = 1/B sum_b sum_{(t, u) in path_b} KL( P_teacher(. | t, u) || P_student(. | t + tau, u) )

The encoder and predictor outputs are gathered at the path's nodes first and joined there only: the same loss and
gradient as indexing the T x U x V grid, without the grid.

Shapes: B utterances, T frames, U labels, J joiner width, V vocabulary, N nodes of the whole batch (no padding),
K classes a node, those left out among them, C classes compared (the K and a tail), S shifts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdtrans.config import KdConfig
from kdtrans.contracts import BLANK
from kdtrans.lattice.recursion import IMPOSSIBLE

TINY = 1.0e-7  # smallest tail mass; below fp32's resolution of 1 - p


@dataclass(frozen=True)
class NodeTargets:
    """The teacher's distributions at the path nodes of a batch, all utterances one after another."""

    utterance_N: Tensor  # index into the batch
    t_N: Tensor  # frame of the student's grid
    u_N: Tensor  # labels emitted before
    ids_NK: Tensor  # the K most probable classes
    logp_NK: Tensor  # their log-probabilities, normalised over the full vocabulary; -inf: left out, part of the tail

    def __len__(self) -> int:
        return len(self.t_N)

    def select(self, keep_N: Tensor) -> NodeTargets:
        """The nodes where `keep_N` is true."""
        return self._each(lambda part: part[keep_N])

    def shifted(self, frames: int, student_frames_B: Tensor) -> NodeTargets:
        """Move every node by a number of frames and drop those that fall off the student's grid (B,)."""
        t_N = self.t_N + frames
        keep_N = (t_N >= 0) & (t_N < student_frames_B[self.utterance_N])
        return NodeTargets(self.utterance_N, t_N, self.u_N, self.ids_NK, self.logp_NK).select(keep_N)

    def to(self, device: torch.device, non_blocking: bool = False) -> NodeTargets:
        """These on a device, as `Tensor.to` has it."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> NodeTargets:
        """These in pinned memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> NodeTargets:
        return NodeTargets(*(change(getattr(self, name)) for name in self.__dataclass_fields__))


def joined_targets(parts: Sequence[NodeTargets]) -> NodeTargets:
    """The nodes of all parts, one after another."""
    return NodeTargets(*(torch.cat(column) for column in zip(*(vars(part).values() for part in parts), strict=True)))


Join = Callable[[Tensor, Tensor], Tensor]


def gather_logits(join: Join, enc_BTJ: Tensor, pred_BUJ: Tensor, targets: NodeTargets) -> Tensor:
    """Student logits (N, V) at the targets' nodes from projected encoder and predictor outputs."""
    # Rows of one flat table: the backward pass of indexing two dimensions at once is slower.
    frame_N = targets.utterance_N * enc_BTJ.shape[1] + targets.t_N
    column_N = targets.utterance_N * pred_BUJ.shape[1] + targets.u_N
    return join(enc_BTJ.flatten(0, 1).index_select(0, frame_N), pred_BUJ.flatten(0, 1).index_select(0, column_N))


def one_best_loss(logits_NV: Tensor, targets: NodeTargets, config: KdConfig, batch: int) -> Tensor:
    """KL from the teacher's to the student's distribution over the stored classes and, for all others, a tail class.

    A node's stored classes are those with a finite log-probability; the student's mass of all others is in its tail.

    Args:
        logits_NV: the student's logits at the targets' nodes.
        targets: the teacher's top-k log-probabilities there.
        config: temperature (applied to the stored and tail classes of both), reduction, node weight.
        batch: number of utterances B, the divisor of reduction `sum`.

    Returns:
        A scalar, nats: per utterance (`sum`) or per node (`node`).
    """
    return reduced(_node_divergence(logits_NV, targets, config), lambda: blank_probability(targets), config, batch)


def window_loss(
    join: Join,
    enc_BTJ: Tensor,
    pred_BUJ: Tensor,
    targets: NodeTargets,
    frames_B: Tensor,
    shifts: range,
    config: KdConfig,
    batch: int,
) -> tuple[Tensor, int]:
    """The one-best loss in which every node counts with the shift that suits it best.

    Args:
        join: the student's joiner.
        enc_BTJ: its projected encoder output.
        pred_BUJ: its projected predictor output.
        targets: the teacher's nodes, not shifted.
        frames_B: the student's frames.
        shifts: frames to try; those that take a node off the student's grid do not count.
        config: as in `one_best_loss`.
        batch: as in `one_best_loss`.

    Returns:
        A scalar, nats, and how many nodes are dropped because no shift keeps them on the grid.
    """
    last_N = frames_B[targets.utterance_N] - 1
    t_SN = targets.t_N + torch.tensor(shifts, device=last_N.device)[:, None]
    valid_SN = (t_SN >= 0) & (t_SN <= last_N)
    keep_N = valid_SN.any(0)
    kept, last_N, t_SN, valid_SN = targets.select(keep_N), last_N[keep_N], t_SN[:, keep_N], valid_SN[:, keep_N]
    # The shifts have an axis of their own: concatenated and reshaped, a node's minimum would run over its neighbours.
    kl_SN = torch.stack(
        [
            _node_divergence(gather_logits(join, enc_BTJ, pred_BUJ, replace(kept, t_N=t_N)), kept, config)
            for t_N in t_SN.clamp(min=0).minimum(last_N)
        ]
    )
    kl_N = kl_SN.masked_fill(~valid_SN, torch.inf).amin(0)
    return reduced(kl_N, lambda: blank_probability(kept), config, batch), len(targets) - len(kept)


def divergence(teacher_NC: Tensor, student_NC: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) (N,) between two sets of log-probabilities, nats, both softened by the temperature."""
    if temperature != 1.0:
        teacher_NC = (teacher_NC / temperature).log_softmax(1)
        student_NC = (student_NC / temperature).log_softmax(1)
    return (teacher_NC.exp() * (teacher_NC - student_NC)).sum(1)


def reduced(kl_N: Tensor, blank: Callable[[], Tensor], config: KdConfig, batch: int) -> Tensor:
    """Nodes -> loss: each weighted by 1 - P_teacher(blank) if the configuration says so, then summed or averaged."""
    if config.node_weight == "nonblank":
        kl_N = kl_N * (1.0 - blank())
    return kl_N.sum() / (batch if config.reduction == "sum" else max(len(kl_N), 1))


def with_tail(logp_NK: Tensor) -> Tensor:
    """Append the log of the mass that the K classes leave: (N, K) -> (N, K + 1), normalised."""
    mass = logp_NK.logsumexp(1, keepdim=True).clamp(max=-TINY)
    return torch.cat([logp_NK, torch.log(-torch.expm1(mass))], dim=1)


def blank_probability(targets: NodeTargets) -> Tensor:
    """P_teacher(blank) at every node (N,); 0 where blank is not among the stored classes."""
    return torch.where(targets.ids_NK == BLANK, targets.logp_NK.float().exp(), 0.0).sum(1)


def widened(values: Tensor) -> Tensor:
    """At least fp32: logarithms of probabilities near 0 and 1 need it."""
    return values if values.dtype == torch.float64 else values.float()


def _node_divergence(logits_NV: Tensor, targets: NodeTargets, config: KdConfig) -> Tensor:
    # IMPOSSIBLE for -inf, in both: a class left out is in both tails and adds 0 here, where inf - inf would be nan.
    teacher_NK = targets.logp_NK.float().clamp(min=IMPOSSIBLE)
    is_left_out_NK = teacher_NK == IMPOSSIBLE
    student_NK = widened(logits_NV).log_softmax(1).gather(1, targets.ids_NK).masked_fill(is_left_out_NK, IMPOSSIBLE)
    teacher_NC, student_NC = with_tail(teacher_NK), with_tail(student_NK)
    if targets.ids_NK.shape[1] == logits_NV.shape[1]:
        # Where a node stores all classes, there is no tail for temperature to blow up.
        is_whole_N1 = ~is_left_out_NK.any(1, keepdim=True)
        no_tail_NC = torch.cat([torch.zeros_like(is_left_out_NK), is_whole_N1], dim=1)
        teacher_NC, student_NC = (logp.masked_fill(no_tail_NC, IMPOSSIBLE) for logp in (teacher_NC, student_NC))
    return divergence(teacher_NC, student_NC, config.temperature)
