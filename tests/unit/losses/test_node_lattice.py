"""A band's rows hold it, and a lattice of such rows is the one of whole rows; enumeration is in test_band.py."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdtrans.lattice.path import path_from_frames
from kdtrans.losses.band import path_band
from kdtrans.losses.node_lattice import NodeLattice, band_rows
from kdtrans.losses.transducer import on_grid
from tests.unit.losses.test_band import cells_of

shapes = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 12)), min_size=1, max_size=4)


def some_band(shape: list[tuple[int, int]], width: int, margin: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels, frames, lengths and a band along random paths of a padded batch."""
    frames, lengths = (torch.tensor(sizes) for sizes in zip(*shape, strict=True))
    labels = torch.randint(1, 9, (len(shape), int(lengths.max())))
    emission = (torch.rand(labels.shape) * frames[:, None]).long().sort(1).values
    paths = path_from_frames(labels, emission, frames, lengths)
    cells = cells_of([path[: T + U] for path, (T, U) in zip(paths, shape, strict=True)])
    band = path_band(cells, frames, lengths, int(frames.max()), int(lengths.max()) + 1, width, margin)
    return labels, frames, lengths, band


@settings(deadline=None, max_examples=50)
@given(shapes, st.integers(1, 6), st.integers(0, 3), st.integers(0, 99), st.sampled_from([0.0, 0.3]))
def test_narrow_rows_equal_whole_ones(
    shape: list[tuple[int, int]], width: int, margin: int, seed: int, delay_penalty: float
) -> None:
    torch.manual_seed(seed)
    labels, frames, lengths, band = some_band(shape, width, margin)
    narrow, whole = (
        NodeLattice.of(labels, frames, lengths, band.shape[1], delay_penalty, band, whole_rows)
        for whole_rows in (False, True)
    )
    assert narrow.size[2] <= whole.size[2] == band.shape[2]
    scores = (5.0 * torch.randn(2, len(narrow.next_N), 3, dtype=torch.float64)).log_softmax(2)[..., 0]
    for mine, other in zip(narrow.total_and_arcs(*scores), whole.total_and_arcs(*scores), strict=True):
        torch.testing.assert_close(mine, other)


@settings(deadline=None, max_examples=50)
@given(shapes, st.integers(1, 6), st.integers(0, 3), st.integers(0, 99), st.booleans())
def test_rows_hold_the_band(shape: list[tuple[int, int]], width: int, margin: int, seed: int, is_random: bool) -> None:
    torch.manual_seed(seed)
    _, frames, lengths, band = some_band(shape, width, margin)
    if is_random:  # rows may be empty, and edges fall: so does no path's band, but nothing may be lost
        band = on_grid(frames, lengths, *band.shape[1:]) & (torch.rand(band.shape) < 0.3)
    starts, columns = band_rows(band, frames)
    assert (starts[:, 0] == 0).all()
    assert (starts.diff(dim=1) >= 0).all()
    assert columns <= band.shape[2]
    for b, t, u in band.nonzero().tolist():
        assert starts[b, t] <= u < starts[b, t] + columns
    for b, (T, _) in enumerate(shape):
        assert (starts[b, T - 1 :] == starts[b, T - 1]).all()


def test_a_narrow_band_has_narrow_rows() -> None:
    shape = [(200, 60)]
    torch.manual_seed(0)
    labels, frames, lengths, band = some_band(shape, width=5, margin=0)
    lattice = NodeLattice.of(labels, frames, lengths, 200, 0.0, band)
    assert lattice.size == (1, 200, 5)
