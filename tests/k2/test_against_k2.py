"""Our lattice and losses against those of k2; skipped where k2 is not installed (`make test-k2` installs it)."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from kdtrans.lattice.recursion import forward_backward_scores, total_score
from kdtrans.losses.backends import pruned_loss
from kdtrans.losses.band import occupation_band
from kdtrans.losses.pruned import simple_scores
from kdtrans.losses.transducer import arc_posteriors, node_log_probs, on_grid

k2 = pytest.importorskip("k2")
V, J = 7, 5
SHAPES = [([8], [3]), ([9, 4, 7], [2, 4, 1]), ([30, 24], [11, 9])]


class Batch(NamedTuple):
    """What pruned losses are given, beside the joiner."""

    enc: Tensor
    pred: Tensor
    simple_enc: Tensor
    simple_pred: Tensor
    labels: Tensor
    frames: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, frames: list[int], lengths: list[int]) -> Batch:
        torch.manual_seed(1)
        batch, longest, columns = len(frames), max(frames), max(lengths) + 1
        sizes = [(longest, J), (columns, J), (longest, V), (columns, V)]
        inputs = [torch.randn(batch, *size, requires_grad=True) for size in sizes]
        labels = torch.randint(1, V, (batch, columns - 1))
        return cls(*inputs, labels, torch.tensor(frames), torch.tensor(lengths))

    @property
    def boundary(self) -> Tensor:
        zeros = torch.zeros_like(self.frames)
        return torch.stack([zeros, zeros, self.lengths, self.frames], 1)


class Join(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(J, V)

    def forward(self, enc: Tensor, pred: Tensor) -> Tensor:
        out: Tensor = self.output(torch.tanh(enc + pred))
        return out


@pytest.mark.parametrize(("frames", "lengths"), SHAPES)
def test_lattice_total_is_k2s(frames: list[int], lengths: list[int]) -> None:
    it = Batch.of(frames, lengths)
    logits = (it.simple_enc[:, :, None] + it.simple_pred[:, None]).detach().double()
    blank, label = node_log_probs(logits, it.labels)
    alpha, beta = forward_backward_scores(blank, label, it.frames, it.lengths)
    px = torch.cat([label.transpose(1, 2), torch.full((len(frames), max(lengths), 1), -torch.inf).double()], 2)
    for b, t in enumerate(frames):
        px[b, :, t:] = -torch.inf  # no label is emitted after the last frame
    theirs = k2.mutual_information_recursion(px.contiguous(), blank.transpose(1, 2).contiguous(), it.boundary)
    torch.testing.assert_close(total_score(alpha, blank, it.frames, it.lengths), theirs)
    torch.testing.assert_close(beta[:, 0, 0], theirs)


@pytest.mark.parametrize(("frames", "lengths"), SHAPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.25])
@pytest.mark.parametrize("delay_penalty", [0.0, 0.1])
def test_simple_and_pruned_losses_are_k2s_where_nothing_is_pruned(
    frames: list[int], lengths: list[int], smoothing: float, delay_penalty: float
) -> None:
    it, join = Batch.of(frames, lengths), Join()
    losses, gradients = [], []
    for backend in ("native", "k2"):
        loss = pruned_loss(backend)(
            *(join, join.parameters(), *it),
            width=max(lengths) + 1,
            smoothing=smoothing,
            delay_penalty=delay_penalty,
        )
        losses.append(loss)
        gradients.append(torch.autograd.grad((loss[0] + loss[1]).sum(), (*it[:4], *join.parameters())))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("width", [2, 3, 5])
def test_band_holds_the_mass_of_k2s_ranges(width: int) -> None:
    """The occupations are the same; where k2 moves windows, ours adds nodes, and has more mass in all."""
    it = Batch.of([30, 24], [11, 9])
    _, (px, py) = k2.rnnt_loss_smoothed(
        *(it.simple_pred.detach(), it.simple_enc.detach(), it.labels, 0),
        lm_only_scale=0.25,
        am_only_scale=0.0,
        boundary=it.boundary,
        reduction="none",
        return_grad=True,
    )
    blank, label = (part.detach() for part in simple_scores(it.simple_enc, it.simple_pred, it.labels, 0.25))
    alpha, beta = forward_backward_scores(blank, label, it.frames, it.lengths)
    total = total_score(alpha, blank, it.frames, it.lengths)
    arcs = arc_posteriors(it.frames, it.lengths, blank, label, alpha, beta, total, torch.float32)
    torch.testing.assert_close(arcs[0], py.transpose(1, 2), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(arcs[1], px.transpose(1, 2)[:, :-1], rtol=1e-3, atol=1e-4)

    ranges = k2.get_rnnt_prune_ranges(px, py, it.boundary, width)
    band = occupation_band(*arcs, it.frames, it.lengths, width)
    theirs = torch.zeros_like(band).scatter(2, ranges, True) & on_grid(it.frames, it.lengths, *band.shape[1:])
    ours_mass, their_mass = ((arcs[0] * mask).sum() for mask in (band, theirs))
    assert their_mass <= ours_mass <= it.frames.sum() + 1e-3


@pytest.mark.parametrize("width", [2, 3, 5])
def test_pruning_less_of_the_mass_loses_less(width: int) -> None:
    """With the joiner that the simple one is, both lose the paths that they prune; ours has the wider band."""
    it = Batch.of([30, 24], [11, 9])
    added = it._replace(enc=it.simple_enc, pred=it.simple_pred)
    whole, *pruned = (
        pruned_loss(backend)(lambda enc, pred: enc + pred, (), *added, width=columns, smoothing=0.0)[1]
        for backend, columns in (("native", 12), ("native", width), ("k2", width))
    )
    ours, theirs = pruned
    assert (ours >= whole - 1e-4).all()
    assert (theirs >= whole - 1e-4).all()
    assert (ours <= theirs + 1e-4).all()
