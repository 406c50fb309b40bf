"""Log-mel features of the student: Kaldi-compatible, so that other runtimes can compute them.

Shapes: S samples at 16 kHz, F frames of 10 ms, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdtrans.contracts import SAMPLE_RATE

# Fixed rather than measured: speech at [-1, 1] has log-mel energies around -8 with a deviation of about 4, and a constant
# works for streaming and for unseen corpora alike; the first layers learn the rest.
LOG_MEL_MEAN, LOG_MEL_SCALE = -8.0, 4.0


class LogMel(nn.Module):
    """80-channel Kaldi filterbank without dither, one utterance at a time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self._filterbank: Any = None  # built at first use: constant, and no part of the state_dict

    @torch.no_grad()
    def forward(self, waveform_S: Tensor) -> Tensor:
        """Waveform (S,) in [-1, 1] -> normalised log-mel (F, C), F = round(S / 160)."""
        if self._filterbank is None:
            from lhotse.features.kaldi.layers import Wav2LogFilterBank

            self._filterbank = Wav2LogFilterBank(
                sampling_rate=SAMPLE_RATE, num_filters=self.channels, snip_edges=False, dither=0.0
            )
        features_FC: Tensor = self._filterbank(waveform_S[None].cpu())[0]
        return (features_FC - LOG_MEL_MEAN) / LOG_MEL_SCALE
