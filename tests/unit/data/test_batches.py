from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import MonoCut, Recording

from kdtrans.data.batches import (
    BatchOrder,
    Example,
    FeatureCache,
    Labelling,
    Supervision,
    TrainingBatches,
    collate,
    draw,
    known,
    load_features,
    pack,
)
from kdtrans.losses.distillation import NodeTargets
from kdtrans.models.features import log_mel

seconds = st.lists(st.floats(0.3, 15.0), min_size=1, max_size=60)


@settings(deadline=None)
@given(seconds, st.floats(1.0, 60.0), st.integers(0, 3))
def test_an_epoch_holds_everyone_once_within_the_limit(durations: list[float], limit: float, epoch: int) -> None:
    order = BatchOrder(durations, [True] * len(durations), limit, seed=epoch)
    batches = order.epoch(epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(durations)))
    for batch in batches:
        assert len(batch) == 1 or max(durations[i] for i in batch) * len(batch) <= limit


def test_order_is_a_function_of_seed_and_epoch() -> None:
    durations = [1.0 + i % 7 for i in range(50)]
    one, two = (BatchOrder(durations, [True] * 50, 20.0, seed=3) for _ in range(2))
    assert one.epoch(5) == two.epoch(5)
    assert one.epoch(5) != one.epoch(6)
    assert one.epoch(0) != BatchOrder(durations, [True] * 50, 20.0, seed=4).epoch(0)


@pytest.mark.parametrize("consumed", [0, 1, 7, 23, 60])
def test_a_stream_resumes_where_it_was_left(consumed: int) -> None:
    durations = [1.0 + i % 7 for i in range(50)]
    whole = list(islice(BatchOrder(durations, [True] * 50, 20.0).stream(), 90))
    position = whole[consumed - 1][0] if consumed else (0, 0)
    resumed = list(islice(BatchOrder(durations, [True] * 50, 20.0).stream(position), 90 - consumed))
    assert resumed == whole[consumed:]


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0, 12.0])
def test_unlabelled_ratio_holds_and_nobody_is_forgotten(ratio: float) -> None:
    durations = [2.0] * 40 + [3.0] * 100
    labelled = [True] * 40 + [False] * 100
    members = [i for batch in BatchOrder(durations, labelled, 30.0, unlabelled_ratio=ratio).epoch(0) for i in batch]
    assert set(members) == set(range(140))
    unlabelled_s = sum(durations[i] for i in members if not labelled[i])
    labelled_s = sum(durations[i] for i in members if labelled[i])
    assert unlabelled_s / labelled_s == pytest.approx(ratio, rel=0.05)


def test_visits_hold_on_average_and_nobody_is_forgotten() -> None:
    order = BatchOrder([2.0] * 4, [True] * 4, 30.0, visits=[1.0, 1.25, 2.0, 4.5])
    times = np.zeros(4)
    for epoch in range(400):
        seen = np.bincount([i for batch in order.epoch(epoch) for i in batch], minlength=4)
        assert (seen >= 1).all()
        times += seen / 400
    np.testing.assert_allclose(times, [1.0, 1.25, 2.0, 4.5], atol=0.1)


def test_unlabelled_ratio_holds_where_some_are_visited_more_often() -> None:
    labelled, visits = [True] * 40 + [False] * 100, [5.0] * 20 + [1.0] * 120
    order = BatchOrder([2.0] * 140, labelled, 30.0, unlabelled_ratio=1.0, visits=visits)
    seen = np.bincount([i for batch in order.epoch(0) for i in batch], minlength=140)
    assert seen.min() >= 1
    assert seen[40:].sum() / seen[:40].sum() == pytest.approx(1.0, rel=0.05)


def test_pack_keeps_the_order() -> None:
    assert pack([3, 1, 0, 2], [4.0, 3.0, 9.0, 1.0], 8.0) == [[3, 1], [0], [2]]


def cut_of(folder: Path, utt_id: str, samples: int) -> MonoCut:
    path = folder / f"{utt_id}.wav"
    soundfile.write(path, np.random.default_rng(samples).normal(scale=0.1, size=samples), 16000)
    return MonoCut(utt_id, 0.0, samples / 16000, 0, recording=Recording.from_file(path))


def test_loader_processes_change_no_batch(tmp_path: Path) -> None:
    cuts = [cut_of(tmp_path, f"u{i}", 1600 + 160 * i) for i in range(6)]
    examples = [Example(cut, True, (known(Supervision((1, 2))),)) for cut in cuts]
    order = BatchOrder([cut.duration for cut in cuts], [True] * 6, 0.4)
    streams = [
        TrainingBatches(examples, order, FeatureCache(lambda x: log_mel(x, 80), 1.0), workers).stream((0, 1))
        for workers in (0, 2)
    ]
    for here, there in islice(zip(*streams, strict=True), 8):
        assert (here.utt_ids, here.position) == (there.utt_ids, there.position)
        torch.testing.assert_close(here.features_BFC, there.features_BFC)


def test_audio_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    short = cut_of(tmp_path, "short", 159)
    with pytest.raises(ValueError, match=r"utterance short: 159 samples of audio, features need 160"):
        load_features(short, lambda x: log_mel(x, 80))
    long = MonoCut("long", 0.0, 2622.0, 0, recording=short.recording)
    with pytest.raises(ValueError, match=r"utterance long lasts 2622 s, .* at most 2621 s"):
        load_features(long, lambda x: log_mel(x, 80))


# ---------------------------------------------------------------------------------------------------- n-best labellings
def labelling_of(label: int, weight: float, total_logp: float | None = None) -> Labelling:
    return Labelling(1, lambda: Supervision((label,), total_logp=total_logp), weight)


def several(tmp_path: Path) -> tuple[list[Example], BatchOrder]:
    """Six utterances with three labellings each, told apart by their labels."""
    cuts = [cut_of(tmp_path, f"u{i}", 1600 + 160 * i) for i in range(6)]
    weights = (0.6, 0.3, 0.1)
    labellings = [tuple(labelling_of(10 * i + r, w, -float(r)) for r, w in enumerate(weights)) for i in range(6)]
    examples = [Example(cut, False, ranked) for cut, ranked in zip(cuts, labellings, strict=True)]
    return examples, BatchOrder([cut.duration for cut in cuts], [False] * 6, 0.4)


def batches_of(examples: list[Example], order: BatchOrder, workers: int = 0) -> TrainingBatches:
    return TrainingBatches(examples, order, FeatureCache(lambda x: log_mel(x, 80), 1.0), workers)


def test_draws_follow_the_weights() -> None:
    labellings = tuple(labelling_of(r, w) for r, w in enumerate((0.6, 0.0, 0.3, 0.1)))
    random = np.random.default_rng(0)
    drawn = np.bincount([draw(labellings, random).read().labels[0] for _ in range(8000)], minlength=4) / 8000
    assert drawn == pytest.approx([0.6, 0.0, 0.3, 0.1], abs=0.02)


@pytest.mark.parametrize("workers", [0, 2])
def test_draws_are_the_same_after_a_resume_and_in_loader_processes(tmp_path: Path, workers: int) -> None:
    examples, order = several(tmp_path)
    whole = list(islice(batches_of(examples, order).stream((0, 0)), 40))
    assert len({tuple(batch.labels_BU.flatten().tolist()) for batch in whole}) > 10  # visits differ
    resumed = islice(batches_of(examples, order, workers).stream(whole[14].position), 25)
    for before, after in zip(whole[15:], resumed, strict=True):
        assert before.position == after.position
        assert torch.equal(before.labels_BU, after.labels_BU)
        torch.testing.assert_close(before.teacher_totals_B, after.teacher_totals_B)


def test_only_what_is_drawn_is_read(tmp_path: Path) -> None:
    """Once a visit: a target is a row group to decode."""
    cut, visits = cut_of(tmp_path, "u", 1600), []

    def labelling(rank: int) -> Labelling:
        return Labelling(1, lambda: visits.append(rank) or Supervision((rank,)), (0.5, 0.5)[rank])  # type: ignore[func-returns-value]

    stream = batches_of([Example(cut, False, (labelling(0), labelling(1)))], BatchOrder([0.1], [False], 1.0)).stream(
        (0, 0)
    )
    seen = [int(batch.labels_BU[0, 0]) for batch in islice(stream, 20)]
    assert visits[:20] == seen
    assert set(seen) == {0, 1}


def test_a_batch_knows_the_teachers_totals_frames_and_output(tmp_path: Path) -> None:
    cuts = [cut_of(tmp_path, f"u{i}", 1600 * (i + 1)) for i in range(2)]
    outputs = {"u0": torch.ones(2, 3).half(), "u1": torch.ones(4, 3).half()}
    read = [Supervision((1, 2, 3), total_logp=-4.5), Supervision((1,))]
    batch = collate(cuts, read, lambda cut: torch.zeros(8, 2), lambda cut: outputs[cut.id])
    assert batch.teacher_BTJ is not None
    assert batch.teacher_frames_B is not None
    assert batch.teacher_BTJ.shape == (2, 4, 3)
    assert batch.teacher_BTJ.dtype == torch.float16
    assert batch.teacher_frames_B.tolist() == [2, 4]
    torch.testing.assert_close(batch.teacher_totals_B, torch.tensor([-4.5, torch.nan]), equal_nan=True)
    plain = collate(cuts, [Supervision((1,))] * 2, lambda cut: torch.zeros(8, 2))
    assert (plain.targets, plain.teacher_totals_B, plain.teacher_BTJ) == (None, None, None)
    assert plain.teacher_frames_B is not None
    assert plain.teacher_frames_B.tolist() == [-1, -1]


# ------------------------------------------------------------------------------------------------------- pinned memory
def test_pinned_batches_are_pinned_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned memory needs CUDA: here a number tells the tensors that were to be moved to it."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: torch.full_like(tensor, 7))
    node = torch.tensor([0, 1])
    targets = NodeTargets(node, node, node, torch.tensor([[0], [1]]), torch.tensor([[-0.1], [-0.2]]))
    cuts = [cut_of(tmp_path, "u", 1600)]
    batch = collate(
        cuts, [Supervision((1,), targets, -1.0)], lambda cut: torch.ones(10, 80), lambda cut: torch.ones(3, 4)
    )
    tensors = {name for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert {"features_BFC", "labels_BU", "teacher_totals_B", "teacher_BTJ", "teacher_frames_B"} <= tensors
    pinned = batch.pin_memory()
    assert pinned.targets is not None
    parts = [*(getattr(pinned, name) for name in tensors), *vars(pinned.targets).values()]
    assert all(bool((part == 7).all()) for part in parts)
    assert (pinned.utt_ids, pinned.seconds) == (["u"], 0.1)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_for_a_gpu_come_from_pinned_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr("kdtrans.data.batches.DataLoader", lambda data, **options: given.update(options) or [])
    batches_of(*several(tmp_path)).stream((0, 0), torch.device(device))
    assert given["pin_memory"] == (device == "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_on_a_gpu_the_loader_pins_and_the_batch_arrives(tmp_path: Path, workers: int) -> None:
    device = torch.device("cuda")
    examples, order = several(tmp_path)
    there = next(batches_of(examples, order, workers).stream((0, 0), device))
    assert there.features_BFC.is_pinned()
    here = next(batches_of(examples, order).stream((0, 0)))
    torch.testing.assert_close(there.to(device).features_BFC.cpu(), here.features_BFC)
