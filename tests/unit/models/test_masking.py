"""Masks stay inside the utterance, keep to their number and width, and follow the seed."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrans.config import MaskingConfig
from kdtrans.models.masking import mask


def batch(lengths: list[int], channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features, zero beyond the lengths; no value is repeated, so a masked one shows."""
    features = [torch.randn(length, channels, dtype=torch.float64) for length in lengths]
    return torch.nn.utils.rnn.pad_sequence(features, batch_first=True), torch.tensor(lengths)


def runs(flags: list[bool]) -> list[int]:
    """Lengths of the stretches of true, counted one by one."""
    found = [0]
    for flag in flags:
        if flag:
            found[-1] += 1
        else:
            found.append(0)
    return [n for n in found if n]


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 1300), min_size=1, max_size=4),
    time_masks=st.integers(0, 3),
    width_ms=st.integers(0, 400),
    channel_masks=st.integers(0, 3),
    channel_width=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_masks_keep_to_the_configuration(lengths, time_masks, width_ms, channel_masks, channel_width, seed):
    config = MaskingConfig(
        time_masks=time_masks, time_width_ms=width_ms, channel_masks=channel_masks, channel_width=channel_width
    )
    torch.manual_seed(seed)
    features, lengths_B = batch(lengths, channels=9)
    masked = mask(features, lengths_B, config, frame_shift_ms=10.0)

    assert masked.shape == features.shape
    for b, length in enumerate(lengths):
        assert not masked[b, length:].any()
        changed = masked[b, :length] != features[b, :length]
        if length == 1 or changed.all():
            continue  # a single frame is its own mean; of a wholly masked utterance nobody can tell how it was done
        rows, channels = changed.all(1), changed.all(0)
        assert (changed == (rows[:, None] | channels)).all()  # nothing but whole frames and whole channels
        sets = math.ceil(length / 400)
        assert rows.sum() <= time_masks * sets * (width_ms // 10)
        assert len(runs(rows.tolist())) <= time_masks * sets
        assert channels.sum() <= channel_masks * int(channel_width * 9)
        assert len(runs(channels.tolist())) <= channel_masks
        mean = features[b, :length].mean(0).expand(length, -1)
        torch.testing.assert_close(masked[b, :length][changed], mean[changed])


def test_the_seed_reproduces_the_masks():
    features, lengths = batch([500, 900], channels=80)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(mask(features, lengths, MaskingConfig(), frame_shift_ms=10.0))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_zero_masks_change_nothing():
    features, lengths = batch([50, 90], channels=8)
    config = MaskingConfig(time_masks=0, channel_masks=0)
    assert torch.equal(mask(features, lengths, config, frame_shift_ms=10.0), features)


def test_widths_and_positions_are_uniform():
    """One mask of 0..3 of 10 frames: each width a quarter of the time, and the widest starts at each of 0..7."""
    torch.manual_seed(0)
    features, lengths = batch([10] * 20000, channels=1)
    config = MaskingConfig(time_masks=1, time_width_ms=30, channel_masks=0)
    rows = (mask(features, lengths, config, frame_shift_ms=10.0) != features)[:, :, 0]
    widths = torch.bincount(rows.sum(1), minlength=4) / len(rows)
    torch.testing.assert_close(widths, torch.full((4,), 0.25), atol=0.015, rtol=0)
    widest = rows[rows.sum(1) == 3]
    starts = torch.bincount(widest.int().argmax(1), minlength=8) / len(widest)
    torch.testing.assert_close(starts, torch.full((8,), 1 / 8), atol=0.02, rtol=0)


def test_gradients_reach_what_is_not_masked():
    features, lengths = batch([300], channels=20)
    features.requires_grad_()
    masked = mask(features, lengths, MaskingConfig(), frame_shift_ms=10.0)
    masked.sum().backward()
    assert features.grad is not None
    assert torch.equal(features.grad != 0, masked == features)
