"""Encoding while the audio arrives: samples in pieces of any size -> encoder frames, a chunk at a time.

The frames are those of one pass of the encoder over the whole utterance, to rounding.

Shapes: S samples at 16 kHz, F feature frames (10 ms), T encoder frames (40 ms), C mel channels, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from kdtrans.contracts import FRAME_SHIFT_MS, SAMPLE_RATE
from kdtrans.models.conformer import FEATURE_SHIFT_MS, FEATURE_WINDOW_MS, MEL_CHANNELS, ConformerEncoder
from kdtrans.models.features import log_mel

SHIFT = int(SAMPLE_RATE * FEATURE_SHIFT_MS / 1000)
LOOKAHEAD = int(SAMPLE_RATE * (FEATURE_WINDOW_MS - FEATURE_SHIFT_MS) / 2 / 1000)  # samples seen after a frame's own
FEATURES_A_FRAME = int(FRAME_SHIFT_MS / FEATURE_SHIFT_MS)


class StreamingEncoder:
    """Runs a streaming encoder over one utterance, chunk by chunk, with the chunk_ms that it has at the start."""

    def __init__(self, encoder: ConformerEncoder) -> None:
        """Start an utterance.

        Args:
            encoder: streaming encoder in eval mode.

        Raises:
            ValueError: when the encoder is not streaming, or in training mode.
        """
        self._state = encoder.start()
        if encoder.training:
            raise ValueError("the encoder is in training mode, where chunks are drawn at random: call eval() first")
        assert encoder.chunk_ms is not None
        self._encoder = encoder
        self._chunk_features = encoder.chunk_ms // FRAME_SHIFT_MS * FEATURES_A_FRAME
        self._features = FeatureStream(partial(log_mel, channels=MEL_CHANNELS), encoder.extract)

    @torch.inference_mode()
    def feed(self, waveform_S: Tensor) -> list[Tensor]:
        """The next samples, any number of them -> the frames (1, T, D) of each chunk that they complete."""
        self._features.feed(waveform_S)
        chunks = []
        while (features_FC := self._features.take(self._chunk_features)) is not None:
            chunks.append(self._step(features_FC))
        return chunks

    @torch.inference_mode()
    def finish(self) -> list[Tensor]:
        """End the utterance: the frames (1, T, D) of what is left and of the encoder's tail, a chunk or more.

        Without a tail two where the audio ends 5 to 7.5 ms after a chunk: that one was not complete yet, and another
        has begun.

        Raises:
            ValueError: when the whole utterance is under 10 ms.
        """
        return [self._step(features_FC) for features_FC in self._features.finish().split(self._chunk_features)]

    def _step(self, features_FC: Tensor) -> Tensor:
        return self._encoder.step(features_FC[None].to(self._state.features.device), self._state)


class FeatureStream:
    """Features of samples that arrive in pieces, equal to those of the whole waveform.

    A filterbank frame sees the window around its own 10 ms and nothing else of the utterance (DC removal and
    pre-emphasis are done a frame at a time); only windows that reach over an end see the reflection of the samples
    there. So features of a stretch that starts on a frame are those of the whole, but for its first frame, unless the
    utterance starts there too, and for the last ones, unless it ends there too. One frame is kept before the next.
    """

    def __init__(
        self, extract: Callable[[Tensor], Tensor], extract_last: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Start an utterance.

        Args:
            extract: turns samples (S,) into features (F, C).
            extract_last: the same for those that end the utterance, as `Encoder.extract` does with its tail; None:
                there is none.
        """
        self._extract, self._extract_last = extract, extract_last or extract
        self._pieces: list[Tensor] = []
        self._samples = 0
        self._before = 0  # frames of the kept stretch that were taken already: 0 at the utterance's start, then 1
        self._finished = False

    def feed(self, waveform_S: Tensor) -> None:
        """Append samples; raises ValueError when they are not one channel, or come after the end."""
        if waveform_S.dim() != 1:
            raise ValueError(f"samples of shape {tuple(waveform_S.shape)} were fed: feed one channel, shape (S,)")
        if self._finished:
            raise ValueError("samples were fed after the end of the utterance: start a new stream")
        self._pieces.append(waveform_S)
        self._samples += len(waveform_S)

    def take(self, frames: int) -> Tensor | None:
        """The next features (frames, C), or None while samples that they see are missing."""
        end = self._before + frames
        if self._samples < SHIFT * end + LOOKAHEAD:
            return None
        waveform_S = torch.cat(self._pieces) if len(self._pieces) > 1 else self._pieces[0]
        features_FC = self._extract(waveform_S[: SHIFT * end + LOOKAHEAD])[self._before : end]
        rest_S = waveform_S[SHIFT * (end - 1) :]
        self._pieces, self._samples, self._before = [rest_S], len(rest_S), 1
        return features_FC

    def finish(self) -> Tensor:
        """The features (F, C) that are left at the end of the utterance, at least one."""
        self._finished = True
        return self._extract_last(torch.cat([torch.zeros(0), *self._pieces]))[self._before :]
