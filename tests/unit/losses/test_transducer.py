from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdtrans.losses.transducer import transducer_loss
from tests.unit.lattice.test_recursion import grids
from tests.unit.lattice.twins import total_by_enumeration


def twin(logits: Tensor, labels: Tensor, frames: Tensor, lengths: Tensor) -> Tensor:
    """The loss by enumeration, differentiated by autograd."""
    losses = []
    for b in range(len(frames)):
        log_probs = logits[b, : int(frames[b])].log_softmax(-1)
        losses.append(-total_by_enumeration(log_probs, labels[b, : int(lengths[b])].tolist()))
    return torch.stack(losses)


@pytest.mark.parametrize(("frames", "lengths"), [([3], [2]), ([4, 2, 1], [2, 3, 0]), ([1], [3]), ([4, 4], [0, 0])])
def test_loss_and_gradient_equal_enumeration(frames: list[int], lengths: list[int]) -> None:
    logits, labels, T, U = grids(11, frames, lengths)
    logits.requires_grad_()
    weights = torch.arange(1.0, len(frames) + 1, dtype=torch.float64)
    ours = transducer_loss(logits, labels, T, U)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), logits)
    slow = twin(logits, labels, T, U)
    (expected,) = torch.autograd.grad((slow * weights).sum(), logits)
    torch.testing.assert_close(ours, slow)
    torch.testing.assert_close(gradient, expected)


def earlier_twin(
    logits: Tensor, labels: Tensor, frames: Tensor, lengths: Tensor, fastemit: float, delay_penalty: float
) -> Tensor:
    """By enumeration: label arcs with a bonus for early frames, and with a gradient that is scaled."""
    losses = []
    for b in range(len(frames)):
        num_frames = int(frames[b])
        log_probs = logits[b, :num_frames].log_softmax(-1)
        arcs = []
        for t in range(num_frames):
            label = log_probs[t, :, 1:] + delay_penalty * ((num_frames - 1) / 2 - t)
            label = (1 + fastemit) * label - (fastemit * label).detach()
            arcs.append(torch.cat([log_probs[t, :, :1], label], dim=-1))
        losses.append(-total_by_enumeration(torch.stack(arcs), labels[b, : int(lengths[b])].tolist()))
    return torch.stack(losses)


@pytest.mark.parametrize(("fastemit", "delay_penalty"), [(0.5, 0.0), (0.0, 0.3), (0.2, 0.1)])
@pytest.mark.parametrize(("frames", "lengths"), [([3], [2]), ([4, 2, 1], [2, 3, 0]), ([1], [3]), ([4, 4], [0, 0])])
def test_early_emission_equals_enumeration(
    frames: list[int], lengths: list[int], fastemit: float, delay_penalty: float
) -> None:
    logits, labels, T, U = grids(13, frames, lengths)
    logits.requires_grad_()
    ours = transducer_loss(logits, labels, T, U, fastemit, delay_penalty)
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    slow = earlier_twin(logits, labels, T, U, fastemit, delay_penalty)
    (expected,) = torch.autograd.grad(slow.sum(), logits)
    torch.testing.assert_close(ours, slow)
    torch.testing.assert_close(gradient, expected)


def test_fastemit_keeps_the_value_and_moves_the_gradient() -> None:
    logits, labels, T, U = grids(7, [5, 4], [2, 3])
    logits.requires_grad_()
    plain, early = transducer_loss(logits, labels, T, U), transducer_loss(logits, labels, T, U, fastemit=0.1)
    assert torch.equal(plain, early)
    (gradient,) = torch.autograd.grad(plain.sum(), logits)
    (moved,) = torch.autograd.grad(early.sum(), logits)
    assert not torch.allclose(gradient, moved)


def test_delay_penalty_ignores_padding_and_prefers_early_labels() -> None:
    logits, labels, T, U = grids(2, [6, 4, 5], [3, 1, 2])
    together = transducer_loss(logits, labels, T, U, delay_penalty=0.4)
    alone = [
        transducer_loss(
            logits[b : b + 1, : T[b], : U[b] + 1],
            labels[b : b + 1, : U[b]],
            T[b : b + 1],
            U[b : b + 1],
            delay_penalty=0.4,
        )
        for b in range(3)
    ]
    torch.testing.assert_close(torch.cat(alone), together)

    flat = torch.zeros(1, 8, 2, 5, dtype=torch.float64, requires_grad=True)  # no frame is better than another
    one, eight = torch.tensor([[3]]), torch.tensor([8])
    loss = transducer_loss(flat, one, eight, torch.tensor([1]), delay_penalty=0.5)
    (gradient,) = torch.autograd.grad(loss.sum(), flat)
    pulls = gradient[0, :, 0, 3].diff()
    assert (pulls > 0).all(), "the earlier a frame, the harder it is pulled towards the label"


@pytest.mark.parametrize(("fastemit", "delay_penalty"), [(0.0, 0.0), (0.3, 0.2)])
def test_names_of_labels_do_not_matter(fastemit: float, delay_penalty: float) -> None:
    logits, labels, T, U = grids(8, [5, 4], [2, 3])
    names = torch.tensor([0, 3, 1, 4, 2])  # label k is called names[k] from now on
    renamed = torch.empty_like(logits)
    renamed[..., names] = logits
    torch.testing.assert_close(
        transducer_loss(renamed, names[labels], T, U, fastemit, delay_penalty),
        transducer_loss(logits, labels, T, U, fastemit, delay_penalty),
    )


def test_gradcheck_with_a_delay_penalty() -> None:
    logits, labels, T, U = grids(6, [3, 2], [1, 2])
    assert torch.autograd.gradcheck(
        lambda x: transducer_loss(x, labels, T, U, delay_penalty=0.7), logits.requires_grad_()
    )


def test_gradcheck() -> None:
    logits, labels, T, U = grids(5, [3, 2], [1, 2])
    assert torch.autograd.gradcheck(lambda x: transducer_loss(x, labels, T, U), logits.requires_grad_())


def test_padding_and_order_do_not_matter() -> None:
    logits, labels, T, U = grids(2, [6, 4, 5], [3, 1, 2])
    together = transducer_loss(logits, labels, T, U)
    noisy, noisy_labels = logits.clone(), labels.clone()
    for b in range(3):
        noisy[b, T[b] :] = 1e4
        noisy[b, :, U[b] + 1 :] = -1e4
        noisy_labels[b, U[b] :] = 1
    torch.testing.assert_close(transducer_loss(noisy, noisy_labels, T, U), together)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(transducer_loss(logits[order], labels[order], T[order], U[order]), together[order])
    alone = [
        transducer_loss(logits[b : b + 1, : T[b], : U[b] + 1], labels[b : b + 1, : U[b]], T[b : b + 1], U[b : b + 1])
        for b in range(3)
    ]
    torch.testing.assert_close(torch.cat(alone), together)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("earlier", [(0.0, 0.0), (0.1, 0.02)])
def test_narrow_logits_keep_a_wide_lattice(dtype: torch.dtype, tolerance: float, earlier: tuple[float, float]) -> None:
    logits, labels, T, U = grids(9, [40, 33], [12, 9], scale=1.0)
    wide = logits.to(dtype).double().requires_grad_()
    narrow = logits.to(dtype).requires_grad_()
    ours = transducer_loss(narrow, labels, T, U, *earlier)
    exact = transducer_loss(wide, labels, T, U, *earlier)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-4)
    (gradient,) = torch.autograd.grad(ours.sum(), narrow)
    (expected,) = torch.autograd.grad(exact.sum(), wide)
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=tolerance)


def test_torchaudio_agrees() -> None:
    torchaudio = pytest.importorskip("torchaudio")
    logits, labels, T, U = grids(4, [9, 7], [4, 5])
    theirs = torchaudio.functional.rnnt_loss(
        logits.float(), labels.int(), T.int(), U.int(), blank=0, reduction="none", fused_log_softmax=True
    )
    torch.testing.assert_close(transducer_loss(logits.float(), labels, T, U), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, t, u: (x, y[:, :1], t, u), "labels are"),
        (lambda x, y, t, u: (x, y, t + 5, u), "frames_B"),
        (lambda x, y, t, u: (x, y, t, u + 5), "lengths_B"),
        (lambda x, y, t, u: (x, y + 9, t, u), "labels are in"),
    ],
)
def test_contradictions_are_refused(change, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        transducer_loss(*change(*grids(1, [3, 4], [2, 2])))
