"""What the training benchmark measures is the training step, and its parts add up to it."""

from __future__ import annotations

import pytest
import torch

from kdtrans.bench import train
from kdtrans.bench.train import AN4, KD, NO_KD, Job, bench_train, distillation, material, measure_parts
from kdtrans.training.losses import transducer_losses


def test_a_step_in_parts_is_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("tiny", "fp32")
    found: list[list[torch.Tensor | None]] = []

    def update() -> None:
        found.append([None if p.grad is None else p.grad.clone() for p in job.model.parameters()])
        job.model.zero_grad()

    monkeypatch.setattr(job, "update", update)
    job.step(KD)
    job.parts()
    whole, parts = found
    assert sum(gradient is not None for gradient in whole) > 10
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_gathered_and_indexed_distillation_are_the_same() -> None:
    for ours, theirs in zip(distillation("tiny", False)(), distillation("tiny", True)(), strict=True):  # type: ignore[call-overload]
        torch.testing.assert_close(ours, theirs)


def test_the_overhead_is_of_the_step_without_distillation() -> None:
    *parts, step, overhead = measure_parts("tiny", threads=1, repeats=3)
    seconds = {row.name.removeprefix("step: "): row.values for row in parts}
    for turn in range(3):
        kd = seconds["KD"][turn] + seconds["KD backward"][turn]
        assert step.values[turn] == pytest.approx(sum(values[turn] for values in seconds.values()))
        assert overhead.values[turn] == pytest.approx(step.values[turn] / (step.values[turn] - kd))
    assert set(seconds) >= {"data", "encoder", "joiner and loss", "KD", "backward", "optimiser"}


def test_real_paths_are_those_of_the_sample() -> None:
    supervisions, vocab_size, _ = material(AN4)
    assert len(supervisions) == train.AN4_UTTERANCES
    for one in supervisions:
        assert one.targets is not None
        assert int(one.targets.u_N.max()) == len(one.labels)
        assert int(one.targets.ids_NK.max()) < vocab_size


def test_a_ratio_is_that_of_the_size_where_it_is_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(train.SIZES, "small", train.SIZES["tiny"])
    monkeypatch.setitem(train.SIZES, "reference", train.SIZES["tiny"])
    megabytes = {"kd step": 2.0, "plain step": 4.0, "kd gathered": 2.0, "kd indexed": 4.0}
    monkeypatch.setattr(train, "in_fresh_processes", lambda names, size: [megabytes[name] for name in names])
    bench = bench_train(quick=True)
    assert bench.ratios.keys() == train.LIMITS.keys()
    assert bench.ratios["kd_memory_overhead"] == bench.ratios["gathered_vs_indexed_memory"] == 0.5
    overheads = [row.median for row in bench.rows if row.name == "kd_time_overhead"]
    assert bench.ratios["kd_time_overhead"] == max(overheads)
    assert len(overheads) == 2, "one and two threads"


def test_a_step_without_distillation_has_none() -> None:
    job = Job("tiny")
    assert "loss_kd" not in transducer_losses(job.model, job.batch, job.training, NO_KD)
