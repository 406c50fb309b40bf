"""Search while the audio arrives: samples in pieces of any size -> labels so far.

Shapes: S samples at 16 kHz, T encoder frames (40 ms), E encoder width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdtrans.config import SearchConfig
from kdtrans.models.conformer import ConformerEncoder
from kdtrans.models.lm import LanguageModel
from kdtrans.models.streaming import StreamingEncoder
from kdtrans.models.transducer import Transducer
from kdtrans.search.beam import BeamSearch
from kdtrans.search.greedy import greedy_from, no_labels
from kdtrans.search.hypothesis import Hypothesis
from kdtrans.search.prefixes import Fusion


class StreamingSearch:
    """Decodes one utterance chunk by chunk; the result is that of the same search on the whole utterance.

    Attributes:
        num_frames: encoder frames decoded so far.
    """

    def __init__(self, model: Transducer) -> None:
        """Start an utterance.

        Args:
            model: transducer with a streaming encoder, in eval mode.

        Raises:
            ValueError: when the encoder is not streaming, or in training mode.
        """
        if not isinstance(model.encoder, ConformerEncoder):
            raise ValueError(f"a {type(model.encoder).__name__} is no streaming encoder: decode the whole utterance")
        self._encoder = StreamingEncoder(model.encoder)
        self.num_frames = 0

    @property
    def hypothesis(self) -> Hypothesis:
        """The best labels so far and their frames, counted from the start of the utterance."""
        raise NotImplementedError

    def feed(self, waveform_S: Tensor) -> int:
        """Decode what the next samples complete; returns the number of chunks, by which `hypothesis` has changed."""
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
            self._advance(enc_1TE, torch.tensor([frames]))
            self.num_frames += frames
        return len(chunks)

    def _advance(self, enc_1TE: Tensor, frames_1: Tensor) -> None:
        raise NotImplementedError


class StreamingGreedy(StreamingSearch):
    """Greedy search, which never takes a label back."""

    def __init__(self, model: Transducer, max_symbols: int) -> None:
        """Start an utterance; `max_symbols`: most labels on one frame."""
        super().__init__(model)
        self._model, self._max_symbols = model, max_symbols
        self._context = no_labels(model, 1)
        self._found = Hypothesis([], [], [], 0.0, 0.0, 0.0)

    @property
    def hypothesis(self) -> Hypothesis:
        return self._found

    def _advance(self, enc_1TE: Tensor, frames_1: Tensor) -> None:
        found, self._context = greedy_from(self._context, self._model, enc_1TE, frames_1, self._max_symbols)
        self._found = _joined(self._found, found[0], self.num_frames)


class StreamingBeam(StreamingSearch):
    """Beam search with shallow fusion; a later chunk may take labels back."""

    def __init__(
        self,
        model: Transducer,
        beam: int,
        max_symbols: int,
        lm: LanguageModel | None = None,
        lm_weight: float = 0.0,
        threshold: float = math.inf,
    ) -> None:
        """Start an utterance; all but the model as in `beam`."""
        super().__init__(model)
        self._search = BeamSearch(Fusion(model, lm, lm_weight), 1, beam, max_symbols, threshold)

    @property
    def hypothesis(self) -> Hypothesis:
        return self._search.hypotheses()[0][0]

    def _advance(self, enc_1TE: Tensor, frames_1: Tensor) -> None:
        self._search.advance(enc_1TE, frames_1)


def start_stream(
    model: Transducer, config: SearchConfig, lm: LanguageModel | None = None, lm_weight: float = 0.0
) -> StreamingSearch:
    """The search of a configuration, type greedy or beam, for one utterance; arguments as in `search`."""
    if config.type == "greedy":
        return StreamingGreedy(model, config.max_symbols)
    threshold = math.inf if config.threshold is None else config.threshold
    return StreamingBeam(model, config.beam, config.max_symbols, lm if config.lm else None, lm_weight, threshold)


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
