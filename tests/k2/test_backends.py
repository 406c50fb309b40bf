"""Every installed backend is the same loss: k2 in its own environment (`make test-k2`), torchaudio in the usual one."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from kdtrans.losses.backends import BACKENDS, INSTALL, installed_backends, loss_of_logits, pruned_loss
from kdtrans.losses.transducer import transducer_loss

INSTALLED = installed_backends()
WITH_DELAY = [backend for backend in INSTALLED if backend != "torchaudio"]


def batch(frames: list[int], lengths: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    logits = torch.randn(len(frames), max(frames), max(lengths) + 1, 7, requires_grad=True)
    labels = torch.randint(1, 7, (len(frames), max(lengths)))
    return logits, labels, torch.tensor(frames), torch.tensor(lengths)


def compare(backend: str, frames: list[int], lengths: list[int], delay_penalty: float) -> None:
    inputs = batch(frames, lengths)
    weights = torch.arange(1.0, len(frames) + 1)
    theirs = loss_of_logits(backend)(*inputs, delay_penalty=delay_penalty)
    ours = transducer_loss(*inputs, delay_penalty=delay_penalty)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad((loss * weights).sum(), inputs[0])[0] for loss in (theirs, ours)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", INSTALLED)
@pytest.mark.parametrize(("frames", "lengths"), [([6], [3]), ([9, 4, 7], [2, 5, 1]), ([5, 6], [4, 0])])
def test_value_and_gradient_equal_ours(backend: str, frames: list[int], lengths: list[int]) -> None:
    compare(backend, frames, lengths, 0.0)


@pytest.mark.parametrize("backend", WITH_DELAY)
def test_delay_penalty_equals_ours(backend: str) -> None:
    compare(backend, [9, 4], [2, 5], 0.2)


@pytest.mark.parametrize("backend", INSTALLED)
def test_padding_beyond_all_lengths_does_not_matter(backend: str) -> None:
    logits, labels, frames, lengths = batch([6, 5], [3, 2])
    wider = torch.nn.functional.pad(logits, (0, 0, 0, 2, 0, 3))
    loss = loss_of_logits(backend)(wider, torch.nn.functional.pad(labels, (0, 2)), frames, lengths)
    torch.testing.assert_close(loss, transducer_loss(logits, labels, frames, lengths))


@pytest.mark.parametrize("backend", INSTALLED)
@pytest.mark.parametrize("name", ["fastemit", "delay_penalty"])
def test_terms_a_library_has_not_are_refused(backend: str, name: str) -> None:
    inputs = batch([3], [2])
    if backend == "native" or (name == "delay_penalty" and backend in WITH_DELAY):
        loss_of_logits(backend)(*inputs, **{name: 0.1})
        return
    with pytest.raises(ValueError, match=f"{name} is 0.1, but the loss of {backend} has no such term"):
        loss_of_logits(backend)(*inputs, **{name: 0.1})


@pytest.mark.parametrize("backend", INSTALLED)
def test_lengths_off_the_grid_are_refused(backend: str) -> None:
    logits, labels, frames, lengths = batch([3, 4], [2, 1])
    with pytest.raises(ValueError, match="frames_B"):
        loss_of_logits(backend)(logits, labels, frames + 2, lengths)


@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend != "native"])
def test_missing_libraries_are_named_with_how_to_install_them(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ValueError, match=f"(?s){backend}: No module named .* to install it: ") as refused:
        loss_of_logits(backend)
    assert INSTALL[backend] in str(refused.value)
    assert installed_backends() == ["native"]


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(ValueError, match="no loss backend 'k3'; there are: native, k2, fast_rnnt, torchaudio"):
        loss_of_logits("k3")
    with pytest.raises(ValueError, match="torchaudio has no pruned loss"):
        pruned_loss("torchaudio")
