"""The losses of one batch: transducer, auxiliary CTC, distillation.

Shapes: B utterances, T encoder frames, U labels, E encoder width, J joiner width, V vocabulary, N path nodes or grid
cells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtrans.config import KdConfig, TrainingConfig
from kdtrans.contracts import BLANK
from kdtrans.data.batches import Batch
from kdtrans.losses.backends import loss_of_logits, pruned_loss
from kdtrans.losses.band import path_band
from kdtrans.losses.distillation import Join, gather_logits, one_best_loss, window_loss
from kdtrans.losses.encoder import encoder_loss
from kdtrans.losses.fused import arc_scores, fused_transducer_loss
from kdtrans.losses.grid import Cells, collapsed_loss, full_lattice_loss, full_sum_loss, next_labels, real_cells
from kdtrans.models.transducer import Transducer
from kdtrans.training.loop import Losses
from kdtrans.training.precision import autocast
from kdtrans.training.shift import ShiftTracker, frames_of, is_measured

# Teacher and student grids of one utterance; more means different audio or a broken frame contract.
MOST_FRAMES_APART = 2


@dataclass(frozen=True)
class Student:
    """What the student has made of a batch, for all losses to use; each joins the nodes that it needs."""

    join: Join  # in the configured precision
    frames_B: Tensor
    tail: int  # how many of them lie behind the end of the audio
    enc_BTE: Tensor
    enc_BTJ: Tensor
    pred_BUJ: Tensor
    parameters: list[nn.Parameter]  # of `join`
    simple: tuple[Tensor, Tensor] | None  # what the simple joiner adds, (B, T, V) and (B, U + 1, V); None: it has none

    def without_tail(self) -> Student:
        """The same up to the end of the audio, as tau is measured: with a tail behind it, all labels wander off."""
        return replace(self, frames_B=self.frames_B - self.tail, tail=0)


def transducer_losses(
    model: Transducer,
    batch: Batch,
    config: TrainingConfig,
    kd: KdConfig,
    teacher: Transducer | None = None,
    shift: int | ShiftTracker = 0,
    update: int | None = None,
) -> Losses:
    """L = L_transducer + ctc_weight L_ctc + lambda L_kd + encoder_weight L_encoder, each a mean over utterances.

    Args:
        model: the student, or the teacher while it is fine-tuned.
        batch: what it learns from.
        config: loss, weights, precision, FastEmit and delay penalty.
        kd: the distillation loss; weight 0 turns it off.
        teacher: runs beside the student where the loss needs its grid; in eval mode.
        shift: tau in frames, or what measures it, from this batch too.
        update: counted from 0; None: behind all that changes in the course of training.

    Returns:
        `loss`, which is minimised, and its parts, nats; `kd_nodes_dropped`, the nodes of an utterance that fall off the
        student's grid, where there are any; `kd_shift`, frames, while it is measured, when nothing is distilled yet.

    Raises:
        ValueError: when teacher and student disagree by more than two frames on an utterance, naming it.
    """
    student = run_student(model, batch, config)
    utterances = len(batch.utt_ids)
    measuring = is_measured(shift)  # asked first: this batch may be the last for it
    if measuring:
        student = student.without_tail()
    if config.loss == "pruned":
        simple_B, loss_B = pruned_part(student, batch, config)
        simple_weight, weight = pruned_weights(config, update)
        losses = {"loss_transducer": loss_B.sum() / utterances, "loss_simple": simple_B.sum() / utterances}
        total = weight * losses["loss_transducer"] + simple_weight * losses["loss_simple"]
    else:
        loss_B = transducer_part(student, batch, config, band_of(student, batch, config, shift))
        losses = {"loss_transducer": loss_B.sum() / utterances}
        total = losses["loss_transducer"]
    if config.ctc_weight > 0:
        losses["loss_ctc"] = ctc_loss(model.ctc(student.enc_BTE.float()), student.frames_B, batch) / utterances
        total = total + config.ctc_weight * losses["loss_ctc"]
    if kd.weight > 0:
        if kd.loss == "one_best" and batch.targets is not None:
            losses |= path_losses(student, batch, kd, shift)
        elif kd.loss == "full_sum" and batch.teacher_totals_B is not None:
            changed = config.fastemit or config.delay_penalty or config.loss in ("banded", "pruned")
            plain_B = transducer_part(student, batch, plain(config)) if changed else loss_B
            losses["loss_kd"] = full_sum_loss(batch.teacher_totals_B, -plain_B)
        elif kd.compares_grids:
            assert teacher is not None, f"kd.loss {kd.loss} runs the teacher: give it"
            losses |= grid_losses(student, batch, kd, teacher)
        if "loss_kd" in losses:
            total = total + kd.weight * losses["loss_kd"]
    if kd.encoder_weight > 0 and not measuring:
        losses["loss_encoder"] = encoder_part(model, student, batch, shift)
        total = total + kd.encoder_weight * losses["loss_encoder"]
    return {"loss": total, **losses}


def run_student(model: Transducer, batch: Batch, config: TrainingConfig) -> Student:
    """Encoder and predictor on a batch, in the configured precision, and the joiner for its nodes."""
    device = batch.features_BFC.device

    def join(enc_J: Tensor, pred_J: Tensor) -> Tensor:
        with autocast(config.precision, device, model.encoder.dim):
            logits: Tensor = model.joiner(enc_J, pred_J)
        return logits

    with autocast(config.precision, device, model.encoder.dim):
        enc_BTE, frames_B = model.encode(batch.features_BFC, batch.lengths_B)
        enc_BTJ = model.project_encoder(enc_BTE)
        pred_BUP = model.predictor(batch.labels_BU)
        pred_BUJ = model.project_predictor(pred_BUP)
        simple = model.simple(enc_BTE, pred_BUP) if model.simple else None
    return Student(
        join,
        frames_B,
        model.encoder.tail_frames,
        enc_BTE,
        enc_BTJ,
        pred_BUJ,
        list(model.joiner.output.parameters()),
        simple,
    )


def transducer_part(student: Student, batch: Batch, config: TrainingConfig, band_BTU: Tensor | None = None) -> Tensor:
    """The transducer loss of each utterance (B,), nats, over the whole grid or over a band of it."""
    outputs, early = (student.enc_BTJ, student.pred_BUJ), (config.fastemit, config.delay_penalty)
    grid = (batch.labels_BU, student.frames_B, batch.label_lengths_B)
    if config.loss == "full":
        logits_BTUV = student.join(student.enc_BTJ[:, :, None], student.pred_BUJ[:, None])
        return loss_of_logits(config.backend)(logits_BTUV, *grid, *early)
    fastemit, delay_penalty = early
    return fused_transducer_loss(
        *(student.join, student.parameters, *outputs, *grid),
        fastemit=fastemit,
        delay_penalty=delay_penalty,
        band_BTU=band_BTU,
    )


def pruned_part(student: Student, batch: Batch, config: TrainingConfig) -> tuple[Tensor, Tensor]:
    """The simple joiner's loss of each utterance (B,), nats, and the loss in the band where it has its mass."""
    assert student.simple is not None, "the model was built without a simple joiner: build it with loss: pruned"
    return pruned_loss(config.backend)(
        *(student.join, student.parameters, student.enc_BTJ, student.pred_BUJ, *student.simple),
        *(batch.labels_BU, student.frames_B, batch.label_lengths_B),
        width=config.band_width,
        fastemit=config.fastemit,
        delay_penalty=config.delay_penalty,
    )


def pruned_weights(config: TrainingConfig, update: int | None) -> tuple[float, float]:
    """Weights of the simple joiner's and of the pruned loss: at first its band is worth little (icefall's schedule)."""
    warmup = config.pruned_warmup * config.updates
    share = 1.0 if update is None or warmup == 0 else min(update / warmup, 1.0)
    return 1.0 + share * (config.simple_weight - 1.0), 0.1 + 0.9 * share


def band_of(student: Student, batch: Batch, config: TrainingConfig, shift: int | ShiftTracker) -> Tensor | None:
    """The nodes (B, T, U + 1) of a banded loss; None: all, as without any path, or while its shift is measured."""
    # While tau is measured, what a band allows is all that it would find.
    if config.loss != "banded" or batch.targets is None or is_measured(shift):
        return None
    check_frames(batch, student)
    path = batch.targets.shifted(frames_of(shift), student.frames_B)
    size = (student.enc_BTJ.shape[1], student.pred_BUJ.shape[1])
    cells = Cells(path.utterance_N, path.t_N, path.u_N)
    return path_band(cells, student.frames_B, batch.label_lengths_B, *size, config.band_width, config.band_margin)


def plain(config: TrainingConfig) -> TrainingConfig:
    """The settings of a loss that sums over all paths, none of them favoured: what a teacher's total compares with."""
    whole = "full" if config.loss == "full" else "fused"
    return config.model_copy(update={"loss": whole, "fastemit": 0.0, "delay_penalty": 0.0})


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


def path_losses(student: Student, batch: Batch, kd: KdConfig, shift: int | ShiftTracker) -> Losses:
    """Distillation along the teacher's one-best paths, shifted, or with the best shift of a window.

    While the shift is measured there is none.
    """
    assert batch.targets is not None
    check_frames(batch, student)
    utterances = len(batch.utt_ids)
    if isinstance(shift, ShiftTracker):
        if shift.measuring:
            grid = (batch.labels_BU, student.frames_B, batch.label_lengths_B)
            outputs = (student.join, student.enc_BTJ, student.pred_BUJ)
            shift.observe(lambda: arc_scores(*outputs, *grid), *grid, batch.targets)
            return {"kd_shift": torch.tensor(float(shift.frames))}
        shift = shift.frames
    outputs = (student.join, student.enc_BTJ, student.pred_BUJ)
    if kd.window:
        shifts = range(shift - kd.window, shift + kd.window + 1)
        loss, dropped = window_loss(*outputs, batch.targets, student.frames_B, shifts, kd, utterances)
    else:
        targets = batch.targets.shifted(shift, student.frames_B)
        dropped = len(batch.targets) - len(targets)
        loss = one_best_loss(gather_logits(*outputs, targets), targets, kd, utterances)
    return {"loss_kd": loss, **_dropped(dropped, utterances)}


def encoder_part(model: Transducer, student: Student, batch: Batch, shift: int | ShiftTracker) -> Tensor:
    """Distance of the encoders' outputs, shifted like the paths: a mean over utterances.

    What the teacher has beyond the student's last frame does not count (a frame offset of 0).
    """
    assert batch.teacher_BTJ is not None
    assert batch.teacher_frames_B is not None
    assert model.to_teacher is not None, "the model was built without a map to the teacher: give its width"
    check_frames(batch, student)
    ours_BTJ = model.to_teacher(student.enc_BTE.float())
    frames = student.frames_B, batch.teacher_frames_B
    return encoder_loss(ours_BTJ, batch.teacher_BTJ, *frames, frames_of(shift)).mean()


def grid_losses(student: Student, batch: Batch, kd: KdConfig, teacher: Transducer) -> Losses:
    """Distillation over the whole grid, as far as both have it: the teacher joins its stored encoder output.

    What the teacher has beyond the student's last frame is dropped (a frame offset of 0).
    """
    assert batch.teacher_BTJ is not None
    assert batch.teacher_frames_B is not None
    check_frames(batch, student)
    common_B = torch.minimum(student.frames_B, batch.teacher_frames_B)
    cells = real_cells(common_B, batch.label_lengths_B)
    with torch.no_grad():
        pred_BUJ = teacher.project_predictor(teacher.predictor(batch.labels_BU))
        # Joined cell by cell: no padded grid is ever made.
        teacher_NV = teacher.joiner(
            batch.teacher_BTJ[cells.utterance_N, cells.t_N].float(), pred_BUJ[cells.utterance_N, cells.u_N]
        )
    student_NV = student.join(
        student.enc_BTJ[cells.utterance_N, cells.t_N], student.pred_BUJ[cells.utterance_N, cells.u_N]
    )
    utterances = len(batch.utt_ids)
    if kd.loss == "full_lattice":
        loss = full_lattice_loss(teacher_NV, student_NV, kd, utterances)
    else:
        next_N = next_labels(batch.labels_BU, batch.label_lengths_B, cells)
        loss = collapsed_loss(teacher_NV, student_NV, next_N, kd, utterances)
    dropped = int(((batch.teacher_frames_B - common_B) * (batch.label_lengths_B + 1)).sum())
    return {"loss_kd": loss, **_dropped(dropped, utterances)}


def check_frames(batch: Batch, student: Student) -> None:
    """Raise ValueError naming the utterance whose teacher and student frames are too far apart; -1 is no teacher."""
    assert batch.teacher_frames_B is not None
    frames_B = student.frames_B - student.tail
    apart_B = torch.where(batch.teacher_frames_B < 0, 0, (batch.teacher_frames_B - frames_B).abs())
    if int(apart_B.max()) > MOST_FRAMES_APART:
        worst = int(apart_B.argmax())
        raise ValueError(
            f"utterance {batch.utt_ids[worst]}: the teacher has {int(batch.teacher_frames_B[worst])} frames and the "
            f"student {int(frames_B[worst])}: they saw different audio; dump the targets again"
        )


def _dropped(nodes: int, utterances: int) -> Losses:
    return {"kd_nodes_dropped": torch.tensor(nodes / utterances)} if nodes else {}
