"""Optimisers from the configuration.

Shapes: M matrices of one shape, R rows, C columns, R <= C.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from kdtrans.config import TrainingConfig
from kdtrans.models.transducer import Transducer
from kdtrans.training.precision import product_dtype

ParameterGroup = dict[str, Any]


def build_optimizers(model: Transducer, groups: list[ParameterGroup], config: TrainingConfig) -> list[Optimizer]:
    """AdamW for everything, or Muon (Jordan et al. 2024) for the encoder's matrices and AdamW for the rest.

    Muon orthogonalises the momentum of a weight matrix. It is scaled to AdamW's root mean square (arXiv 2502.16982), so
    that one learning rate serves both. Training from scratch it needs about half the updates of AdamW.

    Args:
        model: what is trained.
        groups: `params`, and optionally `lr_scale` and `freeze_updates`.
        config: optimizer, learning rate, weight decay.
    """
    matrices = {id(p) for p in model.encoder.parameters() if p.ndim == 2} if config.optimizer == "muon" else set()
    on_muon = [{**g, "params": [p for p in g["params"] if id(p) in matrices]} for g in groups]
    on_adamw = [{**g, "params": [p for p in g["params"] if id(p) not in matrices]} for g in groups]
    optimizers: list[Optimizer] = []
    if present := [group for group in on_adamw if group["params"]]:  # empty groups are refused
        optimizers.append(torch.optim.AdamW(present, lr=config.lr, weight_decay=config.weight_decay, fused=True))
    if present := [group for group in on_muon if group["params"]]:
        muon = BatchedMuon(present, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
        optimizers.append(muon)
    return optimizers


class BatchedMuon(torch.optim.Muon):
    """torch.optim.Muon whose matrices of one shape are orthogonalised together.

    The same update up to rounding, in a third of the time where a small model's matrices are many: torch's takes
    one matrix after the other, and on a CPU that was a third of a student's training step.
    Always with Nesterov momentum and AdamW's root mean square: `nesterov` and `adjust_lr_fn` choose nothing else here.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.grad is not None]
            if not matrices:
                continue
            gradients: list[Tensor] = [p.grad for p in matrices]
            for matrix, gradient in zip(matrices, gradients, strict=True):
                if "momentum_buffer" not in self.state[matrix]:
                    self.state[matrix]["momentum_buffer"] = torch.zeros_like(gradient)
            momenta = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
            torch._foreach_lerp_(momenta, gradients, 1.0 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's look ahead
            directions = orthogonalised(list(updates), group["ns_coefficients"], group["ns_steps"], group["eps"])
            # To the root mean square of AdamW's updates.
            scales = [-group["lr"] * 0.2 * max(direction.shape) ** 0.5 for direction in directions]
            torch._foreach_mul_(matrices, 1.0 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(matrices, torch._foreach_mul(directions, scales))


def orthogonalised(
    matrices: list[Tensor], coefficients: tuple[float, float, float], iterations: int, smallest: float
) -> list[Tensor]:
    """The nearest (semi-)orthogonal matrix of each, roughly, by Newton-Schulz iterations (Jordan et al. 2024).

    Args:
        matrices: any shapes.
        coefficients: of the quintic polynomial that the singular values are put through.
        iterations: how often.
        smallest: norms below this are not divided by.

    Returns:
        Matrices of the same shapes and types, as exact as what they were multiplied in (`product_dtype`).
    """
    a, b, c = coefficients
    same_shape: dict[torch.Size, list[int]] = defaultdict(list)
    wide = [matrix.T if matrix.shape[0] > matrix.shape[1] else matrix for matrix in matrices]
    for place, matrix in enumerate(wide):
        same_shape[matrix.shape].append(place)
    results = list(matrices)
    for places in same_shape.values():
        x_MRC = torch.stack([wide[place] for place in places])
        x_MRC = x_MRC.to(product_dtype(x_MRC.device))
        x_MRC /= x_MRC.flatten(1).norm(dim=1).clamp(min=smallest)[:, None, None]
        for _ in range(iterations):
            gram_MRR = x_MRC @ x_MRC.mT
            x_MRC = torch.baddbmm(x_MRC, torch.baddbmm(gram_MRR, gram_MRR, gram_MRR, beta=b, alpha=c), x_MRC, beta=a)
        x_MRC = x_MRC.to(matrices[places[0]].dtype)
        x_MCR = x_MRC.mT.contiguous()  # what lies as its matrix does is added to it in one launch with the others
        for place, x_RC, x_CR in zip(places, x_MRC, x_MCR, strict=True):
            results[place] = x_CR if matrices[place].shape[0] > matrices[place].shape[1] else x_RC
    return results
