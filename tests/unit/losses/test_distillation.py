from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdtrans.config import KdConfig
from kdtrans.lattice.path import nodes
from kdtrans.losses.distillation import (
    NodeTargets,
    blank_probability,
    gather_logits,
    one_best_loss,
    window_loss,
    with_tail,
)
from kdtrans.models.transducer import Joiner

B, T, U, J, V, K = 3, 6, 4, 8, 7, 3
PATHS = [[0, 2, 0, 0, 3, 3, 0, 0, 0], [1, 0, 0, 4, 0, 0], [0, 0, 0]]  # 6, 4 and 3 frames


def make_targets(top_k: int = K, seed: int = 0, left_out_below: float = 0.0) -> NodeTargets:
    generator = torch.Generator().manual_seed(seed)
    t, u, b = [], [], []
    for i, path in enumerate(PATHS):
        t_N, u_N = nodes(torch.tensor(path))
        t.append(t_N)
        u.append(u_N)
        b.append(torch.full_like(t_N, i))
    logp = torch.randn(sum(map(len, PATHS)), V, generator=generator).mul(2).log_softmax(1)
    top = logp.topk(top_k, dim=1)
    is_left_out = top.values.exp() < left_out_below
    is_left_out[:, 0] = False
    ids, logp = top.indices.masked_fill(is_left_out, 0), top.values.masked_fill(is_left_out, -torch.inf)
    return NodeTargets(torch.cat(b), torch.cat(t), torch.cat(u), ids, logp)


@pytest.fixture
def student() -> tuple[Joiner, Tensor, Tensor]:
    torch.manual_seed(1)
    return Joiner(5, 5, J, V), torch.randn(B, T, J, requires_grad=True), torch.randn(B, U + 1, J, requires_grad=True)


def slow_kl(student_logits: Tensor, ids: Tensor, logp: Tensor, temperature: float = 1.0) -> float:
    """KL of one node over its stored classes and the rest, term by term."""
    probabilities = student_logits.detach().double().softmax(0)
    stored = [(int(i), float(x)) for i, x in zip(ids, logp, strict=True) if math.isfinite(float(x))]
    p = [math.exp(x) for _, x in stored]
    q = [float(probabilities[i]) for i, _ in stored]
    if len(stored) < V:
        p.append(1 - sum(p))
        q.append(1 - sum(q))
    p = [x ** (1 / temperature) for x in p]
    q = [x ** (1 / temperature) for x in q]
    return sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))


def test_gathered_equals_indexed_to_the_bit(student: tuple[Joiner, Tensor, Tensor]) -> None:
    """Joining only the nodes gives the loss and the gradients of joining the grid and indexing it."""
    joiner, enc, pred = student
    targets, config = make_targets(), KdConfig(weight=1.0)
    parameters = [enc, pred, *joiner.output.parameters()]

    gathered = one_best_loss(gather_logits(joiner, enc, pred, targets), targets, config, B)
    grid = joiner(enc[:, :, None], pred[:, None])
    indexed = one_best_loss(grid[targets.utterance_N, targets.t_N, targets.u_N], targets, config, B)

    assert torch.equal(gathered, indexed)
    for ours, theirs in zip(
        torch.autograd.grad(gathered, parameters), torch.autograd.grad(indexed, parameters), strict=True
    ):
        # Sums over nodes run in another order in the grid's matrix product.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("top_k", [1, K, V])
def test_loss_equals_its_slow_twin(student: tuple[Joiner, Tensor, Tensor], top_k: int, temperature: float) -> None:
    joiner, enc, pred = student
    targets = make_targets(top_k)
    logits = gather_logits(joiner, enc, pred, targets)
    slow = [slow_kl(x, i, p, temperature) for x, i, p in zip(logits, targets.ids_NK, targets.logp_NK, strict=True)]
    by_sum = one_best_loss(logits, targets, KdConfig(weight=1.0, temperature=temperature), B)
    by_node = one_best_loss(logits, targets, KdConfig(weight=1.0, temperature=temperature, reduction="node"), B)
    assert float(by_sum.detach()) == pytest.approx(sum(slow) / B, rel=1e-3, abs=1e-4)
    assert float(by_node.detach()) == pytest.approx(sum(slow) / len(slow), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 2.5}, {"temperature": 0.5}, {"node_weight": "nonblank"}, {"reduction": "node"}]
)
@pytest.mark.parametrize("top_k", [1, 4, V])
def test_classes_left_out_are_in_both_tails(
    student: tuple[Joiner, Tensor, Tensor], top_k: int, options: dict[str, Any]
) -> None:
    """Node by node: those that store all V classes have no tail, those that leave one out have one."""
    targets, config = make_targets(top_k, left_out_below=0.02), KdConfig(weight=1.0, **options)
    stored_N = targets.logp_NK.isfinite().sum(1)
    if top_k == V:
        assert 1 <= int(stored_N.min()) < V == int(stored_N.max())
    logits = gather_logits(*student, targets).detach().requires_grad_()
    slow = 0.0
    for x, ids, logp in zip(logits, targets.ids_NK, targets.logp_NK, strict=True):
        blank = sum(math.exp(float(p)) for i, p in zip(ids, logp, strict=True) if int(i) == 0)
        slow += slow_kl(x, ids, logp, config.temperature) * (1 - blank if config.node_weight == "nonblank" else 1.0)
    loss = one_best_loss(logits, targets, config, B)
    divisor = B if config.reduction == "sum" else len(targets)
    assert float(loss.detach()) == pytest.approx(slow / divisor, rel=1e-3, abs=1e-4)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(gradient).all()
    wide = logits.detach().double()
    direction, step = torch.randn_like(wide), 1e-3
    up, down = (one_best_loss(wide + sign * step * direction, targets, config, B) for sign in (1, -1))
    assert float((up - down) / (2 * step)) == pytest.approx(float((gradient * direction).sum()), rel=1e-2, abs=1e-3)


def test_what_stands_in_the_place_of_a_class_left_out_does_not_matter(student: tuple[Joiner, Tensor, Tensor]) -> None:
    targets, config = make_targets(5, left_out_below=0.05), KdConfig(weight=1.0, node_weight="nonblank", window=1)
    left_out = targets.logp_NK.isneginf()
    assert left_out.any()
    moved = replace(targets, ids_NK=targets.ids_NK.masked_fill(left_out, V - 1))
    narrow = replace(targets, logp_NK=targets.logp_NK.half())
    frames = torch.tensor([6, 4, 3])
    one, other, half = (
        window_loss(*student, version, frames, range(-1, 2), config, B)[0] for version in (targets, moved, narrow)
    )
    assert torch.equal(one, other)
    torch.testing.assert_close(half, one, rtol=1e-2, atol=1e-3)
    kept = torch.where(left_out, 0.0, targets.logp_NK.exp())
    torch.testing.assert_close(blank_probability(targets), torch.where(targets.ids_NK == 0, kept, 0.0).sum(1))


def test_node_weight_is_one_minus_the_teachers_blank(student: tuple[Joiner, Tensor, Tensor]) -> None:
    joiner, enc, pred = student
    targets = make_targets(V)
    logits = gather_logits(joiner, enc, pred, targets)
    slow = 0.0
    for x, ids, logp in zip(logits, targets.ids_NK, targets.logp_NK, strict=True):
        blank = sum(math.exp(float(p)) for i, p in zip(ids, logp, strict=True) if int(i) == 0)
        slow += (1 - blank) * slow_kl(x, ids, logp)
    loss = one_best_loss(logits, targets, KdConfig(weight=1.0, node_weight="nonblank"), B)
    assert float(loss.detach()) == pytest.approx(slow / B, rel=1e-3, abs=1e-4)


def test_a_student_that_equals_the_teacher_has_no_loss_and_no_gradient() -> None:
    logits = torch.randn(20, V).mul(3).requires_grad_()
    top = logits.detach().log_softmax(1).topk(K, dim=1)
    index = torch.zeros(20, dtype=torch.long)
    targets = NodeTargets(index, index, index, top.indices, top.values)
    loss = one_best_loss(logits, targets, KdConfig(weight=1.0), 1)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(loss) == pytest.approx(0.0, abs=1e-4)
    assert float(gradient.abs().max()) < 1e-4


def test_gradient_by_finite_differences() -> None:
    torch.manual_seed(0)
    targets = make_targets()
    logits = torch.randn(len(targets), V, dtype=torch.float64, requires_grad=True)
    loss = one_best_loss(logits, targets, KdConfig(weight=1.0), B)
    (gradient,) = torch.autograd.grad(loss, logits)
    direction = torch.randn_like(logits)
    step = 1e-2
    with torch.no_grad():
        up, down = (
            one_best_loss(logits + sign * step * direction, targets, KdConfig(weight=1.0), B) for sign in (1, -1)
        )
    assert float((up - down) / (2 * step)) == pytest.approx(float((gradient * direction).sum()), rel=1e-2)


def test_shift_drops_what_falls_off_the_grid() -> None:
    targets = make_targets()
    frames = torch.tensor([6, 4, 3])
    assert len(targets.shifted(0, frames)) == len(targets)
    shifted = targets.shifted(2, frames)
    assert (shifted.t_N < frames[shifted.utterance_N]).all()
    assert len(shifted) == sum(t + 2 < int(frames[b]) for b, t in zip(targets.utterance_N, targets.t_N, strict=True))
    back = targets.shifted(-1, frames)
    assert int(back.t_N.min()) == 0
    assert len(back) == int((targets.t_N > 0).sum())


def slow_window(
    student: tuple[Joiner, Tensor, Tensor], targets: NodeTargets, frames: list[int], shifts: range, config: KdConfig
) -> tuple[float, int]:
    """Node by node and shift by shift: the sum of the least KLs, and the nodes that no shift keeps on the grid."""
    joiner, enc, pred = student
    total, dropped = 0.0, 0
    for n in range(len(targets)):
        b, t, u = int(targets.utterance_N[n]), int(targets.t_N[n]), int(targets.u_N[n])
        ids, logp = targets.ids_NK[n], targets.logp_NK[n]
        tried = [
            slow_kl(joiner(enc[b, t + shift], pred[b, u]), ids, logp, config.temperature)
            for shift in shifts
            if 0 <= t + shift < frames[b]
        ]
        blank = sum(math.exp(float(p)) for i, p in zip(ids, logp, strict=True) if int(i) == 0)
        total += min(tried, default=0.0) * (1 - blank if config.node_weight == "nonblank" else 1.0)
        dropped += not tried
    return total, dropped


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0}, {"node_weight": "nonblank"}, {"reduction": "node"}])
@pytest.mark.parametrize("shifts", [range(-1, 2), range(4), range(2, 5), range(6, 8), range(1, 8, 3)])
def test_window_equals_its_slow_twin(
    student: tuple[Joiner, Tensor, Tensor], shifts: range, options: dict[str, Any]
) -> None:
    targets, frames, config = make_targets(), [6, 4, 3], KdConfig(weight=1.0, window=1, **options)
    loss, dropped = window_loss(*student, targets, torch.tensor(frames), shifts, config, B)
    slow, slow_dropped = slow_window(student, targets, frames, shifts, config)
    divisor = B if config.reduction == "sum" else max(len(targets) - slow_dropped, 1)
    assert dropped == slow_dropped
    assert float(loss.detach()) == pytest.approx(slow / divisor, rel=1e-3, abs=1e-4)


def test_a_window_of_one_shift_is_that_shift(student: tuple[Joiner, Tensor, Tensor]) -> None:
    targets, frames, config = make_targets(), torch.tensor([6, 4, 3]), KdConfig(weight=1.0)
    for shift in (0, 2):
        shifted = targets.shifted(shift, frames)
        loss = one_best_loss(gather_logits(*student, shifted), shifted, config, B)
        alone, dropped = window_loss(*student, targets, frames, range(shift, shift + 1), config, B)
        torch.testing.assert_close(alone, loss)
        assert dropped == len(targets) - len(shifted)


def test_a_window_finds_the_shift_at_which_student_and_teacher_agree() -> None:
    """A student that says two frames later what the teacher said has no loss in a window that reaches there."""
    joiner, enc, pred = Joiner(5, 5, J, V), torch.randn(1, 12, J), torch.randn(1, U + 1, J)
    t_N, u_N = nodes(torch.tensor([0, 2, 0, 0, 3, 0, 1, 0]))
    late = joiner(enc[0, t_N + 2], pred[0, u_N]).detach()
    top = late.log_softmax(1).topk(K, dim=1)
    targets = NodeTargets(torch.zeros_like(t_N), t_N, u_N, top.indices, top.values)
    for tau, least in ((1, 0.0), (3, 0.0), (0, 1e-3)):
        config = KdConfig(weight=1.0, window=1)
        shifts = range(tau - 1, tau + 2)
        loss = float(window_loss(joiner, enc, pred, targets, torch.tensor([12]), shifts, config, 1)[0].detach())
        assert (loss < 1e-5) if least == 0.0 else (loss > least)


def test_the_gradient_of_a_window_flows_through_the_best_shifts_only(student: tuple[Joiner, Tensor, Tensor]) -> None:
    joiner, enc, pred = student
    targets, frames, config = make_targets(), torch.tensor([6, 4, 3]), KdConfig(weight=1.0, window=1)
    loss, _ = window_loss(joiner, enc, pred, targets, frames, range(-1, 2), config, B)
    (gradient,) = torch.autograd.grad(loss, enc)
    assert torch.isfinite(gradient).all()
    assert (gradient[1, 4:] == 0).all()
    assert (gradient[2, 3:] == 0).all()
    direction, step = torch.randn_like(enc), 1e-3
    with torch.no_grad():
        up, down = (
            window_loss(joiner, enc + sign * step * direction, pred, targets, frames, range(-1, 2), config, B)[0]
            for sign in (1, -1)
        )
    assert float((up - down) / (2 * step)) == pytest.approx(float((gradient * direction).sum()), rel=2e-2, abs=1e-2)


def test_names_of_labels_do_not_matter(student: tuple[Joiner, Tensor, Tensor]) -> None:
    joiner, enc, pred = student
    targets, config = make_targets(), KdConfig(weight=1.0, node_weight="nonblank", temperature=1.5)
    logits = gather_logits(joiner, enc, pred, targets)
    names = torch.tensor([0, 4, 2, 6, 1, 3, 5])  # label k is called names[k] from now on
    renamed = torch.empty_like(logits)
    renamed[:, names] = logits
    moved = replace(targets, ids_NK=names[targets.ids_NK])
    torch.testing.assert_close(one_best_loss(renamed, moved, config, B), one_best_loss(logits, targets, config, B))


def test_order_of_utterances_does_not_matter(student: tuple[Joiner, Tensor, Tensor]) -> None:
    joiner, enc, pred = student
    targets = make_targets()
    loss = one_best_loss(gather_logits(joiner, enc, pred, targets), targets, KdConfig(weight=1.0), B)
    order = torch.tensor([2, 0, 1])
    moved = NodeTargets(order.argsort()[targets.utterance_N], targets.t_N, targets.u_N, targets.ids_NK, targets.logp_NK)
    permuted = one_best_loss(gather_logits(joiner, enc[order], pred[order], moved), moved, KdConfig(weight=1.0), B)
    torch.testing.assert_close(loss, permuted)


def test_tail_normalises_and_survives_rounding() -> None:
    logp = torch.randn(50, V).log_softmax(1).topk(K, dim=1).values
    torch.testing.assert_close(with_tail(logp).exp().sum(1), torch.ones(50))
    overfull = torch.log(torch.tensor([[0.7, 0.3005]]))  # fp16 rounding may exceed 1
    assert torch.isfinite(with_tail(overfull)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_logits_give_a_finite_loss(dtype: torch.dtype) -> None:
    targets = make_targets()
    logits = (30 * torch.randn(len(targets), V)).to(dtype).requires_grad_()
    loss = one_best_loss(logits, targets, KdConfig(weight=1.0), B)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()  # type: ignore[union-attr]
