"""Slow, obvious twins: every path of a grid, one by one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kdtrans.contracts import BLANK


def every_path(num_frames: int, labels: list[int]) -> Iterator[list[int]]:
    """All paths that spell the labels: interleavings of T blanks and U labels that end with a blank."""

    def extend(path: list[int], t: int, u: int) -> Iterator[list[int]]:
        if t == num_frames:
            if u == len(labels):
                yield path
            return
        yield from extend([*path, BLANK], t + 1, u)
        if u < len(labels):
            yield from extend([*path, labels[u]], t, u + 1)

    return extend([], 0, 0)


def path_score(log_probs_TUV: Tensor, path: list[int]) -> Tensor:
    """Sum of the log-probabilities of a path's tokens."""
    t = u = 0
    score = log_probs_TUV.new_zeros(())
    for token in path:
        score = score + log_probs_TUV[t, u, token]
        t, u = (t + 1, u) if token == BLANK else (t, u + 1)
    return score


def total_by_enumeration(log_probs_TUV: Tensor, labels: list[int]) -> Tensor:
    """log P(labels) as the log-sum over all paths."""
    scores = [path_score(log_probs_TUV, path) for path in every_path(log_probs_TUV.shape[0], labels)]
    return torch.stack(scores).logsumexp(0)
