"""Log-mel features of the student: Kaldi-compatible, so that other runtimes can compute them.

Shapes: S samples at 16 kHz, F frames of 10 ms, C channels.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from kdtrans.contracts import SAMPLE_RATE

# Fixed rather than measured: speech at [-1, 1] has log-mel energies around -6 with a deviation of about 4, and a
# constant works for streaming and for unseen corpora alike; the first layers learn the rest.
LOG_MEL_MEAN, LOG_MEL_SCALE = -6.0, 4.0
SHORTEST = SAMPLE_RATE // 100
LOWEST_HZ, HIGHEST_HZ = 20.0, 7600.0  # Kaldi's, of the filters


@torch.no_grad()
def log_mel(waveform_S: Tensor, channels: int) -> Tensor:
    """Normalised Kaldi filterbank of one utterance, without dither: (S,) in [-1, 1] -> (F, C), F = round(S / 160).

    Raises:
        ValueError: under 10 ms.
    """
    if len(waveform_S) < SHORTEST:
        raise ValueError(f"{len(waveform_S)} samples of audio, features need {SHORTEST} (10 ms): leave it out")
    features_FC: Tensor = _filterbank(channels)(waveform_S[None].cpu())[0]
    return (features_FC - LOG_MEL_MEAN) / LOG_MEL_SCALE


@cache
def _filterbank(channels: int) -> Any:
    # No part of any model: it is constant, and its buffers have no business in a checkpoint.
    from lhotse.features.kaldi.layers import Wav2LogFilterBank

    return Wav2LogFilterBank(
        sampling_rate=SAMPLE_RATE,
        num_filters=channels,
        low_freq=LOWEST_HZ,
        high_freq=HIGHEST_HZ,
        snip_edges=False,
        dither=0.0,
    )
