"""The encoder loss against a loop over frames, and what must not matter to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdtrans.losses.encoder import encoder_loss

B, T, J = 3, 7, 5


def inputs(their_frames: int = T) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(B, T, J, generator=generator, dtype=torch.float64)
    return ours, torch.randn(B, their_frames, J, generator=generator)


def frame_by_frame(ours_TJ: Tensor, theirs_TJ: Tensor, shift: int) -> Tensor:
    """Its slow twin, for an utterance without padding."""
    total = torch.zeros((), dtype=torch.float64)
    for t, vector in enumerate(theirs_TJ.double()):
        if t + shift < len(ours_TJ):
            normal = (vector - vector.mean()) / (vector.var(correction=0) + 1e-5).sqrt()
            total += sum((a - b) ** 2 for a, b in zip(ours_TJ[t + shift], normal, strict=True)) / J
    return total


@pytest.mark.parametrize("shift", [0, 2, T, T + 3])
@pytest.mark.parametrize("their_frames", [T - 2, T, T + 1])
def test_it_is_the_loop_over_frames(their_frames: int, shift: int) -> None:
    ours, theirs = inputs(their_frames)
    our_frames, lengths = torch.tensor([T, 4, 1]), torch.tensor([their_frames, 3, 1])
    found = encoder_loss(ours, theirs, our_frames, lengths, shift)
    expected = [frame_by_frame(ours[b, : our_frames[b]], theirs[b, : lengths[b]], shift) for b in range(B)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_padding_and_the_teachers_scale_do_not_matter() -> None:
    ours, theirs = inputs()
    frames = torch.tensor([T, 5, 2])
    expected = encoder_loss(ours, theirs, frames, frames)
    padding = torch.arange(T)[:, None] >= frames[:, None, None]
    noisy = encoder_loss(
        ours.masked_fill(padding, torch.nan), (40.0 * theirs + 3.0).masked_fill(padding, 1e4), frames, frames
    )
    torch.testing.assert_close(noisy, expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_right_and_those_of_padding_are_0() -> None:
    ours, theirs = inputs()
    frames = torch.tensor([T, 5, 2])
    ours.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: encoder_loss(x, theirs, frames, frames, shift=1), ours)
    (gradient,) = torch.autograd.grad(encoder_loss(ours, theirs, frames, frames).sum(), ours)
    assert bool((gradient[1, 5:] == 0).all())
    assert bool((gradient[1, :5] != 0).all())
