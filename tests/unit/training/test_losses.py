"""The losses of a batch, as training puts them together."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdtrans.config import KdConfig, StudentConfig, TrainingConfig
from kdtrans.data.batches import Batch
from kdtrans.lattice.path import nodes
from kdtrans.losses.distillation import NodeTargets
from kdtrans.losses.fused import arc_scores
from kdtrans.losses.grid import collapsed_loss, full_lattice_loss, next_labels, real_cells
from kdtrans.losses.transducer import node_log_probs, transducer_loss
from kdtrans.models.build import build_student
from kdtrans.models.transducer import Transducer
from kdtrans.training.losses import (
    Student,
    band_of,
    run_student,
    transducer_losses,
    transducer_part,
)
from kdtrans.training.precision import autocast
from kdtrans.training.shift import ShiftTracker
from tests.tiny import STUDENT

V, FEATURES, LENGTHS, LABELS = 7, 80, [61, 45, 29], [[3, 1, 5], [2], [4, 4]]
CONFIG = TrainingConfig(ctc_weight=0.3, precision="fp32")


def make_model(seed: int, loss: str = "fused") -> Transducer:
    """A toy transducer without dropout and masks."""
    torch.manual_seed(seed)
    config = StudentConfig.model_validate(STUDENT | {"training": {"loss": loss}})
    model = build_student(config, V, teacher_dim=config.joiner_dim).eval()
    torch.nn.init.normal_(model.joiner.output.weight)  # far from uniform
    return model


def make_batch(chosen: list[int], student: Transducer, teacher: Transducer) -> Batch:
    """Some of three utterances, with everything that a teacher can say about them."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(length, FEATURES, generator=generator) for length in LENGTHS]
    lengths = torch.tensor([LENGTHS[i] for i in chosen])
    batch = Batch(
        utt_ids=[f"utt{i}" for i in chosen],
        features_BFC=torch.nn.utils.rnn.pad_sequence([features[i] for i in chosen], batch_first=True),
        lengths_B=lengths,
        labels_BU=torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(LABELS[i], dtype=torch.long) for i in chosen], batch_first=True
        ),
        label_lengths_B=torch.tensor([len(LABELS[i]) for i in chosen]),
        targets=None,
        teacher_frames_B=None,
        seconds=1.0,
        teacher_totals_B=torch.tensor([[-9.0, math.nan, -40.0][i] for i in chosen]),
    )
    with torch.no_grad():
        frames = student.encode(batch.features_BFC, lengths)[1]
        alone = [teacher.encode(features[i][None], torch.tensor([LENGTHS[i]]))[0] for i in chosen]
    outputs = [teacher.project_encoder(enc)[0].detach().half() for enc in alone]
    batch.teacher_BTJ = torch.nn.utils.rnn.pad_sequence(outputs, batch_first=True)
    batch.teacher_frames_B = frames.clone()
    batch.targets = make_targets(chosen, frames.tolist())
    return batch


def make_targets(chosen: list[int], frames: list[int]) -> NodeTargets:
    """All labels on frame 1, and distributions that depend on the utterance and the node only."""
    parts = []
    for place, (i, num_frames) in enumerate(zip(chosen, frames, strict=True)):
        t_N, u_N = nodes(torch.tensor([0, *LABELS[i], *[0] * (num_frames - 1)]))
        logp = torch.randn(len(t_N), V, generator=torch.Generator().manual_seed(i)).log_softmax(1).topk(3, dim=1)
        parts.append((torch.full_like(t_N, place), t_N, u_N, logp.indices, logp.values))
    return NodeTargets(*(torch.cat(column) for column in zip(*parts, strict=True)))


KDS: dict[str, dict[str, Any]] = {
    "one_best": {"loss": "one_best", "temperature": 1.5},
    "window": {"loss": "one_best", "window": 2, "node_weight": "nonblank"},
    "collapsed": {"loss": "collapsed"},
    "full_lattice": {"loss": "full_lattice", "temperature": 2.0},
    "full_sum": {"loss": "full_sum"},
    "encoder": {"loss": "one_best", "encoder_weight": 0.4},
}


@pytest.mark.parametrize("name", KDS)
def test_a_batch_is_the_mean_of_its_utterances(name: str) -> None:
    """Whatever pads an utterance, and wherever it stands in the batch, its losses and gradients are its own."""
    student, teacher, kd = make_model(1), make_model(2), KdConfig(weight=0.7, **KDS[name])
    config = CONFIG.model_copy(update={"fastemit": 0.2, "delay_penalty": 0.1})

    def losses_and_gradient(chosen: list[int]) -> tuple[dict[str, Tensor], Tensor]:
        losses = transducer_losses(student, make_batch(chosen, student, teacher), config, kd, teacher, shift=1)
        (gradient,) = torch.autograd.grad(losses["loss"], student.joiner.output.weight)
        return {key: value.detach() for key, value in losses.items()}, gradient

    together, gradient = losses_and_gradient([0, 1, 2])
    reordered, same_gradient = losses_and_gradient([2, 0, 1])
    alone = [losses_and_gradient([i]) for i in range(3)]
    for key, value in together.items():
        torch.testing.assert_close(reordered[key], value)
        torch.testing.assert_close(
            torch.stack([losses.get(key, torch.tensor(0.0)) for losses, _ in alone]).mean(), value
        )
    torch.testing.assert_close(same_gradient, gradient, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sum(g for _, g in alone) / 3, gradient, rtol=1e-4, atol=1e-5)
    parts = together["loss_transducer"] + 0.3 * together["loss_ctc"] + 0.7 * together["loss_kd"]
    parts = parts + kd.encoder_weight * together.get("loss_encoder", torch.tensor(0.0))
    torch.testing.assert_close(together["loss"], parts)


@pytest.mark.parametrize("name", ["collapsed", "full_lattice"])
def test_the_teacher_beside_the_student_equals_its_whole_grid(name: str) -> None:
    student, teacher, kd = make_model(1), make_model(2), KdConfig(weight=1.0, **KDS[name])
    batch = make_batch([0, 1, 2], student, teacher)
    assert batch.teacher_BTJ is not None
    assert batch.teacher_frames_B is not None
    batch.teacher_frames_B -= torch.tensor([1, 0, 2])  # fewer frames than the student has: the common ones count
    losses = transducer_losses(student, batch, CONFIG, kd, teacher)
    labels, lengths = batch.labels_BU, batch.label_lengths_B
    with torch.no_grad():
        teacher_grid = teacher.grid(batch.teacher_BTJ.float(), teacher.project_predictor(teacher.predictor(labels)))
        enc_BTE, _ = student.encode(batch.features_BFC, batch.lengths_B)
        pred_BUJ = student.project_predictor(student.predictor(labels))
        student_grid = student.grid(student.project_encoder(enc_BTE), pred_BUJ)
    cells = real_cells(batch.teacher_frames_B, lengths)
    pair = teacher_grid[tuple(cells)], student_grid[tuple(cells)]
    if name == "full_lattice":
        expected = full_lattice_loss(*pair, kd, 3)
    else:
        expected = collapsed_loss(*pair, next_labels(labels, lengths, cells), kd, 3)
    torch.testing.assert_close(losses["loss_kd"].detach(), expected)
    assert "kd_nodes_dropped" not in losses
    losses["loss"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_nodes_without_a_cell_of_the_student_are_counted() -> None:
    student, teacher = make_model(1), make_model(2)
    batch = make_batch([0, 1, 2], student, teacher)
    assert batch.teacher_BTJ is not None
    assert batch.teacher_frames_B is not None
    frames = batch.teacher_frames_B.tolist()

    def dropped(batch: Batch, shift: int = 0, **options: Any) -> float:
        losses = transducer_losses(student, batch, CONFIG, KdConfig(weight=1.0, **options), teacher, shift)
        return float(losses.get("kd_nodes_dropped", 0.0))

    assert dropped(batch) == 0.0
    assert dropped(batch, shift=2) == pytest.approx(2.0)  # the last two blanks of each
    assert dropped(batch, shift=2, window=1) == pytest.approx(1.0)  # one of them can move a frame less
    longer = replace(batch, targets=make_targets([0, 1, 2], [f + 2 for f in frames]))
    longer.teacher_frames_B = torch.tensor([f + 2 for f in frames])
    assert dropped(longer) == pytest.approx(2.0)
    longer.teacher_BTJ = F.pad(batch.teacher_BTJ, (0, 0, 0, 2))
    assert dropped(longer, loss="full_lattice") == pytest.approx(2 * sum(len(y) + 1 for y in LABELS) / 3)


@pytest.mark.parametrize("name", ["one_best", "window", "collapsed", "full_lattice", "encoder"])
def test_more_than_two_frames_apart_is_refused(name: str) -> None:
    student, teacher = make_model(1), make_model(2)
    batch = make_batch([0, 1, 2], student, teacher)
    assert batch.teacher_frames_B is not None
    batch.teacher_frames_B[1] += 3
    with pytest.raises(ValueError, match=r"utterance utt1: the teacher has 15 frames and the student 12"):
        transducer_losses(student, batch, CONFIG, KdConfig(weight=1.0, **KDS[name]), teacher)


@pytest.mark.parametrize("name", ["one_best", "encoder"])
def test_the_frames_of_a_tail_are_not_the_teachers(name: str) -> None:
    student, teacher, tail = make_model(1), make_model(2), 5
    batch = make_batch([0, 1, 2], student, teacher)
    kd = KdConfig(weight=1.0, **KDS[name])
    # Its outputs are longer than the teacher's by the tail.
    batch.features_BFC, batch.lengths_B = F.pad(batch.features_BFC, (0, 0, 0, 4 * tail)), batch.lengths_B + 4 * tail
    with pytest.raises(ValueError, match=r"utterance utt0: the teacher has 16 frames and the student 21"):
        transducer_losses(student, batch, CONFIG, kd, teacher)
    student.encoder.tail_frames = tail
    losses = transducer_losses(student, batch, CONFIG, kd, teacher, shift=tail)
    assert "kd_nodes_dropped" not in losses, "the tail has room for what is shifted"
    assert all(torch.isfinite(value) for value in losses.values())


def test_tau_is_measured_without_the_tail() -> None:
    """In a tail labels may be as late as they like, and a student learns that they may be so everywhere."""
    student, tail = make_model(1), 5
    student.encoder.tail_frames = tail
    batch = make_batch([0, 1, 2], student, make_model(2))
    batch.features_BFC, batch.lengths_B = F.pad(batch.features_BFC, (0, 0, 0, 4 * tail)), batch.lengths_B + 4 * tail
    kd, tracker = KdConfig(weight=1.0, shift="auto"), ShiftTracker(1)
    measured, after = (transducer_losses(student, batch, CONFIG, kd, None, tracker) for _ in range(2))
    whole = run_student(student, batch, CONFIG)
    short = replace(whole, frames_B=whole.frames_B - tail)
    for losses, of in ((measured, short), (after, whole)):
        expected = transducer_part(of, batch, CONFIG).sum() / 3
        torch.testing.assert_close(losses["loss_transducer"], expected)
    assert not torch.isclose(measured["loss_transducer"], after["loss_transducer"])
    assert "loss_kd" not in measured
    assert "loss_kd" in after


@pytest.mark.parametrize("name", ["one_best", "full_sum"])
def test_a_batch_without_targets_has_no_distillation_loss(name: str) -> None:
    student = make_model(1)
    batch = make_batch([0, 1], student, make_model(2))
    batch.targets = batch.teacher_frames_B = batch.teacher_totals_B = None
    losses = transducer_losses(student, batch, CONFIG, KdConfig(weight=1.0, **KDS[name]))
    assert set(losses) == {"loss", "loss_transducer", "loss_ctc"}


@pytest.mark.parametrize("name", ["one_best", "window"])
def test_an_utterance_without_targets_counts_as_0(name: str) -> None:
    student, kd = make_model(1), KdConfig(weight=1.0, **KDS[name])
    batch = make_batch([0, 1, 2], student, student)
    assert batch.targets is not None
    assert batch.teacher_frames_B is not None
    batch.targets = batch.targets.select(batch.targets.utterance_N != 1)
    batch.teacher_frames_B[1] = -1
    alone = [transducer_losses(student, make_batch([i], student, student), CONFIG, kd)["loss_kd"] for i in (0, 2)]
    losses = transducer_losses(student, batch, CONFIG, kd)
    torch.testing.assert_close(losses["loss_kd"], (alone[0] + alone[1]) / 3)


@pytest.mark.parametrize("name", KDS)
def test_no_labels_and_single_frames_are_finite(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, kd = make_model(1), make_model(2), KdConfig(weight=1.0, **KDS[name])
    early = CONFIG.model_copy(update={"fastemit": 0.1, "delay_penalty": 0.1})
    monkeypatch.setitem(globals(), "LENGTHS", [4, 1, 3])  # one encoder frame each
    cases: list[list[list[int]]] = [[[], [], []], [[3], [], [2, 2]]]
    for labels in cases:
        monkeypatch.setitem(globals(), "LABELS", labels)
        losses = transducer_losses(student, make_batch([0, 1, 2], student, teacher), early, kd, teacher)
        gradients = torch.autograd.grad(losses["loss"], list(student.parameters()), allow_unused=True)
        assert all(torch.isfinite(value) for value in losses.values())
        assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)


def test_full_sum_is_over_the_plain_lattice_whatever_the_transducer_loss_is() -> None:
    student, teacher, kd = make_model(1), make_model(2), KdConfig(weight=1.0, loss="full_sum")
    batch = make_batch([0, 1, 2], student, teacher)
    plain = transducer_losses(student, batch, CONFIG, kd)
    early = transducer_losses(student, batch, CONFIG.model_copy(update={"delay_penalty": 0.5}), kd)
    torch.testing.assert_close(early["loss_kd"], plain["loss_kd"])
    assert not torch.allclose(early["loss_transducer"], plain["loss_transducer"])


def test_early_emission_is_wired_to_the_transducer_loss() -> None:
    student, off = make_model(1), KdConfig()
    batch = make_batch([0, 1, 2], student, student)
    enc_BTE, frames_B = student.encode(batch.features_BFC, batch.lengths_B)
    pred_BUJ = student.project_predictor(student.predictor(batch.labels_BU))
    grid = student.grid(student.project_encoder(enc_BTE), pred_BUJ)
    for early in ({}, {"fastemit": 0.3}, {"delay_penalty": 0.2}):
        losses = transducer_losses(student, batch, CONFIG.model_copy(update=early), off)
        expected = transducer_loss(grid, batch.labels_BU, frames_B, batch.label_lengths_B, **early).sum() / 3
        torch.testing.assert_close(losses["loss_transducer"], expected)
        (ours,) = torch.autograd.grad(losses["loss_transducer"], student.joiner.output.bias)
        (theirs,) = torch.autograd.grad(expected, student.joiner.output.bias, retain_graph=True)
        torch.testing.assert_close(ours, theirs)


HAS_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # this CPU


@pytest.mark.skipif(not HAS_BF16, reason="this CPU does not compute in bf16")
@pytest.mark.parametrize("name", KDS)
def test_bf16_is_close_to_fp32(name: str) -> None:
    student, teacher, kd = make_model(1), make_model(2), KdConfig(weight=1.0, **KDS[name])
    batch = make_batch([0, 1, 2], student, teacher)
    wide = transducer_losses(student, batch, CONFIG, kd, teacher)
    narrow = transducer_losses(student, batch, CONFIG.model_copy(update={"precision": "bf16"}), kd, teacher)
    narrow["loss"].backward()
    for key, value in wide.items():
        assert narrow[key].dtype == torch.float32
        torch.testing.assert_close(narrow[key], value, rtol=3e-2, atol=3e-2)
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)


def test_bf16_is_refused_where_the_cpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(ValueError, match=r"training\.precision is bf16, which this CPU"):
        autocast("bf16", torch.device("cpu"), 512).__enter__()
    with autocast("fp32", torch.device("cpu"), 512):
        assert not torch.is_autocast_enabled("cpu")


def test_a_tracker_watches_the_student_before_it_is_distilled_with_what_was_measured() -> None:
    student, kd = make_model(1), KdConfig(weight=1.0, shift="auto")
    batch = make_batch([0, 1, 2], student, student)
    kd = kd.model_copy(update={"encoder_weight": 0.2})
    tracker = ShiftTracker(1)
    watched = transducer_losses(student, batch, CONFIG, kd, shift=tracker)
    undistilled = transducer_losses(student, batch, CONFIG, KdConfig())
    assert float(watched["kd_shift"]) == tracker.frames
    assert tracker.frames > 0, "the targets emit everything on frame 1, a random student does not"
    assert not {"loss_kd", "loss_encoder"} & set(watched)
    assert torch.equal(watched["loss"], undistilled["loss"])

    measured = transducer_losses(student, batch, CONFIG, kd, shift=tracker)
    fixed = transducer_losses(student, batch, CONFIG, kd, shift=tracker.frames)
    assert torch.equal(measured["loss"], fixed["loss"])
    assert {"loss_kd", "loss_encoder"} < set(measured)
    assert "kd_shift" not in measured


@pytest.mark.parametrize("name", [*KDS, "off"])
@pytest.mark.parametrize("loss", ["fused", "banded"])
def test_how_the_loss_is_joined_changes_nothing(loss: str, name: str) -> None:
    """Fused, and in a band that covers everything, as with all logits at once."""
    student, teacher = make_model(1), make_model(2)
    kd = KdConfig(weight=0.7, **KDS[name]) if name in KDS else KdConfig()
    batch = make_batch([0, 1, 2], student, teacher)
    early = CONFIG.model_copy(update={"fastemit": 0.2, "delay_penalty": 0.1})

    def losses_and_gradients(**changes: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        student.zero_grad()
        losses = transducer_losses(student, batch, early.model_copy(update=changes), kd, teacher, shift=1)
        losses["loss"].backward()
        gradients = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
        return {key: value.detach() for key, value in losses.items()}, gradients

    expected, gradients = losses_and_gradients(loss="full")
    found, same = losses_and_gradients(loss=loss, band_width=100)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(same, gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["one_best", "full_sum", "off"])
def test_the_pruned_loss_is_two_of_which_one_is_the_grids_where_nothing_is_pruned(name: str) -> None:
    student, teacher = make_model(1, "pruned"), make_model(2)
    batch = make_batch([0, 1, 2], student, teacher)
    kd = KdConfig(weight=0.7, **KDS[name]) if name in KDS else KdConfig()
    pruned = CONFIG.model_copy(update={"loss": "pruned", "band_width": 100, "updates": 100, "fastemit": 0.1})
    expected = transducer_losses(student, batch, pruned.model_copy(update={"loss": "fused"}), kd, teacher)
    found = transducer_losses(student, batch, pruned, kd, teacher)
    for key, value in expected.items():
        if key != "loss":
            torch.testing.assert_close(found[key], value)
    torch.testing.assert_close(found["loss"], expected["loss"] + 0.5 * found["loss_simple"])
    found["loss"].backward()
    assert student.simple is not None
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in student.simple.parameters())

    first, half = (transducer_losses(student, batch, pruned, kd, teacher, update=update) for update in (0, 5))
    rest = expected["loss"] - expected["loss_transducer"]
    simple, transducer = found["loss_simple"], found["loss_transducer"]
    torch.testing.assert_close(first["loss"], simple + 0.1 * transducer + rest)
    torch.testing.assert_close(half["loss"], 0.75 * simple + 0.55 * transducer + rest)
    narrow = transducer_losses(student, batch, pruned.model_copy(update={"band_width": 1}), kd, teacher)
    assert narrow["loss_transducer"] > transducer, "paths are left out"
    if name == "full_sum":
        torch.testing.assert_close(narrow["loss_kd"], found["loss_kd"])  # it is of all paths


def test_only_a_model_for_the_pruned_loss_has_a_simple_joiner() -> None:
    plain, pruned = make_model(1), make_model(1, "pruned")
    assert plain.simple is None
    assert pruned.num_parameters == plain.num_parameters, "decoding does not use it"
    assert set(pruned.state_dict()) - set(plain.state_dict()) == {
        f"simple.{side}_projection.{part}" for side in ("encoder", "predictor") for part in ("weight", "bias")
    }


def test_a_band_follows_the_shifted_path_where_there_is_one() -> None:
    student = make_model(1)
    batch = make_batch([0, 1, 2], student, student)
    assert batch.targets is not None
    assert batch.teacher_frames_B is not None
    narrow = CONFIG.model_copy(update={"loss": "banded", "band_width": 1, "band_margin": 0})
    state = run_student(student, batch, narrow)
    whole_B = transducer_part(state, batch, CONFIG)
    path_B = torch.stack(
        [
            -student_path_score(student, state, batch, b, shift=2)  # a band of one path is that path
            for b in range(3)
        ]
    )
    band = band_of(state, batch, narrow, 2)
    torch.testing.assert_close(transducer_part(state, batch, narrow, band), path_B, rtol=1e-4, atol=1e-4)
    batch.targets = batch.targets.select(batch.targets.utterance_N != 1)
    batch.teacher_frames_B[1] = -1
    banded_B = transducer_part(state, batch, narrow, band_of(state, batch, narrow, 2))
    torch.testing.assert_close(banded_B[1], whole_B[1])  # no path: the whole grid
    assert bool((banded_B > whole_B - 1e-4).all())
    tracker = ShiftTracker(1)
    assert band_of(state, batch, narrow, tracker) is None, "a band would hide where the student emits"
    batch.targets = None
    assert band_of(state, batch, narrow, 0) is None


def student_path_score(student: Transducer, state: Student, batch: Batch, b: int, shift: int) -> Tensor:
    """The log-prob of the batch's path that emits all labels of an utterance on frame 1 + shift."""
    logp = student.grid(state.enc_BTJ, state.pred_BUJ)[b].log_softmax(-1)
    frames, labels = int(state.frames_B[b]), batch.labels_BU[b, : int(batch.label_lengths_B[b])].tolist()
    on, last = 1 + shift, len(labels)
    blanks = logp[:on, 0, 0].sum() + logp[on:frames, last, 0].sum()
    return blanks + sum((logp[on, u, k] for u, k in enumerate(labels)), torch.tensor(0.0))


def test_the_scores_of_the_arcs_are_those_of_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdtrans.losses.fused.CHUNK", 7)  # less than an utterance
    student = make_model(1)
    batch = make_batch([0, 1, 2], student, student)
    state = run_student(student, batch, CONFIG)
    grid = (batch.labels_BU, state.frames_B, batch.label_lengths_B)
    blank, label = arc_scores(state.join, state.enc_BTJ, state.pred_BUJ, *grid)
    expected_blank, expected_label = node_log_probs(student.grid(state.enc_BTJ, state.pred_BUJ), batch.labels_BU)
    for b, (T, U) in enumerate(zip(state.frames_B.tolist(), batch.label_lengths_B.tolist(), strict=True)):
        torch.testing.assert_close(blank[b, :T, : U + 1], expected_blank[b, :T, : U + 1])
        torch.testing.assert_close(label[b, :T, :U], expected_label[b, :T, :U])
    assert not blank.requires_grad


def test_another_librarys_loss_is_the_same() -> None:
    pytest.importorskip("torchaudio.functional")
    student, off = make_model(1), KdConfig()
    batch = make_batch([0, 1, 2], student, student)
    full = CONFIG.model_copy(update={"loss": "full"})
    theirs = transducer_losses(student, batch, full.model_copy(update={"backend": "torchaudio"}), off)
    torch.testing.assert_close(theirs, transducer_losses(student, batch, full, off), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backend": "k2"}, "backend: k2 needs loss: full or pruned, not fused"),
        ({"backend": "k2", "loss": "full", "fastemit": 0.1}, "fastemit is 0.1, which backend: k2 has not"),
        ({"backend": "torchaudio", "loss": "full", "delay_penalty": 0.1}, "delay_penalty is 0.1, which backend"),
    ],
)
def test_what_a_backend_cannot_do_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainingConfig.model_validate(settings)
