"""The frequency warp against a loop over channels, what it must leave alone, and audio that really is warped."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrans.models.features import log_mel
from kdtrans.models.warp import warp_frequency, warped_channels


def slow_place(factor: float, channel: int, channels: int) -> float:
    """Where one channel reads from, by hand."""

    def to_mel(hz: float) -> float:
        return 1127.0 * math.log(1.0 + hz / 700.0)

    step = (to_mel(7600.0) - to_mel(20.0)) / (channels + 1)
    hz = 700.0 * (math.exp((to_mel(20.0) + step * (channel + 1)) / 1127.0) - 1.0)
    knee = 4800.0 * min(factor, 1.0) / factor
    if hz <= knee:
        source = factor * hz
    else:
        slope = (7600.0 - factor * knee) / (7600.0 - knee)
        source = factor * knee + slope * (hz - knee)
    return min(max((to_mel(source) - to_mel(20.0)) / step - 1.0, 0.0), channels - 1.0)


@settings(deadline=None, max_examples=60)
@given(factor=st.floats(0.5, 1.5), channels=st.integers(2, 100))
def test_places_are_those_of_a_loop(factor, channels):
    places = warped_channels(torch.tensor([factor], dtype=torch.float64), channels)[0]
    slow = torch.tensor([slow_place(factor, channel, channels) for channel in range(channels)], dtype=torch.float64)
    torch.testing.assert_close(places, slow, rtol=0, atol=1e-3)
    assert (places.diff() >= 0).all()  # no channel overtakes another


def test_a_factor_of_one_reads_every_channel_from_itself():
    places = warped_channels(torch.ones(1), 80)[0]
    torch.testing.assert_close(places, torch.arange(80.0), rtol=0, atol=1e-3)


def test_padding_stays_zero_and_time_stays():
    features = torch.randn(3, 20, 80)
    features[1, 12:] = 0.0
    warped = warp_frequency(features, 0.2)
    assert warped.shape == features.shape
    assert not warped[1, 12:].any()
    # A frame's new channels are made of its own old ones: permuting frames before or after is the same.
    torch.manual_seed(1)
    one = warp_frequency(features.flip(1), 0.2)
    torch.manual_seed(1)
    torch.testing.assert_close(one, warp_frequency(features, 0.2).flip(1))


def test_the_seed_reproduces_the_warp():
    features = torch.randn(2, 30, 80)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(warp_frequency(features, 0.1))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.25])
def test_a_tone_moves_to_the_frequency_that_the_warp_says(factor, monkeypatch):
    def tone(hz: float) -> torch.Tensor:
        return log_mel(0.3 * torch.sin(2 * math.pi * hz * torch.arange(16000) / 16000), 80)

    draw = factor - 0.5  # which makes it with widest = 0.5: 1 + 0.5 (2 draw - 1) = factor
    monkeypatch.setattr(torch, "rand", lambda n: torch.full((n,), draw))
    warped = warp_frequency(tone(1500.0)[None], 0.5)[0]
    moved = tone(1500.0 / factor)
    assert abs(int(warped[50].argmax()) - int(moved[50].argmax())) <= 1
