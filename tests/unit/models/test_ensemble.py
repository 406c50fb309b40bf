"""An ensemble against the mean of its members, node by node; what it shares with any transducer; refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdtrans.config import PredictorConfig
from kdtrans.models.ensemble import Ensemble
from kdtrans.models.predictor import build_predictor
from kdtrans.models.transducer import Encoder, Transducer
from kdtrans.search.beam import beam
from kdtrans.search.greedy import greedy

HOP = 100  # samples of a frame


class Framed(Encoder):
    """Frames of HOP samples, mapped; its features are scaled by `gain`, and `dropped` samples short."""

    def __init__(self, dim: int, gain: float = 1.0, dropped: int = 0) -> None:
        super().__init__()
        self.dim, self.gain, self.dropped = dim, gain, dropped
        self.map = torch.nn.Linear(HOP, dim)

    def extract(self, waveform_S: Tensor) -> Tensor:
        if len(waveform_S) < HOP:
            raise ValueError("too short")
        samples = len(waveform_S) - self.dropped
        return self.gain * waveform_S[: samples // HOP * HOP].view(-1, HOP)

    def forward(self, features_BFC: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        return self.map(features_BFC), lengths_B


def made(seed: int, kind: str, width: int, vocab: int = 5, dropped: int = 0) -> Transducer:
    """A transducer that is of two minds about labels; width differs from model to model."""
    torch.manual_seed(seed)
    predictor = build_predictor(vocab, PredictorConfig.model_validate({"type": kind, "dim": 2 * width}))
    model = Transducer(Framed(width, gain=float(seed + 1), dropped=dropped), predictor, 3 * width, vocab).eval()
    with torch.no_grad():
        model.joiner.output.weight *= 3.0
    model.fingerprint = f"{seed}" * 4
    return model


def waveforms(seed: int, frames: list[int]) -> tuple[Tensor, Tensor]:
    """Zero-padded waveforms (B, S, 1) and their samples, some of which fill no frame."""
    lengths_B = torch.tensor([HOP * count + 7 * i for i, count in enumerate(frames)])
    wave_BS1 = torch.randn(len(frames), int(lengths_B.max()), 1, generator=torch.Generator().manual_seed(seed))
    for wave_S1, samples in zip(wave_BS1, lengths_B.tolist(), strict=True):
        wave_S1[samples:] = 0.0
    return wave_BS1, lengths_B


MEMBERS = [made(0, "lstm", 4), made(1, "stateless", 3), made(2, "lstm", 5)]


@torch.no_grad()
def grid_of(model: Transducer, features_BFC: Tensor, lengths_B: Tensor, labels_BU: Tensor) -> Tensor:
    """Probabilities (B, T, U + 1, V) at every node."""
    enc_BTE, _ = model.encode(features_BFC, lengths_B)
    grid = model.grid(model.project_encoder(enc_BTE), model.project_predictor(model.predictor(labels_BU)))
    return grid.double().softmax(-1)


def features_of(model: Transducer, wave_BS1: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """What `inference_batches` makes of the audio for one model."""
    pairs = zip(wave_BS1, lengths_B.tolist(), strict=True)
    features = [model.encoder.extract(wave_S1[:samples, 0]) for wave_S1, samples in pairs]
    return torch.nn.utils.rnn.pad_sequence(features, batch_first=True), torch.tensor([len(x) for x in features])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 4), st.data())
def test_every_node_has_the_mean_of_the_members_probabilities(
    seed: int, frames: list[int], labels: int, data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.sampled_from(MEMBERS), min_size=1, max_size=3))
    wave_BS1, samples_B = waveforms(seed, frames)
    labels_BU = torch.randint(1, 5, (len(frames), labels), generator=torch.Generator().manual_seed(seed))
    ensemble = Ensemble(chosen)
    found_BTUV = grid_of(ensemble, *features_of(ensemble, wave_BS1, samples_B), labels_BU)
    each = [grid_of(model, *features_of(model, wave_BS1, samples_B), labels_BU) for model in chosen]
    mean_BTUV = sum(each, torch.zeros(())) / len(each)
    for found_TUV, mean_TUV, count in zip(found_BTUV, mean_BTUV, frames, strict=True):
        torch.testing.assert_close(found_TUV[:count], mean_TUV[:count], atol=1e-6, rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3), st.integers(1, 5))
def test_label_by_label_the_predictors_say_the_same(seed: int, batch: int, labels: int) -> None:
    """Also for rows that a search has put into another order."""
    predictor = Ensemble(MEMBERS).predictor
    generator = torch.Generator().manual_seed(seed)
    labels_BU = torch.randint(1, 5, (batch, labels), generator=generator)
    order_B = torch.randperm(batch, generator=generator)
    with torch.no_grad():
        whole_BUP = predictor(labels_BU)
        output_BP, state = predictor.start(batch)
        for u in range(labels):
            torch.testing.assert_close(output_BP, whole_BUP[:, u])
            whole_BUP, labels_BU, state = whole_BUP[order_B], labels_BU[order_B], state[order_B]
            output_BP, state = predictor.step(labels_BU[:, u], state)
        torch.testing.assert_close(output_BP, whole_BUP[:, labels])


@torch.no_grad()
def slow_greedy(enc: list[Tensor], max_symbols: int) -> list[int]:
    """Greedy search by the members' mean, each asked about the whole prefix at every node; enc: (T, E) of each."""
    labels: list[int] = []
    for t in range(len(enc[0])):
        for _ in range(max_symbols):
            p_V = torch.zeros(5, dtype=torch.double)
            for model, enc_TE in zip(MEMBERS, enc, strict=True):
                pred_P = model.predictor(torch.tensor([labels], dtype=torch.long))[0, -1]
                logits_V = model.joiner(model.project_encoder(enc_TE[t]), model.project_predictor(pred_P))
                p_V += logits_V.double().softmax(-1) / len(MEMBERS)
            if int(p_V.argmax()) == 0:
                break
            labels.append(int(p_V.argmax()))
    return labels


@pytest.mark.parametrize("seed", range(8))
def test_searches_take_an_ensemble(seed: int) -> None:
    """Greedy search against its slow twin; a beam of one finds the same; a wide one nothing less probable."""
    wave_BS1, samples_B = waveforms(seed, [6, 9, 2])
    ensemble = Ensemble(MEMBERS)
    with torch.no_grad():
        enc_BTE, frames_B = ensemble.encode(*features_of(ensemble, wave_BS1, samples_B))
        each = [model.encode(*features_of(model, wave_BS1, samples_B))[0] for model in MEMBERS]
    found = greedy(ensemble, enc_BTE, frames_B, max_symbols=2)
    for i, hypothesis in enumerate(found):
        assert hypothesis.tokens == slow_greedy([enc[i, : frames_B[i]] for enc in each], max_symbols=2)
    (narrow, wide) = (beam(ensemble, enc_BTE, frames_B, width, max_symbols=2) for width in (1, 8))
    assert [nbest[0].tokens for nbest in narrow] == [hypothesis.tokens for hypothesis in found]
    assert all(w[0].am_score > n[0].am_score - 1e-4 for w, n in zip(wide, narrow, strict=True))


def test_it_says_who_its_members_are_and_counts_what_decoding_uses() -> None:
    ensemble = Ensemble(MEMBERS)
    assert ensemble.fingerprint == "0000+1111+2222"
    assert ensemble.num_parameters == sum(model.num_parameters for model in MEMBERS)
    assert not ensemble.training


def test_log_probabilities_stay_finite_where_a_member_gives_none() -> None:
    """One member is sure of a class as far as fp32 goes, another of another one: each has a half."""
    sure = [made(seed, "stateless", 3) for seed in (0, 1)]
    for label, model in enumerate(sure, start=1):
        with torch.no_grad():
            model.joiner.output.weight.zero_()
            model.joiner.output.bias.fill_(-1e4)
            model.joiner.output.bias[label] = 1e4
    logp_V = Ensemble(sure).joiner(torch.zeros(18), torch.zeros(18))
    assert logp_V[1:3].tolist() == pytest.approx([math.log(0.5)] * 2)
    assert bool((logp_V[3:] < -1e3).all())


def test_models_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="vocabularies of 5 and 7 tokens"):
        Ensemble([made(0, "lstm", 4), made(1, "lstm", 4, vocab=7)])
    ensemble = Ensemble([MEMBERS[0], made(1, "lstm", 4, dropped=HOP)])
    with pytest.raises(ValueError, match="600 samples are 6 frames of the first model and 5 of model 2"):
        ensemble.encode(*waveforms(0, [6, 3]))
    with pytest.raises(ValueError, match="too short"):
        ensemble.encoder.extract(torch.zeros(HOP - 1))
