"""Vocal tract length perturbation (Jaitly and Hinton 2013): one speaker sounds like many, and no frame moves.

Shapes: B utterances, F frames, C mel channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdtrans.models.features import HIGHEST_HZ, LOWEST_HZ

KNEE_HZ = 4800.0  # formants are below; above it a straight line leads to the highest frequency, which stays


def warp_frequency(features_BFC: Tensor, widest: float) -> Tensor:
    """Stretch or squeeze each utterance's frequency axis by a random factor in 1 - widest .. 1 + widest.

    Time stays, so that the targets of the utterance as it was recorded remain its targets.
    Randomness comes from torch's global CPU generator on every device, so that a seed reproduces a run.

    Args:
        features_BFC: log-mel features, (B, F, C), C >= 2; zero frames of padding stay zero.
        widest: largest change of the factor from 1, below 1.

    Returns:
        (B, F, C), interpolated between channels.
    """
    factor_B = 1.0 + widest * (2.0 * torch.rand(len(features_BFC)) - 1.0)
    source_BC = warped_channels(factor_B, features_BFC.shape[2])
    below_BC = source_BC.long().clamp(max=features_BFC.shape[2] - 2)
    share_B1C = (source_BC - below_BC)[:, None].to(features_BFC)
    index_BFC = below_BC[:, None].to(features_BFC.device).expand_as(features_BFC)
    return torch.lerp(features_BFC.gather(2, index_BFC), features_BFC.gather(2, index_BFC + 1), share_B1C)


def warped_channels(factor_B: Tensor, channels: int) -> Tensor:
    """Where, counted in channels (B, C), each channel finds its energy after its frequencies were divided by factor_B.

    A channel at f reads from factor f up to the knee, and beyond it from the line that leads to the highest frequency.
    """
    lowest, highest = mel(torch.tensor([LOWEST_HZ, HIGHEST_HZ]))
    mel_per_channel = (highest - lowest) / (channels + 1)
    hz_C = 700.0 * torch.expm1((lowest + mel_per_channel * torch.arange(1, channels + 1)) / 1127.0)
    knee_B1 = (KNEE_HZ / factor_B.clamp(min=1.0))[:, None]  # so that what is read stays at or below KNEE_HZ
    top_B1 = factor_B[:, None] * knee_B1
    beyond_BC = top_B1 + (hz_C - knee_B1) * (HIGHEST_HZ - top_B1) / (HIGHEST_HZ - knee_B1)
    source_hz_BC = torch.where(hz_C <= knee_B1, factor_B[:, None] * hz_C, beyond_BC)
    return ((mel(source_hz_BC) - lowest) / mel_per_channel - 1.0).clamp(0.0, channels - 1.0)


def mel(hz: Tensor) -> Tensor:
    """Kaldi's mel scale."""
    return 1127.0 * torch.log1p(hz / 700.0)
