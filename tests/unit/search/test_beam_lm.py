"""Shallow fusion through the protocol: what the beam adds for the language model, against scoring by hand."""

from __future__ import annotations

import math

import pytest
import torch

from kdtrans.config import LstmLmConfig
from kdtrans.models.lm import LanguageModel
from kdtrans.models.lstm_lm import LstmLm
from kdtrans.search.beam import beam
from tests.unit.search.test_search import assert_same, full_sums, make, small_lm, some_speech

VOCAB = 4


def language_model(kind: str) -> LanguageModel:
    if kind == "ngram":
        return small_lm(VOCAB)
    torch.manual_seed(7)
    model = LstmLm(VOCAB, LstmLmConfig(dim=6, layers=2)).eval()
    with torch.no_grad():
        model.embedding.weight *= 3  # an opinion on every label
    return model


@torch.no_grad()
def by_hand(lm: LanguageModel, labels: list[int]) -> float:
    """Log-probability of labels: label by label, and for the LSTM from the whole sentence at once."""
    if isinstance(lm, LstmLm):
        rows = lm(torch.tensor([labels], dtype=torch.long))[0]
        return sum(float(rows[u, label]) for u, label in enumerate(labels))
    state, total = lm.start(1), 0.0
    for label in labels:
        total += float(lm.score(state)[0, label])
        state = lm.advance(state, torch.tensor([label]))
    return total


@pytest.mark.parametrize("kind", ["ngram", "lstm"])
def test_a_wide_beam_ranks_every_label_sequence_by_the_fused_score(kind: str) -> None:
    lm_weight, max_symbols = 0.8, 1
    model, lm = make(3, VOCAB, blank=0.0), language_model(kind)
    enc_BTE, lengths_B = some_speech(3, [3, 2])
    for b, hypotheses in enumerate(beam(model, enc_BTE, lengths_B, 100, max_symbols, lm, lm_weight)):
        expected = full_sums(model, enc_BTE[b, : lengths_B[b]], max_symbols)
        assert {tuple(h.tokens) for h in hypotheses} == expected.keys()
        for h in hypotheses:
            assert h.lm_score == pytest.approx(by_hand(lm, h.tokens), abs=1e-4)
            fused = expected[tuple(h.tokens)] + lm_weight * by_hand(lm, h.tokens)
            assert h.score == pytest.approx(fused, abs=1e-4)
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)


@pytest.mark.parametrize("kind", ["ngram", "lstm"])
def test_an_utterance_does_not_see_the_others(kind: str) -> None:
    model, lm = make(4, VOCAB, scale=8.0), language_model(kind)
    enc_BTE, lengths_B = some_speech(4, [9, 4, 1])
    together = beam(model, enc_BTE, lengths_B, 3, 2, lm, 0.5)
    for b, frames in enumerate(lengths_B.tolist()):
        (alone,) = beam(model, enc_BTE[b : b + 1, :frames], lengths_B[b : b + 1], 3, 2, lm, 0.5)
        for mine, theirs in zip(together[b], alone, strict=True):
            assert_same(mine, theirs)
            assert math.isfinite(mine.lm_score)
