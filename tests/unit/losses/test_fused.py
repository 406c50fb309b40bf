"""The fused loss equals the loss of the whole grid: value, gradients, whatever the chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdtrans import products
from kdtrans.losses.fused import _Joining, fused_transducer_loss
from kdtrans.losses.transducer import transducer_loss
from kdtrans.models.transducer import Joiner

J, V = 6, 5
SHAPES = [([3], [2]), ([6, 2, 1], [2, 4, 0]), ([1], [3]), ([1], [0]), ([4, 4], [0, 0])]


class Material:
    """A joiner, what it joins, and the labels of a padded batch."""

    def __init__(
        self, frames: list[int], lengths: list[int], seed: int = 0, dtype: torch.dtype = torch.float64, width: int = J
    ) -> None:
        torch.manual_seed(seed)
        self.joiner = Joiner(4, 4, width, V).to(dtype)
        nn.init.normal_(self.joiner.output.weight)
        self.enc = torch.randn(len(frames), max(frames), width, dtype=dtype, requires_grad=True)
        self.pred = torch.randn(len(frames), max(lengths) + 1, width, dtype=dtype, requires_grad=True)
        self.labels = torch.randint(1, V, (len(frames), max(lengths)))
        self.frames, self.lengths = torch.tensor(frames), torch.tensor(lengths)
        self.used = (self.enc, self.pred, *self.joiner.output.parameters())

    def whole(self, *earlier: float, join: Callable[..., Tensor] | None = None) -> Tensor:
        grid = (join or self.joiner)(self.enc[:, :, None], self.pred[:, None])
        return transducer_loss(grid, self.labels, self.frames, self.lengths, *earlier)

    def counted(self) -> tuple[Callable[..., Tensor], list[int]]:
        """The joiner, and the list in which it counts the nodes of each call."""
        joined: list[int] = []

        def join(enc_CJ: Tensor, pred_CJ: Tensor) -> Tensor:
            joined.append(len(enc_CJ))
            return self.joiner(enc_CJ, pred_CJ)

        return join, joined

    def fused(self, join: Callable[..., Tensor] | None = None, **options: Any) -> Tensor:
        inputs = (self.enc, self.pred, self.labels, self.frames, self.lengths)
        return fused_transducer_loss(join or self.joiner, self.joiner.parameters(), *inputs, **options)


@pytest.mark.parametrize("chunk", [1, 4, 7, 1000])
@pytest.mark.parametrize(("frames", "lengths"), SHAPES)
@pytest.mark.parametrize("earlier", [(0.0, 0.0), (0.3, 0.2)])
@pytest.mark.parametrize("kept", [0, 1000])
def test_value_and_gradients_equal_those_of_the_grid(
    frames: list[int], lengths: list[int], earlier: tuple[float, float], chunk: int, kept: int
) -> None:
    it = Material(frames, lengths)
    weights = torch.arange(1.0, len(frames) + 1, dtype=torch.float64)
    whole, fused = it.whole(*earlier), it.fused(fastemit=earlier[0], delay_penalty=earlier[1], chunk=chunk, kept=kept)
    torch.testing.assert_close(fused, whole)
    expected = torch.autograd.grad((whole * weights).sum(), it.used)
    torch.testing.assert_close(torch.autograd.grad((fused * weights).sum(), it.used), expected)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=4),
    st.integers(1, 60),
    st.integers(0, 99),
)
def test_any_batch_in_any_chunks(shape: list[tuple[int, int]], chunk: int, seed: int) -> None:
    it = Material([t for t, _ in shape], [u for _, u in shape], seed)
    torch.testing.assert_close(it.fused(chunk=chunk), it.whole())
    ours, theirs = (torch.autograd.grad(loss.sum(), it.used) for loss in (it.fused(chunk=chunk), it.whole()))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("chunk", [5, 100])
def test_gradcheck(chunk: int) -> None:
    it = Material([3, 2], [1, 2])

    def loss(*used: Tensor) -> Tensor:
        enc, pred, weight, bias = used
        return fused_transducer_loss(
            lambda e, p: torch.nn.functional.linear(torch.tanh(e + p), weight, bias),
            (weight, bias),
            *(enc, pred, it.labels, it.frames, it.lengths),
            delay_penalty=0.2,
            chunk=chunk,
        )

    assert torch.autograd.gradcheck(loss, it.used)


def test_padding_is_never_joined_and_order_does_not_matter() -> None:
    it = Material([6, 4, 5], [3, 1, 2])
    join, joined = it.counted()
    loss = it.fused(join, chunk=10, kept=0)
    assert joined == [10, 10, 10, 10, 7], "6 x 4 + 4 x 2 + 5 x 3 real nodes"
    loss.sum().backward()
    assert joined[5:] == joined[:5]
    gradient = it.enc.grad
    assert gradient is not None

    with torch.no_grad():
        for b in range(3):
            it.enc[b, it.frames[b] :], it.pred[b, it.lengths[b] + 1 :] = torch.nan, torch.inf
            it.labels[b, it.lengths[b] :] = 1
    noisy = it.fused(chunk=10)
    torch.testing.assert_close(noisy, loss)
    torch.testing.assert_close(torch.autograd.grad(noisy.sum(), it.enc)[0], gradient)
    order = torch.tensor([2, 0, 1])
    it.enc, it.pred = it.enc.detach()[order], it.pred.detach()[order]
    it.labels, it.frames, it.lengths = it.labels[order], it.frames[order], it.lengths[order]
    torch.testing.assert_close(it.fused(chunk=10), loss[order])


@pytest.mark.parametrize("kept", [0, 2000])
def test_nodes_that_no_path_visits_are_joined_once(kept: int) -> None:
    """The gradient of what lies below rounding is not computed; the rest is exact to it."""
    it = Material([60], [20])
    with torch.no_grad():
        it.joiner.output.weight *= 8  # confident
    join, joined = it.counted()
    loss = it.fused(join, chunk=2000, kept=kept).sum()
    first = torch.autograd.grad(loss, it.used, retain_graph=True)
    assert joined[0] == 60 * 21
    assert joined[1] < 60 * 21 * 0.9
    torch.testing.assert_close(first, torch.autograd.grad(it.whole().sum(), it.used))
    torch.testing.assert_close(torch.autograd.grad(loss, it.used), first)


def test_nodes_that_are_kept_are_joined_once() -> None:
    it = Material([6, 4, 5], [3, 1, 2])
    join, joined = it.counted()
    loss = it.fused(join, chunk=10, kept=47).sum()
    first = torch.autograd.grad(loss, it.used, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, it.used), first)
    assert joined == [10, 10, 10, 10, 7]
    it.fused(join, chunk=10, kept=46).sum().backward()
    assert joined[5:] == 2 * joined[:5]


@pytest.mark.parametrize("kept", [0, 1000])
def test_onednn_joins_the_chunks_of_one_shape(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU where MKL is slow; the last chunk has another shape, and a GPU's products are none of its business."""
    monkeypatch.setattr(products, "has_slow_mkl", lambda: True)
    before = torch.get_float32_matmul_precision()
    material, seen = Material([5, 4], [2, 3]), list[tuple[int, str]]()

    def join(enc_CJ: Tensor, pred_CJ: Tensor) -> Tensor:
        seen.append((len(enc_CJ), torch.get_float32_matmul_precision()))
        return material.joiner(enc_CJ, pred_CJ)

    material.fused(join, chunk=8, kept=kept).sum().backward()
    assert {length for length, _ in seen} == {8, 7}
    assert all(precision == (products.ONEDNN if length == 8 else before) for length, precision in seen)
    assert torch.get_float32_matmul_precision() == before
    elsewhere = torch.empty(16, J, device="meta")
    nodes = torch.zeros(16, dtype=torch.long, device="meta")
    assert not _Joining(join, elsewhere, elsewhere, nodes, nodes, 8).suits_onednn(slice(0, 8))


def test_only_one_chunk_of_logits_is_alive() -> None:
    it = Material([30, 20], [9, 9])
    alive: list[int] = []
    most = 0

    def join(enc_CJ: Tensor, pred_CJ: Tensor) -> Tensor:
        nonlocal most
        logits = Counted.apply(it.joiner(enc_CJ, pred_CJ), alive)
        most = max(most, len(alive))
        return logits

    it.fused(join, chunk=50, kept=0).sum().backward()
    assert most == 1


class Counted(torch.autograd.Function):
    """Identity whose graph is counted while it is alive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alive: list[int]) -> Tensor:
        ctx.token = Token(alive)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class Token:
    def __init__(self, alive: list[int]) -> None:
        self.alive = alive
        alive.append(1)

    def __del__(self) -> None:
        self.alive.pop()


def test_without_gradients_and_with_some_frozen() -> None:
    it = Material([6, 4], [3, 1])
    with torch.no_grad():
        loss = it.fused(chunk=9)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, it.whole().detach())
    for parameter in it.joiner.parameters():
        parameter.requires_grad_(False)
    it.pred = it.pred.detach()
    it.fused(chunk=9).sum().backward()
    (expected,) = torch.autograd.grad(it.whole().sum(), it.enc)
    torch.testing.assert_close(it.enc.grad, expected)
    assert all(parameter.grad is None for parameter in it.joiner.parameters())


def test_unused_parameters_get_no_gradient() -> None:
    it = Material([6, 4], [3, 1])
    it.fused(chunk=9).sum().backward()
    assert it.joiner.output.weight.grad is not None
    assert it.joiner.encoder_projection.weight.grad is None


@pytest.mark.parametrize("kept", [0, 10_000])
@pytest.mark.parametrize("chunk", [100, 10_000])
def test_autocast_of_the_joiner_is_kept_and_the_lattice_stays_wide(chunk: int, kept: int) -> None:
    """bf16 changes only what the grid's loss under the same autocast changes; sums over nodes are not narrow."""
    it = Material([40, 33], [12, 9], dtype=torch.float32, width=32)

    def join(enc_J: Tensor, pred_J: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return it.joiner(enc_J, pred_J)

    fused, whole = it.fused(join, chunk=chunk, kept=kept), it.whole(join=join)
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused, whole, rtol=1e-4, atol=1e-3)
    ours, theirs = torch.autograd.grad(fused.sum(), it.used), torch.autograd.grad(whole.sum(), it.used)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32
        assert float((mine - other).norm() / other.norm()) < 0.02

    narrow = it.enc.detach().bfloat16().requires_grad_()
    it.enc = narrow
    (gradient,) = torch.autograd.grad(it.fused(join, chunk=chunk, kept=kept).sum(), narrow)
    assert gradient.dtype == torch.bfloat16


def test_an_autocast_around_the_loss_keeps_no_weights_without_gradient() -> None:
    it = Material([6, 4], [3, 1], dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        it.fused(chunk=5)
        later = it.joiner(it.enc[:, 0], it.pred[:, 0]).float().sum()
    assert torch.autograd.grad(later, it.joiner.output.weight)[0].abs().sum() > 0


def test_a_delay_penalty_beyond_the_range_of_fp32() -> None:
    """A bonus of 125 nats on frame 0 is none for the last column, which has no label arc."""
    it = Material([6, 4], [3, 2], dtype=torch.float32)
    fused, whole = it.fused(delay_penalty=50.0), it.whole(0.0, 50.0)
    torch.testing.assert_close(fused, whole)
    expected = torch.autograd.grad(whole.sum(), it.used)
    torch.testing.assert_close(torch.autograd.grad(fused.sum(), it.used), expected)


def test_fp32_is_exact_to_its_rounding() -> None:
    it = Material([60, 50], [20, 25], dtype=torch.float32, width=32)
    ours, theirs = (torch.autograd.grad(loss.sum(), it.used) for loss in (it.fused(chunk=333), it.whole()))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.ones(2, 2, dtype=torch.long)}, "labels are"),
        ({"frames": torch.tensor([7, 4])}, "frames_B"),
        ({"lengths": torch.tensor([3, 9])}, "lengths_B"),
        ({"labels": torch.full((2, 3), V)}, "labels are in"),
    ],
)
def test_contradictions_are_refused(change: dict[str, Tensor], message: str) -> None:
    it = Material([6, 4], [3, 1])
    vars(it).update(change)
    with pytest.raises(ValueError, match=message):
        it.fused()
    if "labels" not in change:
        return
    with pytest.raises(ValueError, match=r"band_BTU is \(2, 6, 3\), expected \(2, 6, 4\)"):
        Material([6, 4], [3, 1]).fused(band_BTU=torch.ones(2, 6, 3, dtype=torch.bool))
