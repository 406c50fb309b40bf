"""Conformer encoder (Gulati et al. 2020, arXiv 2005.08100) with rotary positions (Li et al. 2021, arXiv 2107.05907).

Convolution modules use layer norm, not batch norm, and everything is masked: padding never changes a result.

A streaming encoder has causal convolutions and attends within chunks and a limited left context (Chen et al. 2021,
arXiv 2010.11395), in chunks of varying size while it is trained (Zhang et al. 2020, arXiv 2012.05481). It runs over
whole utterances with a mask (`forward`), or chunk by chunk with a state (`start`, `step`), to the same result.

Shapes: B utterances, F feature frames (10 ms), T encoder frames (40 ms), C mel channels, D width, H heads, d = D / H,
N channels of the subsampling, K frames that are attended to: a chunk's own and those before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtrans.config import ConformerConfig, MaskingConfig
from kdtrans.contracts import FRAME_SHIFT_MS, SAMPLE_RATE
from kdtrans.models.equalizer import equalize
from kdtrans.models.features import SHORTEST, log_mel
from kdtrans.models.masking import mask
from kdtrans.models.padding import real_frames
from kdtrans.models.transducer import Encoder
from kdtrans.models.warp import warp_frequency

MEL_CHANNELS = 80
FEATURE_SHIFT_MS = 10.0
FEATURE_WINDOW_MS = 25.0


class ConformerEncoder(Encoder):
    """Log-mel features -> 4x convolutional subsampling -> Conformer blocks."""

    def __init__(self, config: ConformerConfig, masking: MaskingConfig) -> None:
        super().__init__()
        self.dim, self.masking, self.streaming = config.dim, masking, config.streaming
        self.frequency_warp, self.equalizer_db = config.frequency_warp, config.equalizer_db
        self._chunk_ms = config.streaming.chunk_ms if config.streaming else None
        self.subsampling = Subsampling(config.subsampling_channels, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(ConformerBlock(config) for _ in range(config.layers))
        self.head_dim = config.dim // config.heads
        self._history = config.conv_kernel - 1
        self.tail_frames = config.streaming.tail_ms // FRAME_SHIFT_MS if config.streaming else 0

    @property
    def chunk_ms(self) -> int | None:
        """Chunk of a streaming encoder in eval mode, ms; None: the encoder sees the whole utterance at once.

        Raises:
            ValueError: when it is set to what is no multiple of 40 ms, or for an encoder that is not streaming.
        """
        return self._chunk_ms

    @chunk_ms.setter
    def chunk_ms(self, chunk_ms: int) -> None:
        if self.streaming is None:
            raise ValueError(
                f"chunk_ms {chunk_ms} was set, but this encoder sees the whole utterance at once: leave chunk_ms out, "
                "or train a student with encoder.streaming"
            )
        if chunk_ms < FRAME_SHIFT_MS or chunk_ms % FRAME_SHIFT_MS:
            raise ValueError(f"chunk_ms {chunk_ms} must be a positive multiple of a frame's {FRAME_SHIFT_MS} ms")
        self._chunk_ms = chunk_ms

    def extract(self, waveform_S: Tensor) -> Tensor:
        """Log-mel features (F, C) of one utterance at 16 kHz, a streaming encoder's tail among its samples.

        F = round(S / 160). Under 10 ms are refused with a ValueError, whatever the tail.
        """
        if self.tail_frames and len(waveform_S) >= SHORTEST:
            waveform_S = F.pad(waveform_S, (0, self.tail_frames * FRAME_SHIFT_MS * SAMPLE_RATE // 1000))
        return log_mel(waveform_S, MEL_CHANNELS)

    def forward(self, features_BFC: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Padded features (B, F, C) and lengths -> (B, T, D) and lengths; T = ceil(ceil(F / 2) / 2).

        A streaming encoder in training mode draws its chunk size by torch's global CPU generator.
        """
        if self.training:
            if self.frequency_warp > 0.0:
                features_BFC = warp_frequency(features_BFC, self.frequency_warp)
            if self.equalizer_db > 0.0:
                features_BFC = equalize(features_BFC, lengths_B, self.equalizer_db)
            features_BFC = mask(features_BFC, lengths_B, self.masking, FEATURE_SHIFT_MS)
        x_BTD, lengths_B = self.subsampling(features_BFC, lengths_B)
        x_BTD = self.dropout(x_BTD)
        real_BT = real_frames(lengths_B, x_BTD.shape[1])
        seen = self._seen(real_BT)
        rotation = rotary_angles(x_BTD.shape[1], self.head_dim, x_BTD.device)
        for block in self.blocks:
            x_BTD = block(x_BTD, real_BT, seen, rotation)
        return x_BTD * real_BT[..., None], lengths_B

    def _seen(self, real_BT: Tensor) -> Tensor:
        """Which frames each frame attends to: (B, 1, 1, K), or (B, 1, T, K) of a streaming encoder."""
        if self.streaming is None:
            return real_BT[:, None, None]
        chunk_ms = self._chunk_ms
        if self.training:
            sizes = self.streaming.train_chunks_ms
            chunk_ms = sizes[int(torch.randint(len(sizes), ()))]
        assert chunk_ms is not None
        left = self.streaming.left_context_ms // FRAME_SHIFT_MS
        chunks_TK = chunk_mask(real_BT.shape[1], chunk_ms // FRAME_SHIFT_MS, left, real_BT.device)
        # Padding may have no real frame in sight; it sees itself, for the softmax of nothing is not a number.
        itself_TK = torch.eye(real_BT.shape[1], dtype=torch.bool, device=real_BT.device)
        return (chunks_TK & real_BT[:, None, None]) | itself_TK

    def start(self) -> EncoderState:
        """The state of a streaming encoder before the first chunk of one utterance."""
        if self.streaming is None:
            raise ValueError(
                "this encoder sees the whole utterance at once and cannot run chunk by chunk: train a student with "
                "encoder.streaming"
            )
        weight = self.subsampling.output.weight
        left = self.streaming.left_context_ms // FRAME_SHIFT_MS
        no_frames = weight.new_zeros(1, self.dim // self.head_dim, 0, self.head_dim)
        no_history = weight.new_zeros(1, self.dim, self._history)
        return EncoderState(
            features=weight.new_zeros(1, 1, 1, MEL_CHANNELS),
            subsampled=weight.new_zeros(1, self.subsampling.second.in_channels, 1, math.ceil(MEL_CHANNELS / 2)),
            blocks=[BlockState(left, no_frames, no_frames, no_history) for _ in self.blocks],
        )

    def step(self, features_1FC: Tensor, state: EncoderState) -> Tensor:
        """The next chunk's features (1, F, C) -> its frames (1, T, D), as `forward` has them; updates the state.

        Args:
            features_1FC: features of one chunk; F is a multiple of 4 but for an utterance's last chunk.
            state: what `start` made and the chunks before this one changed.
        """
        x_1TD = self.subsampling.step(features_1FC, state)
        real_1T = torch.ones(x_1TD.shape[:2], dtype=torch.bool, device=x_1TD.device)
        # Scores see relative positions only. Counting from the first frame in sight keeps angles small and exact
        # however long the stream is.
        in_sight = state.blocks[0].key.shape[2] + x_1TD.shape[1]
        rotation = rotary_angles(in_sight, self.head_dim, x_1TD.device)
        for block, block_state in zip(self.blocks, state.blocks, strict=True):
            x_1TD = block(x_1TD, real_1T, None, rotation, block_state)
        return x_1TD


@dataclass
class BlockState:
    """What one block remembers of the frames before a chunk.

    Attributes:
        left: most frames kept for attention.
        key: (1, H, K, d), not rotated.
        value: (1, H, K, d).
        convolved: the last inputs of the depthwise convolution (1, D, kernel - 1); before the first frame zeros.
    """

    left: int
    key: Tensor
    value: Tensor
    convolved: Tensor

    def attend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (1, H, K, d) of the left context and the chunk; keeps the left context of the next chunk."""
        key, value = torch.cat([self.key, key], 2), torch.cat([self.value, value], 2)
        self.key, self.value = key[:, :, -self.left :], value[:, :, -self.left :]
        return key, value

    def convolve(self, x_1DT: Tensor) -> Tensor:
        """The convolution's input (1, D, kernel - 1 + T) with its history; keeps the history of the next chunk."""
        x_1DT = torch.cat([self.convolved, x_1DT], 2)
        self.convolved = x_1DT[:, :, x_1DT.shape[2] - self.convolved.shape[2] :]
        return x_1DT


@dataclass
class EncoderState:
    """What a streaming encoder remembers of one utterance between chunks; its size does not grow with the utterance.

    Attributes:
        features: the last feature frame (1, 1, 1, C).
        subsampled: the last frame between the two subsampling convolutions (1, N, 1, C / 2).
        blocks: a state for each Conformer block.
    """

    features: Tensor
    subsampled: Tensor
    blocks: list[BlockState]


def algorithmic_latency_ms(encoder: Encoder) -> float | None:
    """How long the first sample of a chunk waits for the last one that its frames need, ms; None: for the end.

    The two convolutions of the subsampling let frame t see features 4 t - 3 .. 4 t + 3, so that a chunk of n frames
    from frame t on sees no feature after 4 (t + n) - 1, the last one of its own. Feature f of a Kaldi filterbank that
    does not snip edges is centred on the middle of its own 10 ms: it sees the 25 ms from 10 f - 7.5 ms to
    10 f + 17.5 ms. The last feature thus ends (25 - 10) / 2 = 7.5 ms after the chunk's 40 n ms. Computing comes on top.

    Args:
        encoder: any encoder; a streaming one counts with its present chunk_ms.
    """
    if not isinstance(encoder, ConformerEncoder) or encoder.chunk_ms is None:
        return None
    return encoder.chunk_ms + (FEATURE_WINDOW_MS - FEATURE_SHIFT_MS) / 2


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

    def step(self, features_1FC: Tensor, state: EncoderState) -> Tensor:
        """One chunk's features (1, F, C) -> (1, T, D); the frame before the chunk comes from the state."""
        x = features_1FC[:, None]
        history = [state.features, state.subsampled]
        state.features = x[:, :, -1:]
        x = self._convolve(self.first, history[0], x)
        state.subsampled = x[:, :, -1:]
        x = self._convolve(self.second, history[1], x)
        return self.norm(self.output(x.transpose(1, 2).flatten(2)))

    @staticmethod
    def _convolve(conv: nn.Conv2d, before: Tensor, x: Tensor) -> Tensor:
        # An odd number of frames occurs in an utterance's last chunk only: there the zeros after the end are seen.
        x = F.pad(torch.cat([before, x], 2), (0, 0, 0, x.shape[2] % 2))
        return F.silu(F.conv2d(x, conv.weight, conv.bias, stride=2, padding=(0, 1)))


class ConformerBlock(nn.Module):
    """Half feed-forward, self-attention, convolution, half feed-forward, norm."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.feed_forward_in = feed_forward(config)
        self.attention = RotaryAttention(config)
        self.convolution = ConvolutionModule(config)
        self.feed_forward_out = feed_forward(config)
        self.norm = nn.LayerNorm(config.dim)

    def forward(
        self,
        x_BTD: Tensor,
        real_BT: Tensor,
        seen: Tensor | None,
        rotation: tuple[Tensor, Tensor],
        state: BlockState | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D); with a state x_BTD is a chunk, whose frames follow those of the state."""
        x_BTD = x_BTD + 0.5 * self.feed_forward_in(x_BTD)
        x_BTD = x_BTD + self.attention(x_BTD, seen, rotation, state)
        x_BTD = x_BTD + self.convolution(x_BTD, real_BT, state)
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

    def forward(
        self, x_BTD: Tensor, seen: Tensor | None, rotation: tuple[Tensor, Tensor], state: BlockState | None
    ) -> Tensor:
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.query_key_value(self.norm(x_BTD)).chunk(3, 2)
        )
        if state is not None:
            key, value = state.attend(key, value)
        query_rotation = (rotation[0][-query.shape[2] :], rotation[1][-query.shape[2] :])  # a chunk's frames are last
        context = F.scaled_dot_product_attention(
            rotate(query, query_rotation), rotate(key, rotation), value, attn_mask=seen
        )
        return self.dropout(self.output(context.transpose(1, 2).flatten(2)))


class ConvolutionModule(nn.Module):
    """Gated pointwise, depthwise over time (causal in a streaming encoder), norm, SiLU, pointwise."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.gate = nn.Linear(config.dim, 2 * config.dim)
        self.history = config.conv_kernel - 1 if config.streaming else 0  # frames put before the first one
        padding = 0 if config.streaming else config.conv_kernel // 2
        self.depthwise = nn.Conv1d(config.dim, config.dim, config.conv_kernel, padding=padding, groups=config.dim)
        self.depthwise_norm = nn.LayerNorm(config.dim)
        self.output = nn.Linear(config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, real_BT: Tensor, state: BlockState | None) -> Tensor:
        x_BDT = (F.glu(self.gate(self.norm(x_BTD)), dim=2) * real_BT[..., None]).transpose(1, 2)
        if state is not None:
            x_BDT = state.convolve(x_BDT)
        elif self.history:
            x_BDT = F.pad(x_BDT, (self.history, 0))
        x_BTD = self.depthwise(x_BDT).transpose(1, 2)
        return self.dropout(self.output(F.silu(self.depthwise_norm(x_BTD))))


def chunk_mask(frames: int, chunk: int, left: int, device: torch.device) -> Tensor:
    """True (T, K) where a frame attends to another: in its own chunk, or at most `left` frames before that."""
    frame = torch.arange(frames, device=device)
    start_T1 = (frame // chunk * chunk)[:, None]
    return (frame >= start_T1 - left) & (frame < start_T1 + chunk)


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
