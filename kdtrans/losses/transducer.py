"""The transducer loss -log P(y | x) in plain torch (Graves 2012, arXiv 1211.3711).

Exact: the lattice is fp64. Lean: beside the given logits, nothing of their size is ever there but the gradient that
autograd has to be given, and that only while it is computed. Two ways of making a student emit earlier live in the
same lattice: FastEmit (Yu et al. 2021, arXiv 2010.11148) and the delay penalty of k2 (Kang et al. 2023, arXiv
2211.00490).

Shapes: B utterances, T frames, U labels, V vocabulary with blank = 0, N nodes of the grid, padding included, C nodes of
a slice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtrans.contracts import BLANK
from kdtrans.lattice.recursion import forward_backward_scores, forward_scores, total_score
from kdtrans.losses.distillation import widened

SLICE = 1 << 18  # logits worked on at once: 1 MB, which stays in a CPU core's cache


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
    check_grid(logits_BTUV.shape[:3], labels_BU, frames_B, lengths_B)
    check_labels(labels_BU, logits_BTUV.shape[3])
    loss: Tensor = _TransducerLoss.apply(logits_BTUV, labels_BU, frames_B, lengths_B, fastemit, delay_penalty)
    return loss


def node_log_probs(logits_BTUV: Tensor, labels_BU: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of blank (B, T, U + 1) and of the next label (B, T, U), fp32 or wider.

    Only these are read off the logits, a slice of nodes at a time: a normalised copy of the grid is never made. They
    carry no gradient.
    """
    logits_NV = logits_BTUV.detach().flatten(0, 2)
    next_N = _next_labels(labels_BU, logits_BTUV.shape[1])
    # One buffer for all slices: small ones that outlive their slice would keep its memory from being used again.
    dtype = torch.promote_types(logits_NV.dtype, torch.float32)
    scores_2N = torch.empty((2, len(next_N)), dtype=dtype, device=logits_NV.device)
    for nodes in _slices(logits_NV):
        scores_2N[:, nodes] = node_scores(logits_NV[nodes], next_N[nodes])
    blank, label = scores_2N.view(2, *logits_BTUV.shape[:3])
    return blank, label[:, :, :-1]


def node_scores(logits_CV: Tensor, next_C: Tensor) -> Tensor:
    """Log-probs of blank and of the next label, (2, C), fp32 or wider."""
    # Measured on a CPU: in half of the time of logsumexp, which passes over the classes four times.
    logp_CV = widened(logits_CV).log_softmax(1)
    return torch.stack([logp_CV[:, BLANK], logp_CV.gather(1, next_C[:, None])[:, 0]])


def node_gradient(logits_CV: Tensor, next_C: Tensor, blank_arc_C: Tensor, label_arc_C: Tensor) -> Tensor:
    """d loss / d logits (C, V) = P(k | t, u) x occupancy(t, u) - posterior of the arc (t, u, k), fp32 or wider."""
    gradient_CV = widened(logits_CV).softmax(1)
    gradient_CV *= (blank_arc_C + label_arc_C)[:, None]
    gradient_CV[:, BLANK] -= blank_arc_C
    return gradient_CV.scatter_add_(1, next_C[:, None], -label_arc_C[:, None])


class _TransducerLoss(torch.autograd.Function):
    """Forward keeps two numbers a node; backward makes the gradient from the logits, which are given, by slices."""

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
        blank, label = node_log_probs(logits, labels)
        dtype = blank.dtype
        label = penalised(label, frames, delay_penalty)
        if ctx.needs_input_grad[0]:
            alpha, beta = forward_backward_scores(blank, label, frames, lengths)
            total = total_score(alpha, blank, frames, lengths)
            arcs = arc_posteriors(frames, lengths, blank, label, alpha, beta, total, dtype)
            ctx.save_for_backward(logits, labels, arcs[0], arcs[1] * (1.0 + fastemit))
        else:
            total = total_score(forward_scores(blank, label), blank, frames, lengths)
        return -total.to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, blank_arc, label_arc = ctx.saved_tensors
        logits_NV, weight = logits.flatten(0, 2), grad_outputs[0][:, None, None]
        at_nodes = (
            _next_labels(labels, logits.shape[1]),
            (blank_arc * weight).flatten(),
            F.pad(label_arc * weight, (0, 1)).flatten(),
        )
        gradient_NV = torch.empty_like(logits_NV)
        for nodes in _slices(logits_NV):
            gradient_NV[nodes] = node_gradient(logits_NV[nodes], *(value_N[nodes] for value_N in at_nodes))
        return gradient_NV.view(logits.shape), None, None, None, None, None


def _next_labels(labels_BU: Tensor, num_frames: int) -> Tensor:
    """The label that follows every node of the grid (N,), BLANK in the last column."""
    return F.pad(labels_BU.long(), (0, 1), value=BLANK)[:, None].expand(-1, num_frames, -1).flatten()


def _slices(logits_NV: Tensor) -> list[slice]:
    """Nodes of about SLICE logits together."""
    num_nodes, vocab = logits_NV.shape
    step = max(1, SLICE // vocab)
    return [slice(first, first + step) for first in range(0, num_nodes, step)]


def penalised(label_BTU: Tensor, frames_B: Tensor, delay_penalty: float) -> Tensor:
    """The label arcs with a bonus for early frames and a penalty for late ones, 0 in the mean over the frames; fp64."""
    label_BTU = label_BTU.double()
    if not delay_penalty:
        return label_BTU
    earliness_BT = earliness(frames_B[:, None], torch.arange(label_BTU.shape[1], device=label_BTU.device))
    return label_BTU + delay_penalty * earliness_BT[:, :, None]


def earliness(frames: Tensor, t: Tensor) -> Tensor:
    """How many frames t is before the middle of an utterance of so many frames."""
    return (frames - 1) / 2 - t


def on_grid(frames_B: Tensor, lengths_B: Tensor, num_frames: int, columns: int) -> Tensor:
    """Whether a node is one of its utterance's grid, (B, num_frames, columns)."""
    t_T = torch.arange(num_frames, device=frames_B.device)
    u_U = torch.arange(columns, device=frames_B.device)
    return (t_T < frames_B[:, None])[:, :, None] & (u_U <= lengths_B[:, None])[:, None]


def arc_posteriors(
    frames: Tensor,
    lengths: Tensor,
    blank: Tensor,
    label: Tensor,
    alpha: Tensor,
    beta: Tensor,
    total: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Posterior of every blank arc (B, T, U + 1) and every label arc (B, T, U) of the lattice, in the logits' dtype."""
    num_frames, columns = blank.shape[1:]
    real = on_grid(frames, lengths, num_frames, columns)
    reach = alpha - total[:, None, None]
    # A label arc cannot leave the last column of its utterance.
    has_label = real[:, :, :-1] & (torch.arange(columns - 1, device=blank.device) < lengths[:, None])[:, None]
    blank_arc, label_arc = reach + blank + beta[:, 1:], reach[:, :, :-1] + label + beta[:, :-1, 1:]
    return (
        posterior(blank_arc.masked_fill(~real, -torch.inf), dtype),
        posterior(label_arc.masked_fill(~has_label, -torch.inf), dtype),
    )


def posterior(log_posterior: Tensor, dtype: torch.dtype) -> Tensor:
    """exp, in the logits' dtype, and 0 for what is far below its rounding of a frame's mass, which is 1.

    Such arcs are lost in any sum over a frame's. As they are, they would be most of a grid, and make gradients
    subnormal, which a CPU multiplies many times slower.
    """
    least = math.log(torch.finfo(dtype).eps / 128)
    return log_posterior.masked_fill(log_posterior < least, -torch.inf).exp().to(dtype)


def check_grid(shape: Sequence[int], labels: Tensor, frames: Tensor, lengths: Tensor) -> None:
    """Raise ValueError unless labels, frames and lengths fit a grid (B, T, U + 1)."""
    batch, num_frames, columns = shape
    if labels.shape != (batch, columns - 1):
        raise ValueError(f"labels are {tuple(labels.shape)}, expected {(batch, columns - 1)} for a grid {tuple(shape)}")
    if int(frames.min()) < 1 or int(frames.max()) > num_frames:
        raise ValueError(f"frames_B is in {int(frames.min())}..{int(frames.max())}, expected 1..{num_frames}")
    if int(lengths.min()) < 0 or int(lengths.max()) > columns - 1:
        raise ValueError(f"lengths_B is in {int(lengths.min())}..{int(lengths.max())}, expected 0..{columns - 1}")


def check_labels(labels: Tensor, vocab: int) -> None:
    """Raise ValueError unless all labels, padding too, are classes."""
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= vocab):
        raise ValueError(f"labels are in {int(labels.min())}..{int(labels.max())}, expected 0..{vocab - 1}")
