from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdtrans.config import KdConfig
from kdtrans.lattice.recursion import IMPOSSIBLE
from kdtrans.losses.grid import (
    collapse,
    collapsed_loss,
    full_lattice_loss,
    full_sum_loss,
    next_labels,
    real_cells,
)
from kdtrans.losses.transducer import transducer_loss
from tests.unit.lattice.test_recursion import VOCAB, grids
from tests.unit.lattice.twins import total_by_enumeration

LOSSES = ["full_lattice", "collapsed"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 2.0},
    {"reduction": "node"},
    {"node_weight": "nonblank"},
    {"temperature": 0.7, "reduction": "node", "node_weight": "nonblank"},
]
SHAPES = [([3], [2]), ([4, 2, 1], [2, 3, 0]), ([5, 3], [0, 0])]


def fast(name: str, teacher: Tensor, student: Tensor, grid: tuple[Tensor, Tensor, Tensor], config: KdConfig) -> Tensor:
    """A loss from padded grids, as training computes it."""
    labels, frames, lengths = grid
    cells = real_cells(frames, lengths)
    if name == "full_lattice":
        return full_lattice_loss(teacher[tuple(cells)], student[tuple(cells)], config, len(frames))
    following = next_labels(labels, lengths, cells)
    return collapsed_loss(teacher[tuple(cells)], student[tuple(cells)], following, config, len(frames))


def slow(name: str, teacher: Tensor, student: Tensor, grid: tuple[Tensor, Tensor, Tensor], config: KdConfig) -> float:
    """The same, cell by cell and class by class."""
    labels, frames, lengths = grid
    total, cells = 0.0, 0
    for b in range(len(frames)):
        for t in range(int(frames[b])):
            for u in range(int(lengths[b]) + 1):
                following = int(labels[b, u]) if u < int(lengths[b]) else None
                pair = [classes(name, logits[b, t, u].detach(), following) for logits in (teacher, student)]
                p, q = ([x ** (1 / config.temperature) for x in distribution] for distribution in pair)
                kl = sum(x / sum(p) * math.log((x / sum(p)) / (y / sum(q))) for x, y in zip(p, q, strict=True) if x > 0)
                total += kl * (1 - pair[0][0] if config.node_weight == "nonblank" else 1.0)
                cells += 1
    return total / (cells if config.reduction == "node" else len(frames))


def classes(name: str, logits_V: Tensor, following: int | None) -> list[float]:
    """The probabilities that a loss compares, blank first."""
    probabilities: list[float] = logits_V.double().softmax(0).tolist()
    if name == "full_lattice":
        return probabilities
    named = [probabilities[0]] + ([probabilities[following]] if following is not None else [])
    return [*named, 1.0 - sum(named)]


def pair_of_grids(frames: list[int], lengths: list[int]) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    teacher, labels, T, U = grids(3, frames, lengths)
    return teacher, grids(4, frames, lengths)[0], (labels, T, U)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("frames", "lengths"), SHAPES)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_its_slow_twin(name: str, frames: list[int], lengths: list[int], options: dict[str, Any]) -> None:
    teacher, student, grid = pair_of_grids(frames, lengths)
    config = KdConfig(loss=name, weight=1.0, **options)  # type: ignore[arg-type]
    ours, twin = fast(name, teacher, student, grid, config), slow(name, teacher, student, grid, config)
    assert float(ours) == pytest.approx(twin, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name: str, options: dict[str, Any]) -> None:
    teacher, student, grid = pair_of_grids([3, 2], [1, 2])
    config = KdConfig(loss=name, weight=1.0, **options)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(lambda x: fast(name, teacher, x, grid, config), student.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_padding_and_order_and_names_of_labels_do_not_matter(name: str) -> None:
    frames, lengths = [4, 2, 3], [2, 3, 1]
    teacher, student, (labels, T, U) = pair_of_grids(frames, lengths)
    config = KdConfig(loss=name, weight=1.0, reduction="node", node_weight="nonblank")  # type: ignore[arg-type]
    loss = fast(name, teacher, student, (labels, T, U), config)

    more = (0, 0, 0, 2, 0, 3)  # vocabulary, labels, frames
    padded = [torch.nn.functional.pad(grid, more, value=1e4) for grid in (teacher, student)]
    for b in range(3):
        padded[0][b, T[b] :], padded[1][b, :, U[b] + 1 :] = torch.nan, torch.inf
    more_labels = torch.nn.functional.pad(labels, (0, 2), value=VOCAB - 1)
    assert torch.equal(fast(name, padded[0], padded[1], (more_labels, T, U), config), loss)
    gradient_of = padded[1].requires_grad_()
    (gradient,) = torch.autograd.grad(fast(name, padded[0], gradient_of, (more_labels, T, U), config), gradient_of)
    assert torch.isfinite(gradient).all()
    assert all((gradient[b, T[b] :] == 0).all() and (gradient[b, :, U[b] + 1 :] == 0).all() for b in range(3))

    order = torch.tensor([2, 0, 1])
    reordered = fast(name, teacher[order], student[order], (labels[order], T[order], U[order]), config)
    torch.testing.assert_close(reordered, loss)

    names = torch.tensor([0, 3, 1, 4, 2])
    renamed = [torch.empty_like(teacher), torch.empty_like(student)]
    renamed[0][..., names], renamed[1][..., names] = teacher, student
    torch.testing.assert_close(fast(name, renamed[0], renamed[1], (names[labels], T, U), config), loss)


@pytest.mark.parametrize("name", LOSSES)
def test_a_student_that_equals_the_teacher_has_no_loss_and_no_gradient(name: str) -> None:
    teacher, _, grid = pair_of_grids([4, 3], [2, 1])
    student = teacher.clone().requires_grad_()
    loss = fast(name, teacher, student, grid, KdConfig(loss=name, weight=1.0))  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12)
    assert float(gradient.abs().max()) < 1e-12


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.1, 20.0))
def test_collapsing_classes_can_only_bring_distributions_closer(seed: int, scale: float) -> None:
    """The data-processing inequality: what is merged cannot be told apart any more."""
    teacher, labels, T, U = grids(seed, [4, 2], [2, 3], scale)
    student, config = grids(seed + 1, [4, 2], [2, 3], scale)[0], KdConfig(weight=1.0)
    full = fast("full_lattice", teacher, student, (labels, T, U), config)
    collapsed = fast("collapsed", teacher, student, (labels, T, U), config)
    assert -1e-9 <= float(collapsed) <= float(full) + 1e-9


def test_collapsed_classes_are_whole_and_certain_ones_keep_their_gradient() -> None:
    logits = torch.tensor([[40.0, 0.0, 0.0, -3.0], [0.0, 40.0, -40.0, 0.0], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    collapsed = collapse(logits, torch.tensor([1, 2, 0]))
    torch.testing.assert_close(collapsed.exp().sum(1), torch.ones(3))
    assert float(collapsed[2, 0].detach()) < IMPOSSIBLE / 2, "no label follows"
    # 1 - P(label) - P(blank) is 0 in fp32 on the first row; the sum of the others is not.
    expected = math.log((1 + math.exp(-3)) / (math.exp(40) + 2 + math.exp(-3)))
    assert float(collapsed[0, 2].detach()) == pytest.approx(expected, abs=1e-4)
    (gradient,) = torch.autograd.grad(collapsed[0, 2], logits)
    assert gradient[0].tolist() == pytest.approx([-1.0, 0.0, 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(3))], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_narrow_logits_are_widened_first(name: str, dtype: torch.dtype) -> None:
    teacher, student, grid = pair_of_grids([6, 4], [3, 2])
    narrow = (5 * student).to(dtype).requires_grad_()
    config = KdConfig(loss=name, weight=1.0)  # type: ignore[arg-type]
    loss = fast(name, teacher.to(dtype), narrow, grid, config)
    exact = fast(name, teacher.to(dtype).double(), narrow.detach().double(), grid, config)
    (gradient,) = torch.autograd.grad(loss, narrow)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach().double(), exact, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(gradient).all()


def test_no_labels_at_all() -> None:
    teacher, student, grid = pair_of_grids([3, 2], [0, 0])
    config = KdConfig(loss="collapsed", weight=1.0)
    assert float(fast("collapsed", teacher, student, grid, config)) == pytest.approx(
        slow("collapsed", teacher, student, grid, config)
    )


def test_full_sum_equals_enumeration_and_leaves_the_unknown_out() -> None:
    logits, labels, T, U = grids(21, [4, 3, 2], [2, 1, 2])
    logits.requires_grad_()
    totals = torch.stack(
        [
            total_by_enumeration(logits[b, : int(T[b])].log_softmax(-1), labels[b, : int(U[b])].tolist())
            for b in range(3)
        ]
    )
    teacher = torch.tensor([-4.0, math.nan, -90.0], dtype=torch.float64)
    slow_loss = (abs(-4.0 - totals[0]) + abs(-90.0 - totals[2])) / 3
    ours = full_sum_loss(teacher, -transducer_loss(logits, labels, T, U))
    torch.testing.assert_close(ours, slow_loss)
    (gradient,) = torch.autograd.grad(ours, logits)
    (expected,) = torch.autograd.grad(slow_loss, logits)
    torch.testing.assert_close(gradient, expected)
    assert (gradient[1] == 0).all()


def test_full_sum_gradcheck_and_nothing_known() -> None:
    logits, labels, T, U = grids(22, [3, 2], [1, 2])
    teacher = torch.tensor([-3.0, -70.0], dtype=torch.float64)

    def loss(x: Tensor, totals: Tensor = teacher) -> Tensor:
        return full_sum_loss(totals, -transducer_loss(x, labels, T, U))

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())
    unknown = loss(logits, torch.full((2,), math.nan))
    (gradient,) = torch.autograd.grad(unknown, logits)
    assert float(unknown.detach()) == 0.0
    assert (gradient == 0).all()


@pytest.mark.parametrize("options", [{"temperature": 2.0}, {"reduction": "node"}, {"node_weight": "nonblank"}])
def test_full_sum_refuses_what_it_has_not(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"kd.{next(iter(options))} is about nodes, but kd.loss: full_sum"):
        KdConfig(loss="full_sum", weight=1.0, **options)
