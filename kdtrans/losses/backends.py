"""Transducer losses of other libraries behind the signatures of ours.

Shapes: B utterances, T frames, U labels, J joiner width, V vocabulary with blank = 0, W nodes a frame.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from types import ModuleType

import torch
from torch import Tensor

from kdtrans.contracts import BLANK
from kdtrans.losses.distillation import Join, widened
from kdtrans.losses.pruned import pruned_transducer_loss
from kdtrans.losses.transducer import check_grid, check_labels, transducer_loss

NATIVE = "native"
MODULES = {"k2": "k2", "fast_rnnt": "fast_rnnt", "torchaudio": "torchaudio.functional"}
INSTALL = {
    "k2": "conda env create -f envs/k2.yaml, or `make test-k2`, which makes .venv-k2",
    "fast_rnnt": "pip install fast_rnnt",
    "torchaudio": "pip install torchaudio, of the same version as torch",
}
BACKENDS = (NATIVE, *MODULES)

LossOfLogits = Callable[..., Tensor]  # transducer_loss
PrunedLoss = Callable[..., tuple[Tensor, Tensor]]  # pruned_transducer_loss


def installed_backends() -> list[str]:
    """Those of BACKENDS that can be imported here."""
    return [NATIVE, *filter(_is_installed, MODULES)]


def loss_of_logits(backend: str) -> LossOfLogits:
    """The transducer loss of a library, with the arguments and the result of `transducer_loss`.

    Args:
        backend: native, k2, fast_rnnt or torchaudio.

    Returns:
        A function (logits_BTUV, labels_BU, frames_B, lengths_B, fastemit=0.0, delay_penalty=0.0) -> (B,), which raises
        ValueError where the library has no such term.

    Raises:
        ValueError: when there is no such backend, or it is not installed; the message says how to.
    """
    if backend == NATIVE:
        return transducer_loss
    module = imported(backend)
    return _torchaudio_loss(module) if backend == "torchaudio" else _k2_loss(backend, module)


def pruned_loss(backend: str) -> PrunedLoss:
    """The pruned loss of a library, with the arguments and results of `pruned_transducer_loss`.

    Args:
        backend: native, k2 or fast_rnnt.

    Returns:
        A function like `pruned_transducer_loss`, without `chunk`; it raises ValueError where the library has no such
        term.

    Raises:
        ValueError: when the backend has no pruned loss or is not installed; the message says how to.
    """
    if backend == NATIVE:
        return pruned_transducer_loss
    if backend == "torchaudio":
        raise ValueError("torchaudio has no pruned loss; there are: native, k2, fast_rnnt")
    return _k2_pruned_loss(backend, imported(backend))


def _k2_loss(backend: str, module: ModuleType) -> LossOfLogits:
    """k2 and fast_rnnt, its losses alone, have the same functions."""

    def loss(
        logits_BTUV: Tensor,
        labels_BU: Tensor,
        frames_B: Tensor,
        lengths_B: Tensor,
        fastemit: float = 0.0,
        delay_penalty: float = 0.0,
    ) -> Tensor:
        _refuse(backend, fastemit=fastemit)
        _check(logits_BTUV, labels_BU, frames_B, lengths_B)
        loss_B: Tensor = module.rnnt_loss(
            *(widened(logits_BTUV), labels_BU.long(), BLANK, _boundary(frames_B, lengths_B)),
            delay_penalty=delay_penalty,
            reduction="none",
        )
        return loss_B

    return loss


def _torchaudio_loss(module: ModuleType) -> LossOfLogits:
    def loss(
        logits_BTUV: Tensor,
        labels_BU: Tensor,
        frames_B: Tensor,
        lengths_B: Tensor,
        fastemit: float = 0.0,
        delay_penalty: float = 0.0,
    ) -> Tensor:
        _refuse("torchaudio", fastemit=fastemit, delay_penalty=delay_penalty)
        _check(logits_BTUV, labels_BU, frames_B, lengths_B)
        # It has kernels for fp32 and fp16, and insists on int32 and on grids without a padding that all share.
        logits_BTUV = logits_BTUV[:, : int(frames_B.max()), : int(lengths_B.max()) + 1].float().contiguous()
        labels_BU = labels_BU[:, : int(lengths_B.max())]
        integers = (part.int().contiguous() for part in (labels_BU, frames_B, lengths_B))
        loss_B: Tensor = module.rnnt_loss(logits_BTUV, *integers, blank=BLANK, reduction="none")
        return loss_B

    return loss


def _k2_pruned_loss(backend: str, module: ModuleType) -> PrunedLoss:
    """The recipe of icefall: smoothed simple loss, ranges, pruned inputs of the joiner, pruned loss."""

    def loss(
        join: Join,
        parameters: Iterable[Tensor],
        enc_BTJ: Tensor,
        pred_BUJ: Tensor,
        simple_enc_BTV: Tensor,
        simple_pred_BUV: Tensor,
        labels_BU: Tensor,
        frames_B: Tensor,
        lengths_B: Tensor,
        *,
        width: int,
        smoothing: float = 0.25,
        fastemit: float = 0.0,
        delay_penalty: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        del parameters  # autograd finds them
        _refuse(backend, fastemit=fastemit)
        labels_BU, boundary_B4 = labels_BU.long(), _boundary(frames_B, lengths_B)
        simple_B, arcs = module.rnnt_loss_smoothed(
            lm=widened(simple_pred_BUV),
            am=widened(simple_enc_BTV),
            symbols=labels_BU,
            termination_symbol=BLANK,
            lm_only_scale=smoothing,
            am_only_scale=0.0,
            boundary=boundary_B4,
            delay_penalty=delay_penalty,
            reduction="none",
            return_grad=True,
        )
        ranges_BTW = module.get_rnnt_prune_ranges(*arcs, boundary_B4, min(width, pred_BUJ.shape[1]))
        enc_BTWJ, pred_BTWJ = module.do_rnnt_pruning(am=enc_BTJ, lm=pred_BUJ, ranges=ranges_BTW)
        pruned_B = module.rnnt_loss_pruned(
            *(widened(join(enc_BTWJ, pred_BTWJ)), labels_BU, ranges_BTW, BLANK, boundary_B4),
            delay_penalty=delay_penalty,
            reduction="none",
        )
        return simple_B, pruned_B

    return loss


def _boundary(frames_B: Tensor, lengths_B: Tensor) -> Tensor:
    """First label, first frame, and their ends, (B, 4), as k2 has them."""
    zeros_B = torch.zeros_like(frames_B, dtype=torch.long)
    return torch.stack([zeros_B, zeros_B, lengths_B.long(), frames_B.long()], 1)


def _check(logits_BTUV: Tensor, labels_BU: Tensor, frames_B: Tensor, lengths_B: Tensor) -> None:
    """What ours refuses: others may read beyond their buffers."""
    check_grid(logits_BTUV.shape[:3], labels_BU, frames_B, lengths_B)
    check_labels(labels_BU, logits_BTUV.shape[3])


def _refuse(backend: str, **terms: float) -> None:
    for name, value in terms.items():
        if value:
            raise ValueError(f"{name} is {value}, but the loss of {backend} has no such term; use the native loss")


def _is_installed(backend: str) -> bool:
    try:
        imported(backend)
    except ValueError:
        return False
    return True


def imported(backend: str) -> ModuleType:
    """The library of a backend, for whoever uses more of it than its losses.

    Raises:
        ValueError: when there is no such backend, or it is not installed; the message says how to.
    """
    if backend not in MODULES:
        raise ValueError(f"there is no loss backend '{backend}'; there are: {', '.join(BACKENDS)}")
    try:
        return importlib.import_module(MODULES[backend])
    except (ImportError, OSError) as error:  # OSError: there, but built for another torch
        raise ValueError(f"{backend}: {error}; to install it: {INSTALL[backend]}") from None
