"""The equaliser against a loop over channels, what it must leave alone, and audio that really is louder."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrans.models.equalizer import FEATURE_A_DB, KNOTS, equalize
from kdtrans.models.features import log_mel


def slow_gain(gains_K: list[float], channel: int, channels: int) -> float:
    """The gain of one channel, by hand: on the line between the knots on both sides of it."""
    place = channel * (len(gains_K) - 1) / (channels - 1)
    below = min(int(place), len(gains_K) - 2)
    return gains_K[below] + (place - below) * (gains_K[below + 1] - gains_K[below])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), channels=st.integers(KNOTS, 100), widest=st.floats(0.1, 30.0))
def test_gains_are_those_of_a_loop(seed, channels, widest):
    torch.manual_seed(seed)
    gain_BFC = equalize(torch.zeros(2, 3, channels), torch.tensor([3, 3]), widest)
    torch.manual_seed(seed)
    for row, draw_K in enumerate(torch.rand(2, KNOTS)):
        gains_K = [widest * (2 * float(draw) - 1) for draw in draw_K]
        slow_C = FEATURE_A_DB * torch.tensor([slow_gain(gains_K, channel, channels) for channel in range(channels)])
        torch.testing.assert_close(gain_BFC[row], slow_C.expand(3, -1), rtol=1e-4, atol=1e-5)


def test_padding_stays_zero_and_the_seed_reproduces_the_gains():
    features, lengths = torch.randn(2, 20, 80), torch.tensor([20, 12])
    features[1, 12:] = 0.0
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(equalize(features, lengths, 6.0))
    assert not results[0][1, 12:].any()
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_gain_is_that_of_the_waveform(monkeypatch):
    waveform = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(torch, "rand", torch.ones)  # the widest gain on all channels
    louder = equalize(log_mel(waveform, 80)[None], torch.tensor([100]), 12.0)[0]
    torch.testing.assert_close(louder, log_mel(10 ** (12.0 / 20) * waveform, 80), rtol=0, atol=1e-3)
