"""Optimisers from the configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from kdtrans.config import TrainingConfig
from kdtrans.models.transducer import Transducer

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
        optimizers.append(torch.optim.AdamW(present, lr=config.lr, weight_decay=config.weight_decay))
    if present := [group for group in on_muon if group["params"]]:
        muon = torch.optim.Muon(present, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
        optimizers.append(muon)
    return optimizers
