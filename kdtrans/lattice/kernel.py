"""The lattice's loop over frames as one Triton kernel, for CUDA, where the loop in torch launches two kernels a frame.

A program takes an utterance and keeps a frame's row of the grid in registers; the cumulative operation along u is an
associative scan over it. Everything is fp64. Nothing is infinite here as nothing is in the scores (recursion.py).

Shapes: B utterances, T frames, U labels. steps_BTU (B, T - 1, U + 1) is what leads from each frame to the next.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LONGEST_ROW = 4096  # U + 1 of the largest block; longer rows are left to the loop in torch
LEAST_BLOCK = 32


def log_sums(steps_BTU: Tensor) -> Tensor:
    """alpha - c (B, T, U + 1), fp64, from a recursion's steps in fp64, as `recursion._log_sums` has them."""
    sums_BTU, grid = _rows(steps_BTU, torch.float64)
    with torch.cuda.device_of(steps_BTU):
        _log_sums[grid](steps_BTU.contiguous(), sums_BTU, *sums_BTU.shape[1:], **_block(sums_BTU.shape[2]))
    return sums_BTU


def maxima(steps_BTU: Tensor) -> tuple[Tensor, Tensor]:
    """The best scores - c (B, T, U + 1), fp64, and the column that each frame was entered in, int64.

    As `recursion._maxima` has them; every operation is the same in both, and so is every bit.
    """
    best_BTU, grid = _rows(steps_BTU, torch.float64)
    entries_BTU, _ = _rows(steps_BTU, torch.int64)
    with torch.cuda.device_of(steps_BTU):
        _maxima[grid](
            *(steps_BTU.contiguous(), best_BTU, entries_BTU, *best_BTU.shape[1:]), **_block(best_BTU.shape[2])
        )
    return best_BTU, entries_BTU


def _rows(steps_BTU: Tensor, dtype: torch.dtype) -> tuple[Tensor, tuple[int]]:
    """What a kernel writes, a row more than there are steps, and its grid."""
    batch, steps, columns = steps_BTU.shape
    return torch.empty((batch, steps + 1, columns), dtype=dtype, device=steps_BTU.device), (batch,)


def _block(columns: int) -> dict[str, int]:
    block = max(triton.next_power_of_2(columns), LEAST_BLOCK)
    return {"BLOCK": block, "num_warps": max(block // 128, 1)}


@triton.jit
def _add_logs(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """log(exp a + exp b) of finite numbers; nan of nan, which tl.maximum alone would swallow."""
    return tl.maximum(a, b) + tl.log(1.0 + tl.exp(-tl.abs(a - b)))


@triton.jit
def _later_maximum(a: tl.tensor, u: tl.tensor, b: tl.tensor, w: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The greater of two scores and its column; of equal ones the later, and any nan, as torch's cummax has it."""
    is_later = (b >= a) | (b != b)
    return tl.where(is_later, b, a), tl.where(is_later, w, u)


# Sizes differ from batch to batch: specialised to their divisibility, the kernels would be compiled again and again.
@triton.jit(do_not_specialize=["num_frames", "columns"])
def _log_sums(
    steps: tl.tensor, sums: tl.tensor, num_frames: tl.tensor, columns: tl.tensor, BLOCK: tl.constexpr
) -> None:
    u = tl.arange(0, BLOCK)
    real = u < columns
    utterance = tl.program_id(0).to(tl.int64)
    steps += utterance * (num_frames - 1) * columns + u
    sums += utterance * num_frames * columns + u
    row = tl.zeros([BLOCK], tl.float64)
    tl.store(sums, row, real)
    frame = 1
    while frame < num_frames:  # Triton's interpreter counts to no argument
        # What is beyond the columns is above them, where no sum is taken from.
        row = tl.associative_scan(row + tl.load(steps, real, 0.0), 0, _add_logs)
        sums += columns
        tl.store(sums, row, real)
        steps += columns
        frame += 1


@triton.jit(do_not_specialize=["num_frames", "columns"])
def _maxima(
    steps: tl.tensor,
    best: tl.tensor,
    entries: tl.tensor,
    num_frames: tl.tensor,
    columns: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    u = tl.arange(0, BLOCK)
    real = u < columns
    utterance = tl.program_id(0).to(tl.int64)
    steps += utterance * (num_frames - 1) * columns + u
    best += utterance * num_frames * columns + u
    entries += utterance * num_frames * columns + u
    row = tl.zeros([BLOCK], tl.float64)
    tl.store(best, row, real)
    tl.store(entries, tl.zeros([BLOCK], tl.int64), real)
    frame = 1
    while frame < num_frames:
        row, entry = tl.associative_scan((row + tl.load(steps, real, 0.0), u), 0, _later_maximum)
        best += columns
        entries += columns
        tl.store(best, row, real)
        tl.store(entries, entry, real)
        steps += columns
        frame += 1
