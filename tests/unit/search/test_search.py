"""Searches against slow twins that walk one hypothesis at a time, and against enumeration."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdtrans.config import PredictorConfig, SearchConfig
from kdtrans.models.ngram import Ngram
from kdtrans.models.ngram_estimate import estimate
from kdtrans.models.predictor import build_predictor
from kdtrans.models.transducer import Transducer
from kdtrans.search.beam import beam
from kdtrans.search.greedy import greedy
from kdtrans.search.hypothesis import Hypothesis, path_of
from kdtrans.search.search import search
from tests.unit.models.test_ngram import built

DIM = 6


class Passing(nn.Module):
    dim = DIM

    def forward(self, features_BFC: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        return features_BFC, lengths_B


def make(seed: int, vocab: int = 5, scale: float = 3.0, blank: float = 1.0, kind: str = "lstm") -> Transducer:
    torch.manual_seed(seed)
    config = PredictorConfig.model_validate({"type": kind, "dim": 8})
    model = Transducer(Passing(), build_predictor(vocab, config), 8, vocab).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        model.joiner.output.weight *= scale
        model.joiner.output.bias[0] += blank
    return model


def some_speech(seed: int, lengths: list[int]) -> tuple[Tensor, Tensor]:
    enc_BTE = 3 * torch.randn(len(lengths), max(lengths), DIM, generator=torch.Generator().manual_seed(seed))
    return enc_BTE, torch.tensor(lengths)


@torch.no_grad()
def node(model: Transducer, enc_E: Tensor, labels: tuple[int, ...]) -> Tensor:
    """Log-probabilities (V,) at one node, from the whole prefix at once."""
    pred = model.predictor(torch.tensor([list(labels)], dtype=torch.long))[0, -1]
    return model.joiner(model.project_encoder(enc_E), model.project_predictor(pred)).double().log_softmax(-1)


def slow_greedy(model: Transducer, enc_TE: Tensor, max_symbols: int) -> Hypothesis:
    tokens: list[int] = []
    frames: list[int] = []
    logps: list[float] = []
    score = 0.0
    for t, enc_E in enumerate(enc_TE):
        while True:
            logp = node(model, enc_E, tuple(tokens))
            token = int(logp.argmax()) if frames.count(t) < max_symbols else 0
            score += float(logp[token])
            if token == 0:
                break
            tokens.append(token)
            frames.append(t)
            logps.append(float(logp[token]))
    return Hypothesis(tokens, frames, logps, score, score, 0.0)


def path_logp(model: Transducer, enc_TE: Tensor, path: list[int]) -> float:
    t, labels, total = 0, (), 0.0
    for token in path:
        total += float(node(model, enc_TE[t], labels)[token])
        t, labels = (t + 1, labels) if token == 0 else (t, (*labels, token))
    return total


def full_sums(model: Transducer, enc_TE: Tensor, max_symbols: int) -> dict[tuple[int, ...], float]:
    """Log-probability of every label sequence, by walking every path."""
    sums: dict[tuple[int, ...], float] = {(): 0.0}
    bursts = [
        burst for m in range(max_symbols + 1) for burst in itertools.product(range(1, model.vocab_size), repeat=m)
    ]
    for enc_E in enc_TE:
        grown: dict[tuple[int, ...], float] = defaultdict(float)
        cache = {}
        for labels, logp in sums.items():
            for burst in bursts:
                total = logp
                for i, token in enumerate((*burst, 0)):
                    prefix = labels + burst[:i]
                    if prefix not in cache:
                        cache[prefix] = node(model, enc_E, prefix)
                    total += float(cache[prefix][token])
                grown[labels + burst] += math.exp(total)
        sums = {labels: math.log(p) for labels, p in grown.items()}
    return sums


def assert_same(one: Hypothesis, other: Hypothesis) -> None:
    assert (one.tokens, one.frames) == (other.tokens, other.frames)
    assert one.logps == pytest.approx(other.logps, abs=1e-4)
    found = (one.score, one.am_score, one.lm_score)
    assert found == pytest.approx((other.score, other.am_score, other.lm_score), abs=1e-4)


def small_lm(vocab: int) -> Ngram:
    pieces = ["<blank>", "<unk>", *"abcdefgh"][:vocab]
    sentences = [["a"], ["a", "b", "a"], ["b", "b", "a"]]
    return built(estimate([[w for w in sentence if w in pieces] for sentence in sentences], 3), pieces)


# a seed, frames of each utterance, max_symbols, predictor
SEARCHED = (
    st.integers(0, 1000),
    st.lists(st.integers(1, 20), min_size=1, max_size=4),
    st.integers(1, 3),
    st.sampled_from(["lstm", "stateless"]),
)


@settings(deadline=None, max_examples=25)
@given(*SEARCHED)
def test_greedy_is_its_twin(seed: int, lengths: list[int], max_symbols: int, kind: str) -> None:
    model = make(seed, kind=kind)
    enc_BTE, lengths_B = some_speech(seed, lengths)
    for b, hypothesis in enumerate(greedy(model, enc_BTE, lengths_B, max_symbols)):
        assert_same(hypothesis, slow_greedy(model, enc_BTE[b, : lengths[b]], max_symbols))
        assert hypothesis.am_score == pytest.approx(
            path_logp(model, enc_BTE[b], path_of(hypothesis, lengths[b])), abs=1e-4
        )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lm_weight", [0.0, 0.7])
def test_a_wide_beam_finds_every_label_sequence_with_its_full_sum(seed: int, lm_weight: float) -> None:
    vocab, frames, max_symbols = 3, 3, 2
    model, lm = make(seed, vocab, blank=0.0), small_lm(vocab)
    enc_BTE, lengths_B = some_speech(seed, [frames, frames - 1])
    results = beam(model, enc_BTE, lengths_B, 400, max_symbols, lm, lm_weight)
    for b, hypotheses in enumerate(results):
        expected = full_sums(model, enc_BTE[b, : lengths_B[b]], max_symbols)
        found = {tuple(h.tokens): h for h in hypotheses}
        assert len(found) == len(hypotheses)
        assert found.keys() == expected.keys()
        for labels, logp in expected.items():
            assert found[labels].am_score == pytest.approx(logp, abs=1e-4)
            state, total = lm.start(1), 0.0
            for token in labels:
                total += float(lm.score(state)[0, token])
                state = lm.advance(state, torch.tensor([token]))
            if lm_weight:
                assert found[labels].lm_score == pytest.approx(total, abs=1e-4)
            assert found[labels].score == pytest.approx(logp + lm_weight * total, abs=1e-4)
        best = max(expected, key=lambda labels: found[labels].score)
        assert found[best] is hypotheses[0]
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)


@settings(deadline=None, max_examples=25)
@given(*SEARCHED, st.sampled_from([math.inf, 6.0]))
def test_a_beam_of_one_is_greedy(seed: int, lengths: list[int], max_symbols: int, kind: str, threshold: float) -> None:
    model = make(seed, kind=kind)
    enc_BTE, lengths_B = some_speech(seed, lengths)
    found = beam(model, enc_BTE, lengths_B, 1, max_symbols, threshold=threshold)
    for [alone], hypothesis in zip(found, greedy(model, enc_BTE, lengths_B, max_symbols), strict=True):
        assert_same(alone, hypothesis)


class LastLabel(nn.Module):
    """A predictor that knows the last label, one-hot."""

    dim = DIM

    def forward(self, labels_BU: Tensor) -> Tensor:
        return nn.functional.one_hot(nn.functional.pad(labels_BU, (1, 0)), DIM).float()

    def start(self, batch: int) -> tuple[Tensor, Tensor]:
        return self.step(torch.zeros(batch, dtype=torch.long), torch.zeros(batch, 1))

    def step(self, label_B: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.one_hot(label_B, DIM).float(), state


class Speaking(nn.Module):
    """A joiner that emits what the frame says unless it is the last label, nearly certain of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder_projection, self.predictor_projection = nn.Identity(), nn.Identity()

    def forward(self, enc: Tensor, pred: Tensor) -> Tensor:
        return enc - 20 * pred * (torch.arange(DIM) > 0)


def nearly_certain(seed: int, lengths: list[int]) -> tuple[Transducer, Tensor, Tensor]:
    model = make(seed, vocab=DIM)
    model.predictor, model.joiner = LastLabel(), Speaking()  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(seed)
    said_BT = torch.randint(0, DIM, (len(lengths), max(lengths)), generator=generator)
    enc_BTE = 14.0 * nn.functional.one_hot(said_BT, DIM) + torch.randn(*said_BT.shape, DIM, generator=generator)
    enc_BTE[..., 0] += 7.0
    return model, enc_BTE, torch.tensor(lengths)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 5))
def test_no_beam_loses_a_greedy_path_with_more_than_half_of_the_probability(seed: int, width: int) -> None:
    # The path's prefixes have more than half of the probability too, so that they lead every ranking on the way.
    model, enc_BTE, lengths_B = nearly_certain(seed, [20, 5, 2])
    decoded = greedy(model, enc_BTE, lengths_B, 3)
    assert len(decoded[0].tokens) > 5
    assert decoded[0].am_score > math.log(0.5)
    for hypothesis, found in zip(decoded, beam(model, enc_BTE, lengths_B, width, 3), strict=True):
        if hypothesis.am_score > math.log(0.5):
            assert (found[0].tokens, found[0].frames) == (hypothesis.tokens, hypothesis.frames)
            assert found[0].am_score >= hypothesis.am_score - 1e-6


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.permutations(range(4)), st.sampled_from([0.0, 0.5]))
def test_an_utterance_does_not_see_the_others(seed: int, permutation: list[int], lm_weight: float) -> None:
    model, lm = make(seed, scale=8.0), small_lm(5)
    lengths = [7, 3, 12, 1]
    enc_BTE, lengths_B = some_speech(seed, lengths)

    def both(rows: list[int], frames: int) -> list[list[Hypothesis]]:
        enc, lengths = enc_BTE[rows, :frames], lengths_B[rows]
        wide = beam(model, enc, lengths, 3, 2, lm, lm_weight)
        return [[g, *w] for g, w in zip(greedy(model, enc, lengths, 2), wide, strict=True)]

    together = both([0, 1, 2, 3], 12)
    permuted = both(list(permutation), 12)
    for place, b in enumerate(permutation):
        for other in (permuted[place], both([b], lengths[b])[0]):
            for mine, theirs in zip(together[b], other, strict=True):
                assert_same(mine, theirs)


def test_weight_zero_is_no_language_model() -> None:
    model, (enc_BTE, lengths_B) = make(1), some_speech(1, [10, 6])
    assert beam(model, enc_BTE, lengths_B, 4, 3, small_lm(5), 0.0) == beam(model, enc_BTE, lengths_B, 4, 3)


@pytest.mark.parametrize("lm_weight", [0.0, 0.4])
def test_n_best_are_distinct_sorted_and_consistent(lm_weight: float) -> None:
    model, (enc_BTE, lengths_B) = make(2, scale=8.0), some_speech(2, [15, 8])
    for b, hypotheses in enumerate(beam(model, enc_BTE, lengths_B, 6, 2, small_lm(5), lm_weight)):
        assert len({tuple(h.tokens) for h in hypotheses}) == len(hypotheses) == 6
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        for h in hypotheses:
            path = path_of(h, int(lengths_B[b]))
            assert h.score == pytest.approx(h.am_score + lm_weight * h.lm_score)
            assert path_logp(model, enc_BTE[b], path) <= h.am_score + 1e-4  # merged paths only add
            assert max(h.frames.count(t) for t in range(15)) <= 2


@given(st.integers(1, 8), st.lists(st.tuples(st.integers(0, 7), st.integers(1, 9)), max_size=6))
def test_path_round_trips(num_frames: int, labels: list[tuple[int, int]]) -> None:
    labels = sorted(((frame % num_frames, token) for frame, token in labels), key=lambda label: label[0])
    hypothesis = Hypothesis([k for _, k in labels], [t for t, _ in labels], [0.0] * len(labels), 0.0, 0.0, 0.0)
    path = path_of(hypothesis, num_frames)
    assert (len(path), path.count(0), path[-1]) == (num_frames + len(labels), num_frames, 0)
    assert [(path[:n].count(0), k) for n, k in enumerate(path) if k] == labels


@pytest.mark.parametrize("frames", [[2, 1], [0, 4], [-1, 0]])
def test_impossible_paths_are_refused(frames: list[int]) -> None:
    with pytest.raises(ValueError, match="do not make a path over 4 frames"):
        path_of(Hypothesis([1, 2], frames, [0.0, 0.0], 0.0, 0.0, 0.0), 4)


def test_search_dispatches() -> None:
    model, (enc_BTE, lengths_B) = make(3), some_speech(3, [5, 4])
    assert search(model, enc_BTE, lengths_B, SearchConfig()) == [[h] for h in greedy(model, enc_BTE, lengths_B, 5)]
    config = SearchConfig(type="beam", beam=3, lm="ngram", threshold=None)
    found = search(model, enc_BTE, lengths_B, config, small_lm(5), 0.3)
    assert found == beam(model, enc_BTE, lengths_B, 3, 5, small_lm(5), 0.3)
    assert search(model, enc_BTE, lengths_B, SearchConfig(type="beam", threshold=None), small_lm(5), 0.3) == beam(
        model, enc_BTE, lengths_B, 4, 5
    )
    with pytest.raises(ValueError, match="no language model was given"):
        search(model, enc_BTE, lengths_B, config)
    with pytest.raises(ValueError, match="negative"):
        search(model, enc_BTE, lengths_B, config, small_lm(5), -1.0)
