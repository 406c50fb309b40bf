"""Conformer encoder (Gulati et al. 2020, arXiv 2005.08100) with rotary positions (Li et al. 2021, arXiv 2107.05907).

Convolution modules use layer norm, not batch norm, and everything is masked: padding never changes a result.

Shapes: B utterances, F feature frames (10 ms), T encoder frames (40 ms), C mel channels, D width, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtrans.config import ConformerConfig, MaskingConfig
from kdtrans.models.features import log_mel
from kdtrans.models.masking import mask
from kdtrans.models.transducer import Encoder

MEL_CHANNELS = 80
FEATURE_SHIFT_MS = 10.0


class ConformerEncoder(Encoder):
    """Log-mel features -> 4x convolutional subsampling -> Conformer blocks."""

    def __init__(self, config: ConformerConfig, masking: MaskingConfig) -> None:
        super().__init__()
        self.dim, self.masking = config.dim, masking
        self.subsampling = Subsampling(config.subsampling_channels, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(ConformerBlock(config) for _ in range(config.layers))
        self.head_dim = config.dim // config.heads

    def extract(self, waveform_S: Tensor) -> Tensor:
        """Log-mel features (F, C) of one utterance at 16 kHz; F = round(S / 160)."""
        return log_mel(waveform_S, MEL_CHANNELS)

    def forward(self, features_BFC: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Padded features (B, F, C) and lengths -> (B, T, D) and lengths; T = ceil(ceil(F / 2) / 2)."""
        if self.training:
            features_BFC = mask(features_BFC, lengths_B, self.masking, FEATURE_SHIFT_MS)
        x_BTD, lengths_B = self.subsampling(features_BFC, lengths_B)
        x_BTD = self.dropout(x_BTD)
        real_BT = real_frames(lengths_B, x_BTD.shape[1])
        rotation = rotary_angles(x_BTD.shape[1], self.head_dim, x_BTD.device)
        for block in self.blocks:
            x_BTD = block(x_BTD, real_BT, rotation)
        return x_BTD * real_BT[..., None], lengths_B


class Subsampling(nn.Module):
    """Two 3 x 3 convolutions of stride 2, padded so that output frame t is centred on input frame 4 t."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.output = nn.Linear(channels * math.ceil(MEL_CHANNELS / 4), dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, features_BFC: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F, C) and lengths -> (B, T, D) and lengths."""
        x = features_BFC[:, None] * real_frames(lengths_B, features_BFC.shape[1])[:, None, :, None]
        for conv in (self.first, self.second):
            x = F.silu(conv(x))
            lengths_B = (lengths_B + 1) // 2
            x = x * real_frames(lengths_B, x.shape[2])[:, None, :, None]
        return self.norm(self.output(x.transpose(1, 2).flatten(2))), lengths_B


class ConformerBlock(nn.Module):
    """Half feed-forward, self-attention, convolution, half feed-forward, norm."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.feed_forward_in = feed_forward(config)
        self.attention = RotaryAttention(config)
        self.convolution = ConvolutionModule(config)
        self.feed_forward_out = feed_forward(config)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, x_BTD: Tensor, real_BT: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        x_BTD = x_BTD + 0.5 * self.feed_forward_in(x_BTD)
        x_BTD = x_BTD + self.attention(x_BTD, real_BT, rotation)
        x_BTD = x_BTD + self.convolution(x_BTD, real_BT)
        x_BTD = x_BTD + 0.5 * self.feed_forward_out(x_BTD)
        return self.norm(x_BTD)


def feed_forward(config: ConformerConfig) -> nn.Sequential:
    """LayerNorm, expansion, SiLU, contraction; dropout on the narrow side only, where random numbers are cheap."""
    return nn.Sequential(
        nn.LayerNorm(config.dim),
        nn.Linear(config.dim, config.ffn_dim),
        nn.SiLU(),
        nn.Linear(config.ffn_dim, config.dim),
        nn.Dropout(config.dropout),
    )


class RotaryAttention(nn.Module):
    """Self-attention whose queries and keys are rotated by their frame, so that scores see relative positions only."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.dim)
        self.query_key_value = nn.Linear(config.dim, 3 * config.dim)
        self.output = nn.Linear(config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, real_BT: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.query_key_value(self.norm(x_BTD)).chunk(3, 2)
        )
        context = F.scaled_dot_product_attention(
            rotate(query, rotation), rotate(key, rotation), value, attn_mask=real_BT[:, None, None]
        )
        return self.dropout(self.output(context.transpose(1, 2).flatten(2)))


class ConvolutionModule(nn.Module):
    """Gated pointwise, depthwise over time, norm, SiLU, pointwise."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.gate = nn.Linear(config.dim, 2 * config.dim)
        self.depthwise = nn.Conv1d(
            config.dim, config.dim, config.conv_kernel, padding=config.conv_kernel // 2, groups=config.dim
        )
        self.depthwise_norm = nn.LayerNorm(config.dim)
        self.output = nn.Linear(config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, real_BT: Tensor) -> Tensor:
        x_BTD = F.glu(self.gate(self.norm(x_BTD)), dim=2) * real_BT[..., None]
        x_BTD = self.depthwise(x_BTD.transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.output(F.silu(self.depthwise_norm(x_BTD))))


def real_frames(lengths_B: Tensor, longest: int) -> Tensor:
    """True (B, longest) where a frame belongs to its utterance."""
    return torch.arange(longest, device=lengths_B.device) < lengths_B[:, None]


def rotary_angles(frames: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, head_dim / 2) of the rotation of each frame and channel pair."""
    frequency = 10000.0 ** (-torch.arange(0, head_dim, 2, device=device) / head_dim)
    angle = torch.arange(frames, device=device)[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x_BHTd: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate channel pairs (first half, second half) by the frame's angle (Su et al. 2021, arXiv 2104.09864)."""
    first, second = x_BHTd.chunk(2, -1)
    cosine, sine = (part.to(x_BHTd.dtype) for part in rotation)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)
