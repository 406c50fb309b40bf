"""k2's search against a walk over every path, and its graph against the n-gram; skipped where k2 is not installed."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from kdtrans.config import PredictorConfig, SearchConfig
from kdtrans.models.lm import score_labels
from kdtrans.models.ngram import Ngram
from kdtrans.models.ngram_estimate import estimate, write_arpa
from kdtrans.models.predictor import build_predictor
from kdtrans.models.transducer import Transducer
from kdtrans.search import fsa_graph
from kdtrans.search.fsa import fsa
from kdtrans.search.fsa_graph import label_graph
from kdtrans.search.hypothesis import Hypothesis
from kdtrans.search.search import search

k2 = pytest.importorskip("k2")
VOCAB, DIM, WIDE = 4, 6, 255
PIECES = ["<blank>", "<unk>", "a", "b"]
CPU = torch.device("cpu")


class Passing(nn.Module):
    dim = DIM


def make(seed: int, context: int = 2, vocab: int = VOCAB, blank: float = 0.0) -> Transducer:
    """An untrained transducer, sure of itself."""
    torch.manual_seed(seed)
    predictor = build_predictor(vocab, PredictorConfig(type="stateless", dim=8, context=context))
    model = Transducer(Passing(), predictor, 8, vocab).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        model.joiner.output.weight *= 3
        model.joiner.output.bias[0] += blank
    return model


def some_speech(seed: int, lengths: list[int]) -> tuple[Tensor, Tensor]:
    enc_BTE = 3 * torch.randn(len(lengths), max(lengths), DIM, generator=torch.Generator().manual_seed(seed))
    return enc_BTE, torch.tensor(lengths)


@pytest.fixture(scope="module", params=[1, 2, 4])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ngram:
    """N-grams of order 1, 2 and 4 over little text, so that much is backed off."""
    draw = random.Random(1)
    sentences = [[draw.choice("aab") for _ in range(draw.randint(0, 5))] for _ in range(8)]
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    write_arpa(estimate(sentences, request.param), path)
    return Ngram(path, SimpleNamespace(pieces=PIECES)).eval()


@torch.no_grad()
def scored(
    model: Transducer, enc_TE: Tensor, path: Sequence[int], lm: Ngram | None = None, lm_weight: float = 0.0
) -> Hypothesis:
    """What a path with one symbol a frame stands for, from the whole of its labels at once."""
    labels = [token for token in path if token]
    pred_UJ = model.project_predictor(model.predictor(torch.tensor([labels], dtype=torch.long)))[0]
    u = torch.tensor([sum(map(bool, path[:t])) for t in range(len(path))], dtype=torch.long)
    logp_TV = model.joiner(model.project_encoder(enc_TE), pred_UJ[u]).double().log_softmax(-1)
    logps = [float(logp_TV[t, token]) for t, token in enumerate(path)]
    am, lm_score = sum(logps), score_labels(lm, [labels])[0] if lm else 0.0
    frames = [t for t, token in enumerate(path) if token]
    return Hypothesis(labels, frames, [logps[t] for t in frames], am + lm_weight * lm_score, am, lm_score)


def twin(model: Transducer, enc_TE: Tensor, lm: Ngram | None = None, lm_weight: float = 0.0) -> list[Hypothesis]:
    """Of all paths with one symbol a frame, the best one of every label sequence, best first."""
    paths = itertools.product(range(model.vocab_size), repeat=len(enc_TE))
    every = sorted((scored(model, enc_TE, path, lm, lm_weight) for path in paths), key=lambda found: -found.score)
    best = dict[tuple[int, ...], Hypothesis]()
    for found in every:
        best.setdefault(tuple(found.tokens), found)
    return list(best.values())


def best_of(found: list[list[Hypothesis]]) -> list[Hypothesis]:
    return [hypotheses[0] for hypotheses in found]


def assert_same(found: Hypothesis, expected: Hypothesis) -> None:
    assert (found.tokens, found.frames) == (expected.tokens, expected.frames)
    assert found.logps == pytest.approx(expected.logps, abs=1e-4)
    for name in ("score", "am_score", "lm_score"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-4)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("context", [1, 2, 3])
def test_the_best_sequences_are_the_best_of_all(seed: int, context: int) -> None:
    model = make(seed, context)
    enc_BTE, lengths_B = some_speech(seed, [5, 3, 1])
    for b, found in enumerate(fsa(model, enc_BTE, lengths_B, WIDE)):
        every = twin(model, enc_BTE[b, : lengths_B[b]])
        assert len(found) == min(len(every), WIDE)
        for one, expected in zip(found, every, strict=False):
            assert_same(one, expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lm_weight", [0.3, 1.5])
def test_with_an_ngram_they_are_too(seed: int, lm_weight: float, lm: Ngram) -> None:
    model = make(seed)
    enc_BTE, lengths_B = some_speech(seed, [5, 4])
    for b, found in enumerate(fsa(model, enc_BTE, lengths_B, WIDE, lm=lm, lm_weight=lm_weight)):
        for one, expected in zip(found, twin(model, enc_BTE[b, : lengths_B[b]], lm, lm_weight), strict=False):
            assert_same(one, expected)


def test_the_ngram_changes_what_is_found(lm: Ngram) -> None:
    """Or the tests above would compare nothing."""
    found = [best_of(fsa(make(1), *some_speech(1, [9] * 8), 8, lm=lm, lm_weight=weight)) for weight in (0.0, 1.5)]
    assert [h.tokens for h in found[0]] != [h.tokens for h in found[1]]


def test_without_weight_there_is_no_language_model(lm: Ngram) -> None:
    model, speech = make(2), some_speech(2, [7, 4])
    assert fsa(model, *speech, 8, lm=lm, lm_weight=0.0) == fsa(model, *speech, 8)


@pytest.mark.parametrize("threshold", [2.0, math.inf])
def test_an_utterance_does_not_see_the_others(threshold: float, lm: Ngram) -> None:
    model, lengths = make(4, blank=1.0), [9, 4, 1, 6]
    enc_BTE, lengths_B = some_speech(4, lengths)
    together = fsa(model, enc_BTE, lengths_B, 3, threshold, lm, 0.5)
    for b, frames in enumerate(lengths):
        (alone,) = fsa(model, enc_BTE[b : b + 1, :frames], lengths_B[b : b + 1], 3, threshold, lm, 0.5)
        for one, other in zip(together[b], alone, strict=True):
            assert_same(one, other)


def test_silence_has_no_labels_and_the_score_of_its_blanks() -> None:
    model = make(5, blank=100.0)
    for found in best_of(fsa(model, *some_speech(5, [6, 2]), 4)):
        assert (found.tokens, found.frames, found.logps) == ([], [], [])
        assert found.score == found.am_score == pytest.approx(0.0, abs=1e-4)


def test_no_frames_are_no_labels() -> None:
    enc_BTE, _ = some_speech(6, [4, 3])
    model = make(6)
    nothing, something = fsa(model, enc_BTE, torch.tensor([0, 3]), 8)
    assert nothing == [Hypothesis([], [], [], 0.0, 0.0, 0.0)]
    assert_same(something[0], twin(model, enc_BTE[1, :3])[0])


def test_a_narrow_beam_finds_no_better_path() -> None:
    model, speech = make(7), some_speech(7, [12, 9, 3])
    for narrow, wide in zip(best_of(fsa(model, *speech, 1, 1.0)), best_of(fsa(model, *speech, 64)), strict=True):
        assert narrow.score <= wide.score + 1e-6


def test_contexts_beyond_32_bits_are_told_apart() -> None:
    """8e9 of them: each label's score is that behind the last four."""
    model = make(12, context=4, vocab=300)
    enc_BTE, lengths_B = some_speech(12, [20, 9])
    for b, found in enumerate(best_of(fsa(model, enc_BTE, lengths_B, 8))):
        path = [0] * int(lengths_B[b])
        for frame, token in zip(found.frames, found.tokens, strict=True):
            path[frame] = token
        assert len(found.tokens) > 4
        assert_same(found, scored(model, enc_BTE[b, : lengths_B[b]], path))


def test_the_configuration_reaches_the_search(lm: Ngram) -> None:
    model, speech = make(8), some_speech(8, [9, 5])
    for threshold in (6.0, None):
        config = SearchConfig(type="fsa", beam=3, threshold=threshold, lm="ngram")
        expected = fsa(model, *speech, 3, threshold or math.inf, lm, 0.4)
        assert search(model, *speech, config, lm, 0.4) == expected


def test_every_label_sequence_scores_in_the_graph_as_in_the_ngram(lm: Ngram) -> None:
    """Walked arc by arc: there is one for each label, none without, and the scores are those of back-off by hand."""
    graph = label_graph(VOCAB, lm, 0.5, CPU)
    arcs = {(s, label): (after, i) for i, (s, after, label, _) in enumerate(graph.arcs.values().tolist())}
    assert len(arcs) == lm.num_states * (VOCAB - 1) + 1
    sequences = [list(s) for length in range(6) for s in itertools.product(range(1, VOCAB), repeat=length)]
    for labels, expected in zip(sequences, score_labels(lm, sequences), strict=True):
        state, total, weighted = 0, 0.0, 0.0
        for label in labels:
            state, arc = arcs[state, label]
            total += float(graph.lm_scores[arc])
            weighted += float(graph.scores[arc])
        assert total == pytest.approx(expected, abs=1e-4)
        assert weighted == pytest.approx(0.5 * expected, abs=1e-4)


def test_without_an_ngram_the_graph_is_k2s_trivial_one() -> None:
    ours, theirs = label_graph(VOCAB, None, 0.0, CPU), k2.trivial_graph(VOCAB - 1)
    assert torch.equal(ours.arcs.values()[:, :3], theirs.arcs.values()[:, :3])
    assert ours.scores.tolist() == [0.0, 0.0, 0.0, -math.inf]  # the final arc is never taken


def test_large_graphs_are_refused(lm: Ngram, monkeypatch: pytest.MonkeyPatch) -> None:
    label_graph.cache_clear()
    monkeypatch.setattr(fsa_graph, "MOST_ARCS", 2)
    with pytest.raises(
        ValueError, match=f"of {lm.num_states} states and 3 labels .* at most 2 are made: lower lm.order"
    ):
        fsa(make(9), *some_speech(9, [3]), 4, lm=lm, lm_weight=0.5)


def test_more_contexts_than_k2_can_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"contexts of 32 labels out of 4, .* lower predictor\.context"):
        fsa(make(10, context=32), *some_speech(10, [3]), 4)


def test_a_language_model_that_is_no_ngram_is_refused() -> None:
    config = SearchConfig.model_construct(**{**SearchConfig(type="fsa").model_dump(), "lm": "lstm"})
    with pytest.raises(ValueError, match="SimpleNamespace"):
        search(make(11), *some_speech(11, [3]), config, SimpleNamespace(), 0.5)  # type: ignore[arg-type]
