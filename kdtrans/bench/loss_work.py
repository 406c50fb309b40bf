"""One transducer loss at work, in a process of its own: what `kdtrans bench loss` starts for every loss it measures.

It may run under another Python than the rest, one that has k2: so it imports no more than the losses do.

    python -m kdtrans.bench.loss_work NAME B T U V THREADS

prints {"memory": MB, "grad_error": number or null}, and then, for every line it reads, the CPU seconds of a forward and
backward.

Shapes: B utterances, T frames, U labels, J joiner width, V vocabulary.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kdtrans.bench.measure import cpu_seconds, peak_growth_mb
from kdtrans.lattice.path import nodes, path_from_frames
from kdtrans.losses.backends import BACKENDS, loss_of_logits, pruned_loss
from kdtrans.losses.band import path_band
from kdtrans.losses.fused import fused_transducer_loss
from kdtrans.losses.grid import Cells
from kdtrans.losses.transducer import transducer_loss
from kdtrans.models.transducer import Joiner, SimpleJoiner

J, WIDTH, MARGIN = 256, 5, 4
PRUNED = "_pruned"  # behind the name of the library whose pruned loss it is
Work = Callable[[], Tensor]  # forward and backward; the gradient of the first input


class Size(NamedTuple):
    """Of a batch whose utterances are all as long."""

    B: int
    T: int
    U: int
    V: int


TINY = Size(2, 10, 4, 16)
LARGEST_BLOCK = 32_000_000  # bytes; a little below glibc's limit, 32 MiB


def make_work(name: str, size: Size) -> Work:
    """One loss on random inputs, the same for all losses of a size.

    Args:
        name: logits given: a backend; with the joiner in front, on projected encoder and predictor outputs: unfused,
            chunked (fused, the whole grid), banded (along a path), or BACKEND_pruned, whose simple joiner has
            projections of its own, which are part of it as they are of a training step (E = J).
        size: of the batch.

    Raises:
        ValueError: when there is no such loss, or it is not installed.
    """
    B, T, U, V = size
    torch.manual_seed(0)
    grid = torch.randint(1, V, (B, U)), torch.full((B,), T), torch.full((B,), U)
    if name in BACKENDS:
        loss, logits = loss_of_logits(name), torch.randn(B, T, U + 1, V, requires_grad=True)
        return lambda: torch.autograd.grad(loss(logits, *grid).sum(), logits)[0]

    joiner = Joiner(1, 1, J, V)
    parameters = tuple(joiner.output.parameters())
    enc, pred = torch.randn(B, T, J, requires_grad=True), torch.randn(B, U + 1, J, requires_grad=True)
    path = path_cells(*grid, torch.randint(T, (B, U)).sort(1).values)  # shards have it

    def unfused() -> Tensor:
        loss_B = transducer_loss(joiner(enc[:, :, None], pred[:, None]), *grid)
        return torch.autograd.grad(loss_B.sum(), (enc, pred, *parameters))[0]

    def fused(is_banded: bool) -> Tensor:
        band = path_band(path, *grid[1:], T, U + 1, WIDTH, MARGIN) if is_banded else None
        loss_B = fused_transducer_loss(joiner, parameters, enc, pred, *grid, band_BTU=band)
        return torch.autograd.grad(loss_B.sum(), (enc, pred, *parameters))[0]

    if name == "unfused":
        return unfused
    if name in ("chunked", "banded"):
        return lambda: fused(name == "banded")
    if not name.endswith(PRUNED):
        raise ValueError(f"there is no loss '{name}'")
    two_losses, simple_joiner = pruned_loss(name.removesuffix(PRUNED)), SimpleJoiner(J, J, V)
    outputs = torch.randn(B, T, J, requires_grad=True), torch.randn(B, U + 1, J, requires_grad=True)
    learnt = (enc, pred, *outputs, *simple_joiner.parameters(), *parameters)

    def pruned() -> Tensor:
        simple_B, pruned_B = two_losses(joiner, parameters, enc, pred, *simple_joiner(*outputs), *grid, width=WIDTH)
        return torch.autograd.grad((simple_B + pruned_B).sum(), learnt)[0]

    return pruned


def path_cells(labels_BU: Tensor, frames_B: Tensor, lengths_B: Tensor, emission_BU: Tensor) -> Cells:
    """The nodes of the paths that emit the labels on the frames `emission_BU`; all utterances are as long."""
    paths = path_from_frames(labels_BU, emission_BU, frames_B, lengths_B)
    found = [(torch.full_like(path, b), *nodes(path)) for b, path in enumerate(paths)]
    return Cells(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def gradient_error(name: str, size: Size) -> float:
    """Greatest difference of a logit's gradient in fp32 from one that is fp64 throughout; gradients are within 1."""
    _, T, U, V = size
    torch.manual_seed(1)
    logits = torch.randn(1, T, U + 1, V, requires_grad=True)  # one utterance: the fp64 twin is large
    batch = (torch.randint(1, V, (1, U)), torch.tensor([T]), torch.tensor([U]))
    wide = logits.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(transducer_loss(wide, *batch).sum(), wide)
    (theirs,) = torch.autograd.grad(loss_of_logits(name)(logits, *batch).sum(), logits)
    return float((theirs - exact).abs().max())


def keep_memory() -> None:
    """Make this process keep the memory that it frees, as one that trains does after its first large batch.

    glibc gives large blocks back to the system until one of their size was freed, up to 32 MB. What a fresh process
    spends on getting them again, and on their pages, is no part of a training step, and was a third of some losses.
    """
    block = torch.ones(LARGEST_BLOCK // 4)
    del block


def main(name: str, *numbers: str) -> None:
    """Measure memory and truth, then time as often as asked."""
    *size, threads = map(int, numbers)
    torch.set_num_threads(threads)
    make_work(name, TINY)()  # code and libraries are loaded by a tiny one
    work = make_work(name, Size(*size))
    facts = {"memory": peak_growth_mb(work), "grad_error": None}
    if name in BACKENDS:
        facts["grad_error"] = gradient_error(name, Size(*size))
    print(json.dumps(facts), flush=True)
    keep_memory()
    for _ in sys.stdin:
        print(cpu_seconds(work), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
