"""The encoder of Whisper (Radford et al. 2022, arXiv 2212.04356) on the real frames only.

Whisper pads every input to 30 s. We encode an utterance at its own length: faster by 30 s over its duration, and as
the encoder is fine-tuned the difference is learnt away.
Shapes: B utterances, S samples, F log-mel frames (10 ms), C mel channels, T frames (20 ms), E encoder width.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtrans.config import MaskingConfig
from kdtrans.contracts import SAMPLE_RATE
from kdtrans.models.masking import mask
from kdtrans.models.padding import real_frames
from kdtrans.models.pretrained.common import PretrainedEncoder, check_waveform

FFT_SAMPLES = 400
HOP_SAMPLES = 160


class WhisperEncoder(PretrainedEncoder):
    """Log-mel input, two convolutions (10 -> 20 ms), transformer with absolute positions."""

    network: Any
    positions: Tensor

    def __init__(self, network: Any, pooling: Literal["average", "concat"], masking: MaskingConfig) -> None:
        """Args:
        network: transformers' own WhisperEncoder, which this takes apart and keeps.
        pooling: how 20 ms become 40 ms.
        masking: masks of the log-mel in training mode.
        """
        from transformers.audio_utils import mel_filter_bank

        super().__init__(network.config.d_model, pooling)
        self.masking = masking
        # Fixed sinusoids; as a buffer, no unfreezing can train them.
        self.register_buffer("positions", network.embed_positions.weight.detach().clone())
        del network.embed_positions
        self.network = network
        # Plain CPU tensors, not buffers: features are made in loader processes, which cannot reach the GPU.
        bins = FFT_SAMPLES // 2 + 1, network.config.num_mel_bins
        filters = mel_filter_bank(*bins, 0.0, 8000.0, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
        self.filters_CK = torch.from_numpy(filters.T.copy()).float()
        self.window = torch.hann_window(FFT_SAMPLES)

    def extract(self, waveform_S: Tensor) -> Tensor:
        """Whisper's log-mel (S // 160, C) of one utterance: log10, at most 8 below the loudest, scaled.

        Raises:
            ValueError: under 50 ms, or longer than the positions of the network reach (30 s).
        """
        check_waveform(waveform_S)
        limit = 2 * len(self.positions) * HOP_SAMPLES
        if len(waveform_S) > limit:
            raise ValueError(
                f"{len(waveform_S) / SAMPLE_RATE:.2f} s of audio, but this Whisper encoder reaches "
                f"{limit / SAMPLE_RATE:g} s: lower corpus.max_duration_s or cut the audio"
            )
        spectrum = torch.stft(
            waveform_S.float(),
            FFT_SAMPLES,
            HOP_SAMPLES,
            window=self.window.to(waveform_S.device),
            return_complex=True,
        )
        power_KF = spectrum[:, : len(waveform_S) // HOP_SAMPLES].abs().square()
        mel_FC = (self.filters_CK.to(waveform_S.device) @ power_KF).T
        log_FC = mel_FC.clamp(min=1e-10).log10()
        return ((torch.maximum(log_FC, log_FC.max() - 8.0) + 4.0) / 4.0).contiguous()

    def encode_20ms(self, features_BFC: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel (B, F, C) -> (B, ceil(F / 2), E); every padded frame is zeroed before a convolution can see it."""
        if self.training:
            features_BFC = mask(features_BFC, lengths_B, self.masking, frame_shift_ms=10.0)
        hidden = functional.gelu(self.network.conv1(features_BFC.transpose(1, 2)))
        hidden = hidden * real_frames(lengths_B, hidden.shape[2])[:, None]
        hidden = functional.gelu(self.network.conv2(hidden)).transpose(1, 2)
        hidden = hidden + self.positions[: hidden.shape[1]]
        hidden = functional.dropout(hidden, self.network.dropout, self.training)

        lengths_B = (lengths_B + 1) // 2
        real_BT = real_frames(lengths_B, hidden.shape[1])
        keys_B11T = None if bool(real_BT.all()) else real_BT[:, None, None, :]
        for layer in self.network.layers:
            hidden = layer(hidden, keys_B11T)
        return self.network.layer_norm(hidden), lengths_B

    def extractor_parameters(self) -> Iterator[nn.Parameter]:
        """The two convolutions."""
        return chain(self.network.conv1.parameters(), self.network.conv2.parameters())
