"""The losses of one batch: transducer, auxiliary CTC, distillation.

Shapes: B utterances, T encoder frames, U labels, J joiner width, V vocabulary, N path nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtrans.config import KdConfig, TrainingConfig
from kdtrans.contracts import BLANK
from kdtrans.data.batches import Batch
from kdtrans.losses.distillation import NodeTargets, gather_logits, one_best_loss
from kdtrans.losses.transducer import transducer_loss
from kdtrans.models.transducer import Transducer
from kdtrans.training.loop import Losses, autocast

# Teacher and student grids of one utterance; more means different audio or a broken frame contract.
MOST_FRAMES_APART = 2


def transducer_losses(model: Transducer, batch: Batch, config: TrainingConfig, kd: KdConfig) -> Losses:
    """L = L_transducer + ctc_weight L_ctc + lambda L_kd, each a mean over utterances.

    Raises:
        ValueError: when an utterance's target and the encoder disagree by more than two frames, naming it.
    """
    device = batch.features_BFC.device
    with autocast(config.precision, device, model.encoder.dim):
        enc_BTE, frames_B = model.encode(batch.features_BFC, batch.lengths_B)
        enc_BTJ = model.project_encoder(enc_BTE)
        pred_BUJ = model.project_predictor(model.predictor(batch.labels_BU))
        logits_BTUV = model.grid(enc_BTJ, pred_BUJ)
    utterances = len(batch.utt_ids)
    losses = {
        "loss_transducer": transducer_loss(logits_BTUV, batch.labels_BU, frames_B, batch.label_lengths_B).sum()
        / utterances
    }
    total = losses["loss_transducer"]
    if config.ctc_weight > 0:
        losses["loss_ctc"] = ctc_loss(model.ctc(enc_BTE.float()), frames_B, batch) / utterances
        total = total + config.ctc_weight * losses["loss_ctc"]
    if kd.weight > 0 and batch.targets is not None:
        targets = on_student_grid(batch, frames_B, kd.shift)
        with autocast(config.precision, device, model.encoder.dim):
            logits_NV = gather_logits(model.joiner, enc_BTJ, pred_BUJ, targets)
        losses["loss_kd"] = one_best_loss(logits_NV, targets, kd, utterances)
        total = total + kd.weight * losses["loss_kd"]
    return {"loss": total, **losses}


def ctc_loss(logits_BTV: Tensor, frames_B: Tensor, batch: Batch) -> Tensor:
    """CTC (Graves et al. 2006) summed over utterances; those with more labels than frames count as 0."""
    log_probs_TBV = logits_BTV.log_softmax(2).transpose(0, 1)
    return F.ctc_loss(
        log_probs_TBV,
        batch.labels_BU,
        frames_B,
        batch.label_lengths_B,
        blank=BLANK,
        reduction="sum",
        zero_infinity=True,
    )


def on_student_grid(batch: Batch, frames_B: Tensor, shift: int) -> NodeTargets:
    """The batch's targets moved by the shift, without the nodes that fall off the student's grid."""
    assert batch.targets is not None
    assert batch.teacher_frames_B is not None
    apart_B = torch.where(batch.teacher_frames_B < 0, 0, (batch.teacher_frames_B - frames_B).abs())
    if int(apart_B.max()) > MOST_FRAMES_APART:
        worst = int(apart_B.argmax())
        raise ValueError(
            f"utterance {batch.utt_ids[worst]}: the target has {int(batch.teacher_frames_B[worst])} frames and the "
            f"student {int(frames_B[worst])}: the targets belong to other audio; dump them again"
        )
    return batch.targets.shifted(shift, frames_B)
