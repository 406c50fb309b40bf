"""Learning rate and running average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdtrans.config import TrainingConfig


def tri_stage(step: int, config: TrainingConfig) -> float:
    """Multiple of the peak learning rate at an update: linear warm-up, hold, exponential decay (as in wav2vec 2.0)."""
    warm, hold, _ = (phase * config.updates for phase in config.phases)
    if step < warm:
        return (step + 1) / warm
    if step < warm + hold:
        return 1.0
    progress = (step - warm - hold) / max(config.updates - warm - hold, 1.0)
    return float(config.final_lr_scale ** min(progress, 1.0))


class WeightAverage:
    """Exponential moving average of a model's weights; short at first, so that it is useful from the start."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from an average that was kept; it is copied to the device of the model that this one was made for."""
        for name, value in state.items():
            self.state[name].copy_(value)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after update `step` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged: list[Tensor] = []
        current: list[Tensor] = []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                averaged.append(self.state[name])
                current.append(value)
        torch._foreach_lerp_(averaged, current, 1.0 - decay)
