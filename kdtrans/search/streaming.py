"""Greedy search while the audio arrives: samples in pieces of any size -> labels so far.

Shapes: S samples at 16 kHz, T encoder frames (40 ms), E encoder width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdtrans.models.conformer import ConformerEncoder
from kdtrans.models.streaming import StreamingEncoder
from kdtrans.models.transducer import Transducer
from kdtrans.search.greedy import greedy_from, no_labels
from kdtrans.search.hypothesis import Hypothesis


class StreamingGreedy:
    """Decodes one utterance chunk by chunk; the result is that of `greedy` on the whole utterance.

    Attributes:
        hypothesis: the labels so far and their frames, counted from the start of the utterance. Greedy search never
            takes a label back.
        num_frames: encoder frames decoded so far.
    """

    def __init__(self, model: Transducer, max_symbols: int) -> None:
        """Start an utterance.

        Args:
            model: transducer with a streaming encoder, in eval mode.
            max_symbols: most labels on one frame.

        Raises:
            ValueError: when the encoder is not streaming, or in training mode.
        """
        if not isinstance(model.encoder, ConformerEncoder):
            raise ValueError(f"a {type(model.encoder).__name__} is no streaming encoder: decode the whole utterance")
        self._encoder = StreamingEncoder(model.encoder)
        self._model, self._max_symbols = model, max_symbols
        self._context = no_labels(model, 1)
        self.hypothesis = Hypothesis([], [], [], 0.0, 0.0, 0.0)
        self.num_frames = 0

    def feed(self, waveform_S: Tensor) -> int:
        """Decode what the next samples complete; returns the number of chunks, and `hypothesis` has grown by them."""
        return self._decode(self._encoder.feed(waveform_S))

    def finish(self) -> int:
        """End the utterance and decode what is left; returns the number of chunks.

        Raises:
            ValueError: when the whole utterance is under 10 ms.
        """
        return self._decode(self._encoder.finish())

    def _decode(self, chunks: list[Tensor]) -> int:
        for enc_1TE in chunks:
            frames = enc_1TE.shape[1]
            found, self._context = greedy_from(
                self._context, self._model, enc_1TE, torch.tensor([frames]), self._max_symbols
            )
            self.hypothesis = _joined(self.hypothesis, found[0], self.num_frames)
            self.num_frames += frames
        return len(chunks)


def _joined(before: Hypothesis, chunk: Hypothesis, first_frame: int) -> Hypothesis:
    """One hypothesis of two that follow each other; the second one's frames are counted from first_frame."""
    return Hypothesis(
        tokens=before.tokens + chunk.tokens,
        frames=before.frames + [first_frame + frame for frame in chunk.frames],
        logps=before.logps + chunk.logps,
        score=before.score + chunk.score,
        am_score=before.am_score + chunk.am_score,
        lm_score=0.0,
    )
