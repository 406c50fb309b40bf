"""All losses that are measured are the same loss; and what is said of them is measured as it says."""

from __future__ import annotations

import importlib

import pytest
import torch

from kdtrans.bench.loss import (
    JOINED,
    SIZES,
    _loss_of_logits,
    banded_loss_gap,
    gradient_error,
    in_a_fresh_process,
    installed_peers,
    make_work,
    measure,
    peak_growth_mb,
)
from kdtrans.stages import bench


def test_peers_compute_the_same_loss() -> None:
    B, T, U, V = SIZES["tiny"]
    batch = (torch.randn(B, T, U + 1, V), torch.randint(1, V, (B, U)), torch.full((B,), T), torch.tensor([U, U - 2]))
    for peer in installed_peers():
        torch.testing.assert_close(_loss_of_logits(peer)(*batch), _loss_of_logits("native")(*batch))


def test_joined_losses_have_the_same_gradient() -> None:
    """A band of 5 nodes covers the tiny grid."""
    unfused, *others = (make_work(name, "tiny")() for name in JOINED)
    for other in others:
        torch.testing.assert_close(other, unfused)


def test_ratios_are_of_medians_and_missing_peers_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdtrans.bench.loss.in_a_fresh_process", lambda name, size: {"unfused": 8.0}.get(name, 2.0))
    rows, ratios = measure("tiny", [], repeats=3)
    median = {row.name: row.median for row in rows}
    assert ratios["chunked_memory"] == 0.25
    assert ratios["chunked_time"] == median["chunked time"] / median["unfused time"]
    assert ratios["grad_error"] == median["native grad_error"] < 1e-5
    assert not any("_vs_torchaudio" in key for key in ratios)
    assert all(len(row.values) == 3 for row in rows if row.name.endswith("time"))


def test_missing_peers_are_found_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> None:
        if name != "k2":
            raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    assert installed_peers() == ["k2"]


def test_memory_is_that_of_the_work() -> None:
    assert 30 < peak_growth_mb(lambda: torch.ones(10_000_000)) < 60
    assert peak_growth_mb(lambda: None) < 5
    assert in_a_fresh_process("native", "tiny") < 20
    with pytest.raises(OSError, match="nothing at size tiny failed: KeyError"):
        in_a_fresh_process("nothing", "tiny")


def test_truth_on_small_material() -> None:
    assert gradient_error("native", "tiny") < 1e-5
    assert 0 <= banded_loss_gap().median < 0.01


def test_the_stage_refuses_what_means_nothing(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="leave --results out"):
        bench.main("loss", results=tmp_path)
