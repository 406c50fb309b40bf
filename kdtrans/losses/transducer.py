"""The transducer loss -log P(y | x) in plain torch (Graves 2012, arXiv 1211.3711).

Exact: the lattice is fp64. Lean: of the logits' size, only their gradient is kept. Two ways of making a student emit
earlier live in the same lattice and the same buffer: FastEmit (Yu et al. 2021, arXiv 2010.11148) and the delay penalty
of k2 (Kang et al. 2023, arXiv 2211.00490).

Shapes: B utterances, T frames, U labels, V vocabulary with blank = 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdtrans.contracts import BLANK
from kdtrans.lattice.recursion import forward_backward_scores, forward_scores, total_score


def transducer_loss(
    logits_BTUV: Tensor,
    labels_BU: Tensor,
    frames_B: Tensor,
    lengths_B: Tensor,
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
) -> Tensor:
    """Negative log-probability of the labels, summed over all paths of the regular topology.

    Args:
        logits_BTUV: unnormalised joiner outputs, (B, T, U + 1, V).
        labels_BU: labels without blanks, (B, U); what stands beyond lengths_B is ignored.
        frames_B: frames of each utterance, 1 .. T.
        lengths_B: labels of each utterance, 0 .. U.
        fastemit: the gradient through label arcs is multiplied by 1 + this; the loss's value stays.
        delay_penalty: nats a frame; the label arcs of frame t get this x ((T_b - 1) / 2 - t), and the loss is that of
            the lattice so changed.

    Returns:
        Loss of each utterance (B,), nats, fp32 or wider, differentiable in the logits.

    Raises:
        ValueError: when shapes or lengths contradict each other.
    """
    _check(logits_BTUV, labels_BU, frames_B, lengths_B)
    loss: Tensor = _TransducerLoss.apply(logits_BTUV, labels_BU, frames_B, lengths_B, fastemit, delay_penalty)
    return loss


def node_log_probs(logits_BTUV: Tensor, labels_BU: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of blank (B, T, U + 1) and of the next label (B, T, U), and the log-normaliser (B, T, U + 1).

    Only these are read off the logits: a normalised copy of the grid is never made.
    """
    logits = logits_BTUV if logits_BTUV.dtype == torch.float64 else logits_BTUV.float()
    normaliser = logits.logsumexp(-1)
    blank = logits[..., BLANK] - normaliser
    index = labels_BU[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
    label = logits[:, :, :-1].gather(3, index)[..., 0] - normaliser[:, :, :-1]
    return blank, label, normaliser


class _TransducerLoss(torch.autograd.Function):
    """The gradient is known in closed form; it is computed with the loss, and scaled when it is asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        frames: Tensor,
        lengths: Tensor,
        fastemit: float,
        delay_penalty: float,
    ) -> Tensor:
        blank, label, normaliser = node_log_probs(logits, labels)
        if delay_penalty:
            earliness = (frames[:, None] - 1) / 2 - torch.arange(label.shape[1], device=label.device)
            label = label.double() + delay_penalty * earliness[:, :, None]
        if ctx.needs_input_grad[0]:
            alpha, beta = forward_backward_scores(blank, label, frames, lengths)
            total = total_score(alpha, blank, frames, lengths)
            arcs = _posteriors(frames, lengths, blank, label, alpha, beta, total)
            ctx.save_for_backward(_gradient(logits, labels, normaliser, *arcs, fastemit))
        else:
            total = total_score(forward_scores(blank, label), blank, frames, lengths)
        return -total.to(normaliser.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0][:, None, None, None].to(gradient.dtype), None, None, None, None, None


def _posteriors(
    frames: Tensor, lengths: Tensor, blank: Tensor, label: Tensor, alpha: Tensor, beta: Tensor, total: Tensor
) -> tuple[Tensor, Tensor]:
    """Posterior of every blank arc (B, T, U + 1) and every label arc (B, T, U) of the lattice."""
    num_frames, columns = blank.shape[1:]
    real = (torch.arange(num_frames, device=blank.device) < frames[:, None])[:, :, None] & (
        torch.arange(columns, device=blank.device) <= lengths[:, None]
    )[:, None]
    reach = alpha - total[:, None, None]
    blank_arc = (reach + blank + beta[:, 1:]).exp().where(real, 0.0)
    label_arc = (reach[:, :, :-1] + label + beta[:, :-1, 1:]).exp().where(real[:, :, :-1], 0.0)
    # A label arc cannot leave the last column of its utterance.
    return blank_arc, label_arc * (torch.arange(columns - 1, device=blank.device) < lengths[:, None])[:, None]


def _gradient(
    logits: Tensor, labels: Tensor, normaliser: Tensor, blank_arc: Tensor, label_arc: Tensor, fastemit: float
) -> Tensor:
    """d loss / d logits = P(k | t, u) x occupancy(t, u) - posterior of the arc (t, u, k)."""
    if fastemit:
        label_arc = label_arc * (1.0 + fastemit)
    occupancy = blank_arc.clone()
    occupancy[:, :, :-1] += label_arc

    gradient = (logits - normaliser[..., None]).exp_()
    gradient *= occupancy[..., None].to(gradient.dtype)
    gradient[..., BLANK] -= blank_arc.to(gradient.dtype)
    index = labels[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
    gradient[:, :, :-1].scatter_add_(3, index, -label_arc[..., None].to(gradient.dtype))
    return gradient.to(logits.dtype)


def _check(logits: Tensor, labels: Tensor, frames: Tensor, lengths: Tensor) -> None:
    batch, num_frames, columns, vocab = logits.shape
    if labels.shape != (batch, columns - 1):
        raise ValueError(
            f"labels are {tuple(labels.shape)}, expected {(batch, columns - 1)} for logits {tuple(logits.shape)}"
        )
    if int(frames.min()) < 1 or int(frames.max()) > num_frames:
        raise ValueError(f"frames_B is in {int(frames.min())}..{int(frames.max())}, expected 1..{num_frames}")
    if int(lengths.min()) < 0 or int(lengths.max()) > columns - 1:
        raise ValueError(f"lengths_B is in {int(lengths.min())}..{int(lengths.max())}, expected 0..{columns - 1}")
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= vocab):
        raise ValueError(f"labels are in {int(labels.min())}..{int(labels.max())}, expected 0..{vocab - 1}")
