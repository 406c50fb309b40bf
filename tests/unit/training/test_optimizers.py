"""The batched Muon against torch's, matrix by matrix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdtrans.training import optimizers
from kdtrans.training.optimizers import BatchedMuon, orthogonalised

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 16, bias=False), nn.Linear(16, 24, bias=False), nn.Linear(24, 16, bias=False))


def trained(optimizer_type: type[torch.optim.Muon], updates: int) -> list[torch.Tensor]:
    model = network()
    optimizer = optimizer_type(model.parameters(), lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    torch.manual_seed(1)
    for _ in range(updates):
        optimizer.zero_grad()
        model(torch.randn(8, 24)).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def test_matrices_of_one_shape_together_move_as_torch_moves_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "product_dtype", lambda device: torch.bfloat16)  # as torch's, whatever the CPU
    started = [p.detach() for p in network().parameters()]
    for mine, torchs, start in zip(trained(BatchedMuon, 5), trained(torch.optim.Muon, 5), started, strict=True):
        moved = (torchs - start).norm()
        assert moved > 0.1
        assert (mine - torchs).norm() < 0.02 * moved  # bf16


def test_a_matrix_without_gradient_stays() -> None:
    model = network()
    model[1].requires_grad_(False)
    weight = list(model.parameters())[1]
    before = weight.detach().clone()
    optimizer = BatchedMuon(list(model.parameters()), lr=0.02, adjust_lr_fn="match_rms_adamw")
    model(torch.randn(8, 24)).square().mean().backward()
    optimizer.step()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("knows_bf16", [True, False])
def test_singular_values_come_near_one_and_the_shape_stays(monkeypatch: pytest.MonkeyPatch, knows_bf16: bool) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: knows_bf16)
    matrices = [torch.randn(4, 9), torch.randn(9, 4), torch.randn(4, 9), torch.zeros(3, 3)]
    for matrix, result in zip(matrices, orthogonalised(matrices, COEFFICIENTS, 5, 1e-7), strict=True):
        assert result.shape == matrix.shape
        assert result.dtype == matrix.dtype
        if matrix.any():
            assert torch.equal(result, result.bfloat16().float()) == knows_bf16
        values = torch.linalg.svdvals(result)
        assert ((values > 0.5) & (values < 1.4)).all() or not matrix.any()
