"""The internal language model, and what is left out by a threshold."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdtrans.config import SearchConfig
from kdtrans.models.transducer import Transducer
from kdtrans.search.beam import beam
from kdtrans.search.search import search
from tests.unit.search.test_search import DIM, assert_same, full_sums, make, nearly_certain, small_lm, some_speech


@torch.no_grad()
def slow_internal_lm(model: Transducer, labels: tuple[int, ...]) -> float:
    """Label by label: the joiner with an encoder output of zeros, and all classes but blank."""
    total = 0.0
    for u, label in enumerate(labels):
        pred = model.predictor(torch.tensor([list(labels[:u])], dtype=torch.long))[0, -1]
        logits_V: Tensor = model.joiner(model.project_encoder(torch.zeros(DIM)), model.project_predictor(pred))
        total += float(logits_V[1:].double().log_softmax(-1)[label - 1])
    return total


@pytest.mark.parametrize("kind", ["lstm", "stateless"])
def test_the_internal_language_model_is_subtracted(kind: str) -> None:
    lm_weight, ilm_weight, max_symbols = 0.8, 0.5, 1
    model, lm = make(3, 4, blank=0.0, kind=kind), small_lm(4)
    enc_BTE, lengths_B = some_speech(3, [3, 2])
    results = beam(model, enc_BTE, lengths_B, 100, max_symbols, lm, lm_weight, ilm_weight)
    for b, hypotheses in enumerate(results):
        expected = full_sums(model, enc_BTE[b, : lengths_B[b]], max_symbols)
        assert {tuple(h.tokens) for h in hypotheses} == expected.keys()
        for h in hypotheses:
            labels = tuple(h.tokens)
            fused = expected[labels] + lm_weight * h.lm_score - ilm_weight * slow_internal_lm(model, labels)
            assert h.score == pytest.approx(fused, abs=1e-4)
            assert h.am_score == pytest.approx(expected[labels], abs=1e-4)
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)


def test_weight_zero_subtracts_nothing() -> None:
    model, (enc_BTE, lengths_B) = make(1), some_speech(1, [10, 6])
    for found, expected in zip(
        beam(model, enc_BTE, lengths_B, 4, 3, small_lm(5), 0.4, 0.0),
        beam(model, enc_BTE, lengths_B, 4, 3, small_lm(5), 0.4),
        strict=True,
    ):
        assert found == expected
    with pytest.raises(ValueError, match=r"ilm_weight -1.0 is negative"):
        beam(model, enc_BTE, lengths_B, 4, 3, small_lm(5), 0.4, -1.0)


@pytest.mark.parametrize("lengths", [[9, 4, 1]])
def test_an_utterance_does_not_see_the_others(lengths: list[int]) -> None:
    model, lm = make(4, scale=8.0), small_lm(5)
    enc_BTE, lengths_B = some_speech(4, lengths)
    together = beam(model, enc_BTE, lengths_B, 3, 2, lm, 0.5, 0.2, threshold=3.0)
    for b, frames in enumerate(lengths):
        (alone,) = beam(model, enc_BTE[b : b + 1, :frames], lengths_B[b : b + 1], 3, 2, lm, 0.5, 0.2, threshold=3.0)
        for mine, theirs in zip(together[b], alone, strict=True):
            assert_same(mine, theirs)


def test_a_threshold_leaves_out_what_is_improbable_alone() -> None:
    model, enc_BTE, lengths_B = nearly_certain(1, [20, 5, 2])
    every = beam(model, enc_BTE, lengths_B, 4, 3)
    some = beam(model, enc_BTE, lengths_B, 4, 3, threshold=1.0)
    for mine, theirs in zip(some, every, strict=True):
        assert (mine[0].tokens, mine[0].frames) == (theirs[0].tokens, theirs[0].frames)
        assert mine[0].am_score <= theirs[0].am_score + 1e-6  # it has no more paths
        assert mine[0].am_score == pytest.approx(theirs[0].am_score, abs=0.1)
        assert len(mine) <= len(theirs)
    assert sum(h.score for nbest in some for h in nbest) < sum(h.score for nbest in every for h in nbest)


@pytest.mark.parametrize("threshold", [None, 2.0])
def test_the_configuration_says_the_threshold(threshold: float | None) -> None:
    model, (enc_BTE, lengths_B) = make(3), some_speech(3, [5, 4])
    config = SearchConfig(type="beam", lm="ngram", ilm_weight=0.1, threshold=threshold)
    limit = math.inf if threshold is None else threshold
    expected = beam(model, enc_BTE, lengths_B, 4, 5, small_lm(5), 0.3, 0.1, limit)
    assert search(model, enc_BTE, lengths_B, config, small_lm(5), 0.3) == expected


def test_what_cannot_be_searched_is_refused() -> None:
    model, (enc_BTE, lengths_B) = make(3), some_speech(3, [5, 4])
    config = SearchConfig(type="beam", lm="ngram", rescore="beam")
    with pytest.raises(ValueError, match="run the stage `rescore`"):
        search(model, enc_BTE, lengths_B, config, small_lm(5), 0.3)
    with pytest.raises(ValueError, match=r"ilm_weight: 0.3 needs a search with lm"):
        SearchConfig(type="beam", ilm_weight=0.3)
    with pytest.raises(ValueError, match="rescore: beam needs lm"):
        SearchConfig(type="beam", rescore="beam")
