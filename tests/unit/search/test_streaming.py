"""Searches chunk by chunk against the same on the whole utterance."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrans.config import ConformerConfig, PredictorConfig, StreamingConfig, StudentConfig
from kdtrans.models.build import build_student
from kdtrans.models.conformer import ConformerEncoder
from kdtrans.models.transducer import Transducer
from kdtrans.search.beam import BeamSearch, beam
from kdtrans.search.greedy import greedy, greedy_from, no_labels
from kdtrans.search.hypothesis import Hypothesis
from kdtrans.search.prefixes import Fusion
from kdtrans.search.streaming import StreamingBeam, StreamingGreedy
from tests.unit.search.test_search import make as make_search
from tests.unit.search.test_search import small_lm, some_speech


def make(seed: int, kind: Literal["lstm", "stateless"] = "stateless", streaming: bool = True) -> Transducer:
    """An untrained student that emits a label every few frames."""
    torch.manual_seed(seed)
    encoder = ConformerConfig(
        dim=16,
        layers=2,
        heads=2,
        ffn_dim=32,
        conv_kernel=5,
        subsampling_channels=4,
        streaming=StreamingConfig(chunk_ms=320, left_context_ms=640) if streaming else None,
    )
    config = StudentConfig(encoder=encoder, predictor=PredictorConfig(type=kind, dim=8), joiner_dim=8)
    model = build_student(config, 7).eval()
    with torch.no_grad():
        model.joiner.output.weight *= 4
        model.joiner.output.bias[0] += 0.5
    return model


def encoded(model: Transducer, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = model.encoder.extract(waveform)
    with torch.inference_mode():
        return model.encode(features[None], torch.tensor([len(features)]))


def assert_close(found: Hypothesis, expected: Hypothesis) -> None:
    assert (found.tokens, found.frames) == (expected.tokens, expected.frames)
    torch.testing.assert_close(found.logps, expected.logps, rtol=1e-3, atol=1e-3)
    for score in ("score", "am_score", "lm_score"):
        assert getattr(found, score) == pytest.approx(getattr(expected, score), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("kind", ["lstm", "stateless"])
@pytest.mark.parametrize("chunk_ms", [80, 320, 1280])
def test_chunk_by_chunk_equals_the_whole_utterance(kind: Literal["lstm", "stateless"], chunk_ms: int) -> None:
    labels = 0
    for seed, samples in enumerate((160, 5239, 30000)):
        model = make(seed, kind)
        assert isinstance(model.encoder, ConformerEncoder)
        model.encoder.chunk_ms = chunk_ms
        waveform = 0.1 * torch.randn(samples)
        enc, frames = encoded(model, waveform)
        expected = greedy(model, enc, frames, max_symbols=3)[0]
        stream = StreamingGreedy(model, max_symbols=3)
        shown: list[int] = []
        chunks = 0
        for piece in waveform.split(700):
            chunks += stream.feed(piece)
            assert stream.hypothesis.tokens[: len(shown)] == shown  # no label is taken back
            shown = stream.hypothesis.tokens
        chunks += stream.finish()
        assert_close(stream.hypothesis, expected)
        assert (stream.num_frames, chunks) == (int(frames), -(-int(frames) * 40 // chunk_ms))
        labels += len(expected.tokens)
    assert labels > 20


@given(seed=st.integers(0, 1000), split=st.integers(0, 12), max_symbols=st.integers(1, 3))
@settings(deadline=None, max_examples=25)
def test_the_context_is_all_that_passes_from_stretch_to_stretch(seed: int, split: int, max_symbols: int) -> None:
    """Batched, with utterances that end in the first stretch or in the second."""
    model = make_search(seed)
    enc, lengths = some_speech(seed, [12, 5, 8])
    expected = greedy(model, enc, lengths, max_symbols)
    first, context = greedy_from(no_labels(model, 3), model, enc[:, :split], lengths.clamp(max=split), max_symbols)
    second, _ = greedy_from(context, model, enc[:, split:], (lengths - split).clamp(min=0), max_symbols)
    for one, two, both in zip(first, second, expected, strict=True):
        assert one.tokens + two.tokens == both.tokens
        assert one.frames + [split + frame for frame in two.frames] == both.frames
        assert one.am_score + two.am_score == pytest.approx(both.am_score, abs=1e-4)


@pytest.mark.parametrize("kind", ["lstm", "stateless"])
@pytest.mark.parametrize("lm_weight", [0.0, 0.4])
def test_a_beam_chunk_by_chunk_equals_the_whole_utterance(kind: Literal["lstm", "stateless"], lm_weight: float) -> None:
    lm, gained = small_lm(7), 0.0
    for seed, samples in enumerate((160, 5239, 30000)):
        model, waveform = make(seed, kind), 0.1 * torch.randn(samples)
        enc, frames = encoded(model, waveform)
        expected = beam(model, enc, frames, 4, 3, lm, lm_weight, threshold=5.0)[0][0]
        stream = StreamingBeam(model, 4, 3, lm, lm_weight, threshold=5.0)
        for piece in waveform.split(700):
            stream.feed(piece)
        stream.finish()
        assert_close(stream.hypothesis, expected)
        gained += expected.am_score - greedy(model, enc, frames, 3)[0].am_score
    assert abs(gained) > 0.1, "it would be greedy search"


@given(seed=st.integers(0, 1000), splits=st.lists(st.integers(0, 12), min_size=1, max_size=3), width=st.integers(1, 4))
@settings(deadline=None, max_examples=25)
def test_a_beams_hypotheses_are_all_that_passes_from_stretch_to_stretch(
    seed: int, splits: list[int], width: int
) -> None:
    """Batched, with utterances that end in any of the stretches."""
    model = make_search(seed)
    enc, lengths = some_speech(seed, [12, 5, 8])
    expected = beam(model, enc, lengths, width, 2, threshold=4.0)
    search = BeamSearch(Fusion(model), 3, width, 2, threshold=4.0)
    for first, last in pairwise([0, *sorted(splits), 12]):
        search.advance(enc[:, first:last], (lengths - first).clamp(0, last - first))
    for found, whole in zip(search.hypotheses(), expected, strict=True):
        assert len(found) == len(whole)
        for one, other in zip(found, whole, strict=True):
            assert_close(one, other)


def test_what_cannot_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot run chunk by chunk"):
        StreamingGreedy(make(0, streaming=False), 3)
    with pytest.raises(ValueError, match="a Passing is no streaming encoder"):
        StreamingGreedy(make_search(0), 3)
