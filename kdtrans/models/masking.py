"""SpecAugment's time and channel masks (Park et al. 2019, arXiv 1904.08779), without its time warp.

Time never changes here: a warp would move the frames that the teacher's path is written in.
Shapes: B utterances, F frames, C channels, M masks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdtrans.config import MaskingConfig
from kdtrans.models.padding import real_frames

SECONDS_PER_SET = 4.0


def mask(features_BFC: Tensor, lengths_B: Tensor, config: MaskingConfig, frame_shift_ms: float) -> Tensor:
    """Mask random stretches of time and bands of channels; what is masked becomes the utterance's mean of the channel.

    The mean keeps a masked log-mel or hidden vector inside the range that the network knows, whatever its scale.
    Randomness comes from torch's global CPU generator on every device, so that a seed reproduces a run.

    Args:
        features_BFC: (B, F, C), zero beyond the lengths.
        lengths_B: (B,) frames.
        config: how many masks, and how wide. `time_masks` are drawn for each started 4 s of an utterance.
        frame_shift_ms: shift of the frames, ms.

    Returns:
        (B, F, C), a new tensor; still zero beyond the lengths.
    """
    lengths = lengths_B.cpu()
    size_F, size_C = features_BFC.shape[1:]
    seconds_B = lengths * frame_shift_ms / 1000
    time_masks_B = config.time_masks * torch.ceil(seconds_B / SECONDS_PER_SET).long()
    time_BF = _stretches(time_masks_B, lengths, int(config.time_width_ms // frame_shift_ms), size_F)
    channel_masks_B = torch.full_like(lengths, config.channel_masks)
    channels_B = torch.full_like(lengths, size_C)
    channel_BC = _stretches(channel_masks_B, channels_B, int(config.channel_width * size_C), size_C)

    real_BF = real_frames(lengths, size_F)
    masked_BFC = (time_BF[:, :, None] | channel_BC[:, None, :]) & real_BF[:, :, None]
    mean_BC = features_BFC.detach().sum(1) / lengths_B[:, None].clamp(min=1)
    return torch.where(masked_BFC.to(features_BFC.device), mean_BC[:, None].to(features_BFC.dtype), features_BFC)


def _stretches(masks_B: Tensor, extent_B: Tensor, widest: int, size: int) -> Tensor:
    """Union (B, size) of masks_B random stretches, each 0..widest wide and inside 0..extent_B."""
    most = int(masks_B.max())
    width_BM = (torch.rand(len(masks_B), most) * (widest + 1)).long()
    width_BM = torch.minimum(width_BM, extent_B[:, None])
    start_BM = (torch.rand(len(masks_B), most) * (extent_B[:, None] - width_BM + 1)).long()
    width_BM = width_BM * (torch.arange(most) < masks_B[:, None])
    position = torch.arange(size)
    inside_BMF = (position >= start_BM[:, :, None]) & (position < (start_BM + width_BM)[:, :, None])
    return inside_BMF.any(1)
