"""All losses that are measured are the same loss; and what is said of them is measured as it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from kdtrans.bench import loss as bench_loss
from kdtrans.bench.loss import EVERY, K2_PYTHON, Measured, banded_loss_gap, measure, ratios, rows_of
from kdtrans.bench.loss_work import TINY, Size, gradient_error, make_work
from kdtrans.bench.measure import peak_growth_mb
from kdtrans.losses.backends import installed_backends
from kdtrans.stages import bench

ALL = {name: Measured([2.0, 1.0, 9.0], 10.0, 1e-7 if name == "native" else None) for name in EVERY}


def test_peers_compute_the_same_loss() -> None:
    ours, *others = (make_work(name, TINY)() for name in installed_backends())
    for other in others:
        torch.testing.assert_close(other, ours)


def test_joined_losses_have_the_same_gradient() -> None:
    """Bands of 5 nodes cover the tiny grid; the pruned loss's second pass has that gradient too."""
    unfused, *others = (make_work(name, TINY)() for name in ("unfused", "chunked", "banded", "native_pruned"))
    for other in others:
        torch.testing.assert_close(other, unfused)


def test_unknown_losses_are_refused() -> None:
    with pytest.raises(ValueError, match="no loss 'nothing'"):
        make_work("nothing", TINY)
    with pytest.raises(ValueError, match="no loss backend 'nothing'"):
        make_work("nothing_pruned", TINY)


@pytest.fixture
def python_without_k2(tmp_path: Path) -> str:
    """An interpreter whose every program ends like a loss that is not installed."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'raise ValueError(\"k2: not here\")'\n")
    python.chmod(0o755)
    return str(python)


def test_losses_are_measured_in_processes_and_missing_ones_say_why(
    monkeypatch: pytest.MonkeyPatch, python_without_k2: str
) -> None:
    monkeypatch.setenv(K2_PYTHON, python_without_k2)
    size = Size(1, 200, 40, 500)
    measured = measure(["native", "k2"], size, threads=1, repeats=3)
    assert measured["k2"] == Measured([], missing="k2: not here")
    native = measured["native"]
    assert len(native.seconds) == 3
    assert native.grad_error is not None
    assert native.grad_error < 1e-5
    logits_mb = 4 * size.B * size.T * (size.U + 1) * size.V / 1e6
    assert 0.9 * logits_mb < native.memory < 1.7 * logits_mb, "one gradient, and the lattice of a small vocabulary"

    first, *rows = rows_of(measured, {"size": "this"})
    assert first.parameters == {"size": "this", "missing": "k2", "why": "k2: not here"}
    assert all(row.parameters == {"size": "this", "missing": "k2"} for row in rows)


def test_ours_have_to_work(monkeypatch: pytest.MonkeyPatch, python_without_k2: str) -> None:
    monkeypatch.setattr(sys, "executable", python_without_k2)
    with pytest.raises(OSError, match=r"native_pruned at .* failed: k2: not here"):
        measure(["native_pruned"], TINY, threads=1)


def test_ratios_are_of_medians_and_missing_peers_are_left_out() -> None:
    measured = ALL | {"unfused": Measured([8.0], 40.0), "k2_pruned": Measured([4.0]), "k2": Measured([], missing="no")}
    found = ratios(measured)
    assert found["chunked_memory"] == 0.25
    assert found["chunked_time"] == 0.25
    assert found["banded_vs_pruned_time"] == 1.0, "the faster one of two peers"
    assert found["grad_error"] == 1e-7
    assert "native_vs_torchaudio_time" in found
    assert not any("_k2_" in key for key in found)
    gone = {name: Measured([], missing="no") for name in ("k2_pruned", "fast_rnnt_pruned")}
    assert "banded_vs_pruned_time" not in ratios(measured | gone)


def test_the_worst_of_sizes_and_threads_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure_none(names: list[str], size: Size, threads: int, repeats: int = 5) -> dict[str, Measured]:
        return {name: it for name, it in ALL.items() if name in names} | {
            "chunked": Measured([1.0 * threads * (size == bench_loss.SIZES["large"]) + 1.0], 1.0)
        }

    monkeypatch.setattr(bench_loss, "measure", measure_none)
    quick, full = bench_loss.bench_loss(True), bench_loss.bench_loss(False)
    assert quick.ratios["chunked_time"] == 0.5
    assert full.ratios["chunked_time"] == 1.5


def test_memory_is_that_of_the_work() -> None:
    assert 30 < peak_growth_mb(lambda: torch.ones(10_000_000)) < 60
    assert peak_growth_mb(lambda: None) < 5


def test_truth_on_small_material() -> None:
    assert gradient_error("native", TINY) < 1e-5
    assert 0 <= banded_loss_gap().median < 0.01


def test_the_stage_refuses_what_means_nothing(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="leave --results out"):
        bench.main("train", results=tmp_path)
