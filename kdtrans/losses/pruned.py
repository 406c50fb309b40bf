"""The pruned transducer loss, for data without a path (Kuang et al. 2022, arXiv 2206.13236; k2's recipe).

Two passes. A simple joiner that only adds, am(t, v) + lm(u, v), has a lattice that costs next to nothing: its
normaliser is a product of two matrices,

    log sum_v exp(am(t, v) + lm(u, v)) = log( exp(am) exp(lm)^T )(t, u)

and T x U x V never exists. Its occupations say where the mass lies; the joiner proper is evaluated in a band there.
Both losses are trained: the simple one teaches the band where to lie.

Shapes: B utterances, T frames, U labels, J joiner width, V vocabulary with blank = 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from kdtrans.contracts import BLANK
from kdtrans.lattice.recursion import forward_backward_scores, total_score
from kdtrans.losses.band import occupation_band
from kdtrans.losses.distillation import Join
from kdtrans.losses.fused import fused_transducer_loss
from kdtrans.losses.transducer import arc_posteriors, check_grid, check_labels, penalised


def pruned_transducer_loss(
    join: Join,
    parameters: Iterable[Tensor],
    enc_BTJ: Tensor,
    pred_BUJ: Tensor,
    simple_enc_BTV: Tensor,
    simple_pred_BUV: Tensor,
    labels_BU: Tensor,
    frames_B: Tensor,
    lengths_B: Tensor,
    *,
    width: int,
    smoothing: float = 0.25,
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of the simple joiner, and that of `join` in the band where the simple one has its mass.

    Args:
        join: as in `fused_transducer_loss`, and so are those that are not named here.
        parameters: all that `join` learns.
        enc_BTJ: projected encoder output.
        pred_BUJ: projected predictor output, (B, U + 1, J).
        simple_enc_BTV: the encoder output projected to the vocabulary: am of the simple joiner.
        simple_pred_BUV: the predictor output projected to the vocabulary, (B, U + 1, V): its lm.
        labels_BU: labels without blanks.
        frames_B: frames of each utterance.
        lengths_B: labels of each utterance.
        width: least nodes of the band a frame; U + 1 or more: the second loss is that of the whole grid.
        smoothing: weight, 0 .. 1, of the predictor's own distribution in the simple scores (k2's lm_only_scale). 0: the
            simple loss is a transducer loss, and that of the added logits.
        fastemit: scales the gradient through label arcs, in both losses.
        delay_penalty: nats a frame, in both losses.
        chunk: nodes joined at once; None: what the device likes.

    Returns:
        Loss of the simple joiner and of the pruned one, (B,) each, nats, fp32 or wider.

    Raises:
        ValueError: when shapes or lengths contradict each other, or `width` or `smoothing` is out of range.
    """
    shape = (*enc_BTJ.shape[:2], pred_BUJ.shape[1])
    simple_shape = (*simple_enc_BTV.shape[:2], simple_pred_BUV.shape[1])
    if shape != simple_shape or simple_enc_BTV.shape[2] != simple_pred_BUV.shape[2]:
        raise ValueError(
            f"simple encoder and predictor outputs are {tuple(simple_enc_BTV.shape)} and "
            f"{tuple(simple_pred_BUV.shape)}, expected one vocabulary and a grid {shape}"
        )
    if not 0.0 <= smoothing <= 1.0:
        raise ValueError(f"smoothing is {smoothing}, expected 0 .. 1")
    check_grid(shape, labels_BU, frames_B, lengths_B)
    check_labels(labels_BU, simple_enc_BTV.shape[2])
    blank_BTU, label_BTU = simple_scores(simple_enc_BTV, simple_pred_BUV, labels_BU, smoothing)
    label_BTU = penalised(label_BTU, frames_B, delay_penalty)
    simple_B, blank_arc_BTU, label_arc_BTU = _SimpleLoss.apply(blank_BTU, label_BTU, frames_B, lengths_B, fastemit)
    band_BTU = occupation_band(blank_arc_BTU, label_arc_BTU, frames_B, lengths_B, width)
    pruned_B = fused_transducer_loss(
        *(join, parameters, enc_BTJ, pred_BUJ, labels_BU, frames_B, lengths_B),
        fastemit=fastemit,
        delay_penalty=delay_penalty,
        band_BTU=band_BTU,
        chunk=chunk,
    )
    return simple_B.to(pruned_B.dtype), pruned_B


def simple_scores(
    simple_enc_BTV: Tensor, simple_pred_BUV: Tensor, labels_BU: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Scores of the blank (B, T, U + 1) and label arcs (B, T, U) of the simple joiner, nats, fp64, differentiable.

    Logarithms of am + lm, normalised, and of lm alone, normalised, are averaged: the smoothed scores need not sum to 1.
    """
    # fp64, of T x V and U x V: in fp32 a sum underflows where am and lm agree on no class within 87 nats.
    am_BTV, lm_BUV = simple_enc_BTV.double(), simple_pred_BUV.double()
    am_top_BT1, lm_top_BU1 = (scores.detach().amax(2, keepdim=True) for scores in (am_BTV, lm_BUV))
    masses_BTU = torch.bmm((am_BTV - am_top_BT1).exp(), (lm_BUV - lm_top_BU1).exp().transpose(1, 2))
    normaliser_BTU = (masses_BTU + torch.finfo(masses_BTU.dtype).tiny).log() + am_top_BT1 + lm_top_BU1.transpose(1, 2)

    index_BU1 = labels_BU.long()[:, :, None]
    am_label_BTU = am_BTV.gather(2, index_BU1.transpose(1, 2).expand(-1, am_BTV.shape[1], -1))
    lm_label_B1U = lm_BUV[:, :-1].gather(2, index_BU1).transpose(1, 2)
    am_blank_BT1, lm_blank_B1U = am_BTV[:, :, BLANK, None], lm_BUV[:, None, :, BLANK]
    alone_B1U = lm_BUV.logsumexp(2)[:, None]

    both, alone = 1.0 - smoothing, smoothing
    blank_BTU = both * (am_blank_BT1 + lm_blank_B1U - normaliser_BTU) + alone * (lm_blank_B1U - alone_B1U)
    label_BTU = both * (am_label_BTU + lm_label_B1U - normaliser_BTU[:, :, :-1])
    return blank_BTU, label_BTU + alone * (lm_label_B1U - alone_B1U[:, :, :-1])


class _SimpleLoss(torch.autograd.Function):
    """The loss of a lattice's scores, and the posteriors of its arcs, which are minus its gradient."""

    @staticmethod
    def forward(
        ctx: Any, blank: Tensor, label: Tensor, frames: Tensor, lengths: Tensor, fastemit: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        alpha, beta = forward_backward_scores(blank, label, frames, lengths)
        total = total_score(alpha, blank, frames, lengths)
        arcs = arc_posteriors(frames, lengths, blank, label, alpha, beta, total, blank.dtype)
        ctx.fastemit = fastemit
        ctx.save_for_backward(*arcs)
        ctx.mark_non_differentiable(*arcs)
        return -total, *arcs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        blank_arc, label_arc = ctx.saved_tensors
        weight = -grad_outputs[0][:, None, None]
        return blank_arc * weight, label_arc * weight * (1.0 + ctx.fastemit), None, None, None
