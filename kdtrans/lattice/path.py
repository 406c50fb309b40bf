"""Paths through the T x (U + 1) grid of a transducer.

A path is its tokens with blanks: blank moves to the next frame, a label stays on its frame and moves to the next label.
It has T blanks and U labels, N = T + U nodes, and ends with the blank at (T - 1, U). The coordinates of its nodes are
cumulative sums of the tokens and are never stored.

Shapes: B utterances, T frames, U labels, N nodes; padding of a path is marked by lengths, never by value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdtrans.contracts import BLANK


def nodes(path_N: Tensor) -> tuple[Tensor, Tensor]:
    """Frame t and label count u of every node (N,) of a path (N,), before its token is emitted."""
    blanks = (path_N == BLANK).long()
    return blanks.cumsum(0) - blanks, (1 - blanks).cumsum(0) - (1 - blanks)


def path_from_frames(labels_BU: Tensor, emission_BU: Tensor, frames_B: Tensor, lengths_B: Tensor) -> Tensor:
    """Paths (B, max N) from labels, the frames that emit them, and the numbers of frames and labels.

    The u-th label on frame f is node f + u of the path, and everything else is blank: no loop is needed.
    """
    batch, num_labels = labels_BU.shape
    longest = int((frames_B + lengths_B).max())
    real = torch.arange(num_labels, device=labels_BU.device) < lengths_B[:, None]
    position = emission_BU + torch.arange(num_labels, device=labels_BU.device)
    # One spare column swallows the padding's writes.
    path = torch.full((batch, longest + 1), BLANK, dtype=labels_BU.dtype, device=labels_BU.device)
    path.scatter_(1, position.masked_fill(~real, longest), labels_BU)
    return path[:, :longest]


def check_path(path_N: Tensor, num_frames: int, name: str) -> None:
    """Raise ValueError naming `name` unless the path has `num_frames` blanks and ends with one."""
    blanks = int((path_N == BLANK).sum())
    if blanks != num_frames or len(path_N) == 0 or int(path_N[-1]) != BLANK:
        last = int(path_N[-1]) if len(path_N) else None
        raise ValueError(
            f"{name}: path has {blanks} blanks for {num_frames} frames and ends with token {last}, not blank"
        )
