"""The two-pass pruned loss: its simple lattice is that of the added logits, and its band that of the mass."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdtrans.losses.band import occupation_band
from kdtrans.losses.pruned import pruned_transducer_loss, simple_scores
from kdtrans.losses.transducer import on_grid, transducer_loss
from tests.unit.lattice.twins import total_by_enumeration
from tests.unit.losses.test_fused import SHAPES, Material, V

batches = st.lists(st.tuples(st.integers(1, 7), st.integers(0, 6)), min_size=1, max_size=3)


class Simple:
    """What the simple joiner adds."""

    def __init__(self, it: Material, scale: float = 1.0) -> None:
        (batch, frames, _), columns = it.enc.shape, it.pred.shape[1]
        self.am = (scale * torch.randn(batch, frames, V, dtype=torch.float64)).requires_grad_()
        self.lm = (scale * torch.randn(batch, columns, V, dtype=torch.float64)).requires_grad_()

    def added(self) -> Tensor:
        return self.am[:, :, None] + self.lm[:, None]


def pruned(it: Material, simple: Simple, width: int, **options: Any) -> tuple[Tensor, Tensor]:
    inputs = (it.enc, it.pred, simple.am, simple.lm, it.labels, it.frames, it.lengths)
    return pruned_transducer_loss(it.joiner, it.joiner.parameters(), *inputs, width=width, **options)


@pytest.mark.parametrize(("frames", "lengths"), SHAPES)
@pytest.mark.parametrize("earlier", [(0.0, 0.0), (0.3, 0.2)])
def test_without_smoothing_and_pruning_both_are_losses_of_whole_grids(
    frames: list[int], lengths: list[int], earlier: tuple[float, float]
) -> None:
    it = Material(frames, lengths)
    simple = Simple(it)
    weights = torch.arange(1.0, len(frames) + 1, dtype=torch.float64)
    simple_B, pruned_B = pruned(
        it, simple, max(lengths) + 1, smoothing=0.0, fastemit=earlier[0], delay_penalty=earlier[1]
    )
    added_B = transducer_loss(simple.added(), it.labels, it.frames, it.lengths, *earlier)
    whole_B = it.whole(*earlier)
    torch.testing.assert_close(simple_B, added_B)
    torch.testing.assert_close(pruned_B, whole_B)
    used = (*it.used, simple.am, simple.lm)
    ours, theirs = (
        torch.autograd.grad(((a + 2 * b) * weights).sum(), used) for a, b in ((simple_B, pruned_B), (added_B, whole_B))
    )
    torch.testing.assert_close(ours, theirs)


def test_smoothed_scores_by_hand() -> None:
    it = Material([4, 3], [2, 3])
    simple = Simple(it, scale=3.0)
    blank, label = simple_scores(simple.am, simple.lm, it.labels, 0.3)
    both = 0.7 * simple.added().log_softmax(-1) + 0.3 * simple.lm.log_softmax(-1)[:, None]
    torch.testing.assert_close(blank, both[..., 0])
    for u in range(it.labels.shape[1]):
        for b in range(2):
            torch.testing.assert_close(label[b, :, u], both[b, :, u, it.labels[b, u]])


def test_scores_stay_finite_where_am_and_lm_disagree() -> None:
    am, lm = torch.full((1, 2, 3), -400.0), torch.full((1, 2, 3), -300.0)
    am[..., 1], lm[..., 2] = 0.0, 0.0
    blank, label = simple_scores(am, lm, torch.tensor([[1]]), 0.0)
    expected = (am[:, :, None] + lm[:, None]).double().log_softmax(-1)
    torch.testing.assert_close(blank, expected[..., 0])
    torch.testing.assert_close(label, expected[:, :, :-1, 1])


@settings(deadline=None, max_examples=30)
@given(batches, st.integers(1, 8), st.integers(0, 99))
def test_band_is_connected_monotone_and_wide(shape: list[tuple[int, int]], width: int, seed: int) -> None:
    """Arcs of any mass, also such as no lattice has."""
    torch.manual_seed(seed)
    frames, lengths = (torch.tensor(sizes) for sizes in zip(*shape, strict=True))
    size = (int(frames.max()), int(lengths.max()) + 1)
    arcs = torch.rand(len(shape), *size) ** 6, torch.rand(len(shape), size[0], size[1] - 1) ** 6
    band = occupation_band(*arcs, frames, lengths, width)
    assert not (band & ~on_grid(frames, lengths, *size)).any()
    for b, (num_frames, length) in enumerate(shape):
        inside = [row.nonzero()[:, 0].tolist() for row in band[b, :num_frames]]
        assert inside[0][0] == 0
        assert inside[-1][-1] == length
        for columns in inside:
            assert columns == list(range(columns[0], columns[-1] + 1))
            assert len(columns) >= min(width, length + 1)
        for before, after in pairwise(inside):
            assert before[0] <= after[0] <= before[-1] <= after[-1]
    whole = occupation_band(*arcs, frames, lengths, size[1])
    assert torch.equal(whole, on_grid(frames, lengths, *size))


def test_band_keeps_the_windows_where_most_paths_stay() -> None:
    """By hand: a label on each of three frames, and a path with all labels on the second, which is wide there."""
    frames, lengths = torch.tensor([3]), torch.tensor([3])
    blank = torch.tensor([[[0.1, 0.9, 0.0, 0.0], [0.0, 0.2, 0.8, 0.0], [0.0, 0.0, 0.0, 1.0]]])
    label = torch.tensor([[[0.9, 0.0, 0.0], [0.1, 0.8, 0.0], [0.0, 0.2, 1.0]]])
    band = occupation_band(blank, label, frames, lengths, 2)
    assert band[0].int().tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    blank = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]]])
    label = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]])
    band = occupation_band(blank, label, frames, lengths, 2)
    assert band[0].int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]]


@settings(deadline=None, max_examples=15)
@given(batches, st.integers(1, 4), st.integers(0, 99))
def test_pruned_loss_is_that_of_the_paths_in_the_band(shape: list[tuple[int, int]], width: int, seed: int) -> None:
    it = Material([t for t, _ in shape[:2]], [u for _, u in shape[:2]], seed)
    simple = Simple(it)
    bands: list[Tensor] = []
    original = occupation_band

    def spy(*args: Any) -> Tensor:
        bands.append(original(*args))
        return bands[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdtrans.losses.pruned.occupation_band", spy)
        _, pruned_B = pruned(it, simple, width)
    logp = it.joiner(it.enc[:, :, None], it.pred[:, None]).log_softmax(-1)
    logp = logp.masked_fill(~bands[0][..., None], -1e4)  # a path off the band is as good as impossible
    for b in range(len(pruned_B)):
        t, u = int(it.frames[b]), int(it.lengths[b])
        torch.testing.assert_close(pruned_B[b], -total_by_enumeration(logp[b, :t], it.labels[b, :u].tolist()))


def test_gradcheck() -> None:
    it = Material([3, 2], [1, 2])
    simple = Simple(it)

    def loss(am: Tensor, lm: Tensor) -> Tensor:
        inputs = (it.enc, it.pred, am, lm, it.labels, it.frames, it.lengths)
        return pruned_transducer_loss(it.joiner, (), *inputs, width=9, smoothing=0.25, delay_penalty=0.2)[0]

    assert torch.autograd.gradcheck(loss, (simple.am, simple.lm))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width 0"),
        ({"smoothing": 1.5}, "smoothing is 1.5"),
        ({"lm": lambda lm: lm[:, :-1]}, "simple encoder and predictor"),
        ({"lm": lambda lm: lm[..., :-1]}, "one vocabulary"),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], message: str) -> None:
    it = Material([3, 2], [1, 2])
    simple = Simple(it)
    simple.lm = change.pop("lm", lambda lm: lm)(simple.lm)
    with pytest.raises(ValueError, match=message):
        pruned(it, simple, **({"width": 3} | change))
