"""Bands hold their path, are connected and nested; the banded loss sums over the paths in the band, and no other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdtrans.lattice.path import nodes
from kdtrans.losses.band import path_band
from kdtrans.losses.fused import fused_transducer_loss
from kdtrans.losses.grid import Cells
from tests.unit.lattice.twins import every_path, path_score
from tests.unit.losses.test_fused import Material


def cells_of(paths: list[Tensor | None]) -> Cells:
    """Nodes of the paths of a batch; None has no path."""
    found = [(torch.full((len(path),), b), *nodes(path)) for b, path in enumerate(paths) if path is not None]
    empty = torch.zeros(0, dtype=torch.long)
    return Cells(*(torch.cat(parts) for parts in zip((empty, empty, empty), *found, strict=True)))


@st.composite
def paths(draw: st.DrawFn, frames: int = 12, labels: int = 40) -> Tensor:
    """A path with up to several labels a frame, bunched or spread; its last token is the last blank."""
    num_frames = draw(st.integers(1, frames))
    emission = draw(st.lists(st.integers(0, num_frames - 1), max_size=draw(st.integers(0, labels))))
    path = torch.zeros(num_frames + len(emission), dtype=torch.long)
    path[torch.tensor(sorted(emission), dtype=torch.long) + torch.arange(len(emission))] = 1
    return path


def band_of(path: Tensor, width: int, margin: int, cells: Cells | None = None) -> Tensor:
    """The band (T, U + 1) of one path."""
    num_frames = int((path == 0).sum())
    T, U = torch.tensor([num_frames]), torch.tensor([len(path) - num_frames])
    return path_band(cells or cells_of([path]), T, U, num_frames, int(U) + 1, width, margin)[0]


def inside(band_TU: Tensor, path: list[int]) -> bool:
    t, u = nodes(torch.tensor(path))
    return bool(band_TU[t, u].all())


def edges(band_TU: Tensor) -> tuple[Tensor, Tensor]:
    """The least and greatest u of every frame; the band is contiguous between them."""
    low, count = band_TU.int().argmax(1), band_TU.sum(1)
    high = low + count - 1
    assert (count >= 1).all()
    assert all(band_TU[t, low[t] : high[t] + 1].all() for t in range(len(low)))
    return low, high


@settings(deadline=None, max_examples=150)
@given(paths(), st.integers(1, 12), st.integers(0, 5))
def test_any_band_holds_its_path_is_monotone_connected_and_as_wide_as_asked(
    path: Tensor, width: int, margin: int
) -> None:
    band = band_of(path, width, margin)
    assert inside(band, path.tolist())
    low, high = edges(band)
    assert (low.diff() >= 0).all()
    assert (high.diff() >= 0).all()
    assert (low[1:] <= high[:-1]).all(), "blank leads from every frame's band into the next"
    columns = band.shape[1]
    t_N, u_N = nodes(path)
    for t in range(len(low)):
        around_N = u_N[(t_N - t).abs() <= margin]
        assert band[t, around_N].all()
        least = min(width, columns)
        assert max(least, len(around_N.unique())) <= int(high[t] - low[t] + 1) <= least + len(around_N.unique())
        if margin == 0:
            assert int(high[t] - low[t] + 1) == max(least, len(around_N))
    assert (band_of(path, width + 1, margin) >= band).all(), "bands of growing width are nested"
    assert (band_of(path, width, margin + 1) >= band).all(), "bands of growing margin are nested"
    assert band_of(path, columns, margin).all()


@settings(deadline=None, max_examples=60)
@given(paths(), st.integers(1, 6), st.integers(0, 3), st.integers(-4, 4))
def test_a_shifted_path_is_completed(path: Tensor, width: int, margin: int, shift: int) -> None:
    """Nodes that fall off at either end leave a band that is connected and leads from the first node to the last."""
    num_frames = int((path == 0).sum())
    cells = cells_of([path])
    t_N = cells.t_N + shift
    keep_N = (t_N >= 0) & (t_N < num_frames)
    kept = Cells(cells.utterance_N[keep_N], t_N[keep_N], cells.u_N[keep_N])
    band = band_of(path, width, margin, kept)
    low, high = edges(band)
    assert band[0, 0]
    assert band[-1, -1]
    assert band[kept.t_N, kept.u_N].all()
    assert (low.diff() >= 0).all()
    assert (low[1:] <= high[:-1]).all()


def test_the_path_is_in_the_middle_and_the_margin_around_it() -> None:
    path = torch.tensor([0, 0, 0, 1, 0, 0, 0, 1, 0, 0])  # labels on frames 3 and 6, u at most 2
    low, high = edges(band_of(path, width=1, margin=0))
    assert low.tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    assert high.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    low, high = edges(band_of(path, width=1, margin=1))
    assert low.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert high.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert band_of(path, width=3, margin=0).all()


def banded(it: Material, cells: Cells, width: int, margin: int = 1, chunk: int = 7) -> Tensor:
    band = path_band(cells, it.frames, it.lengths, it.enc.shape[1], it.pred.shape[1], width, margin)
    return it.fused(band_BTU=band, chunk=chunk)


def some_paths(it: Material) -> list[Tensor | None]:
    """A random path of every utterance."""
    found: list[Tensor | None] = []
    for b, (T, U) in enumerate(zip(it.frames.tolist(), it.lengths.tolist(), strict=True)):
        every = list(every_path(T, it.labels[b, :U].tolist()))
        found.append(torch.tensor(every[int(torch.randint(len(every), ()))]))
    return found


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(0, 2),
    st.integers(0, 99),
)
def test_loss_and_gradients_equal_enumeration_of_the_paths_in_the_band(
    shape: list[tuple[int, int]], width: int, margin: int, seed: int
) -> None:
    it = Material([t for t, _ in shape], [u for _, u in shape], seed)
    cells = cells_of(some_paths(it))
    band = path_band(cells, it.frames, it.lengths, it.enc.shape[1], it.pred.shape[1], width, margin)
    grid = it.joiner(it.enc[:, :, None], it.pred[:, None]).log_softmax(-1)
    slow = []
    for b, (T, U) in enumerate(shape):
        among = [path for path in every_path(T, it.labels[b, :U].tolist()) if inside(band[b], path)]
        slow.append(-torch.stack([path_score(grid[b], path) for path in among]).logsumexp(0))
    fast = banded(it, cells, width, margin)
    torch.testing.assert_close(fast, torch.stack(slow))
    expected = torch.autograd.grad(torch.stack(slow).sum(), it.used)
    torch.testing.assert_close(torch.autograd.grad(fast.sum(), it.used), expected)


@pytest.mark.parametrize("seed", range(3))
def test_loss_falls_with_width_to_the_full_loss(seed: int) -> None:
    it = Material([9, 5, 7], [4, 6, 0], seed)
    cells, full = cells_of(some_paths(it)), it.whole().detach()
    losses = torch.stack([banded(it, cells, width).detach() for width in range(1, 8)])
    assert (losses.diff(dim=0) <= 1e-12).all()
    assert (losses >= full - 1e-12).all()
    assert (losses[0, :2] > full[:2] + 1e-3).all()
    torch.testing.assert_close(losses[-1], full)


def test_gradcheck_and_what_lies_outside_gets_no_gradient() -> None:
    it = Material([4, 3], [2, 3])
    cells = cells_of([torch.tensor([1, 1, 0, 0, 0, 0]), torch.tensor([0, 0, 1, 1, 1, 0])])
    band = path_band(cells, it.frames, it.lengths, 4, 4, 2, 0)

    def loss(enc: Tensor, pred: Tensor) -> Tensor:
        inputs = (enc, pred, it.labels, it.frames, it.lengths)
        return fused_transducer_loss(it.joiner, (), *inputs, delay_penalty=0.1, band_BTU=band, chunk=5)

    assert torch.autograd.gradcheck(loss, (it.enc, it.pred))
    (gradient,) = torch.autograd.grad(loss(it.enc, it.pred)[1], it.pred)
    assert (gradient[0] == 0).all()


def test_earlier_emission_in_a_band_that_covers_everything() -> None:
    it = Material([6, 4], [3, 2])
    cells = cells_of(some_paths(it))
    band = path_band(cells, it.frames, it.lengths, 6, 4, 4, 0)
    fast = it.fused(band_BTU=band, fastemit=0.3, delay_penalty=0.2)
    torch.testing.assert_close(fast, it.whole(0.3, 0.2))
    expected = torch.autograd.grad(it.whole(0.3, 0.2).sum(), it.used)
    torch.testing.assert_close(torch.autograd.grad(fast.sum(), it.used), expected)


def test_an_utterance_without_a_path_keeps_its_whole_grid() -> None:
    it = Material([6, 5], [3, 4])
    path = some_paths(it)[1]
    full, narrow = it.whole(), banded(it, cells_of([None, path]), width=2)
    torch.testing.assert_close(narrow[0], full[0])
    assert bool(narrow[1] > full[1])


def test_long_and_confident_bands_stay_finite() -> None:
    """-1e30 of the barred arcs may not reach a score of the band."""
    it = Material([300], [120], seed=3)
    with torch.no_grad():
        it.joiner.output.weight *= 20
    random = torch.randint(300, (120,)).sort().values
    path = torch.zeros(420, dtype=torch.long)
    path[random + torch.arange(120)] = 1
    loss = banded(it, cells_of([path]), width=5, margin=3, chunk=512)
    gradient = torch.autograd.grad(loss.sum(), it.used)
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(part).all() for part in gradient)
    t, u = nodes(path)
    score = it.joiner(it.enc[0, t], it.pred[0, u]).log_softmax(1)
    spelled = torch.where(path == 0, 0, it.labels[0, u.clamp(max=119)])
    assert bool(it.whole() <= loss)
    assert bool(loss <= -score.gather(1, spelled[:, None]).sum())


@pytest.mark.parametrize(
    ("node", "width", "margin", "message"),
    [
        ((1, 5, 0), 5, 0, r"utterance 1 of the batch: node \(5, 0\) of its path is off its grid of 5 frames and 4"),
        ((0, 0, 4), 5, 0, r"node \(0, 4\)"),
        ((0, 0, 0), 0, 0, "width 0"),
        ((0, 0, 0), 1, -1, "margin -1"),
    ],
)
def test_contradictions_are_refused(node: tuple[int, int, int], width: int, margin: int, message: str) -> None:
    cells = Cells(*(torch.tensor([index]) for index in node))
    with pytest.raises(ValueError, match=message):
        path_band(cells, torch.tensor([6, 5]), torch.tensor([3, 4]), 6, 5, width, margin)
