"""Exact sums and maxima over all paths of a transducer's grid, frame by frame, in fp64.

Within a frame the recursion along u is a cumulative operation. With c_u = sum of frame t's label log-probs below u,

    alpha(t, u) = c_u + logcumsumexp_{u' <= u}( alpha(t-1, u') + blank(t-1, u') - c_u' )

and the Viterbi recursion is the same with a cumulative maximum, whose arg-max is the back-pointer. So the only Python
loop is over frames, on CPU and GPU alike. c grows with U, and the differences cancel: hence fp64.

Shapes: B utterances, T frames, U labels. blank_BTU (B, T, U + 1) and label_BTU (B, T, U) are log-probabilities; cells
beyond an utterance's lengths may hold anything finite.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtrans.lattice.path import path_from_frames

IMPOSSIBLE = -1.0e30  # finite, so that differences of impossible scores are not NaN


def forward_scores(blank_BTU: Tensor, label_BTU: Tensor) -> Tensor:
    """alpha (B, T, U + 1), fp64: log-sum of all partial paths from (0, 0) to each node."""
    blank, offset = blank_BTU.double(), _label_offsets(label_BTU)
    alpha = torch.empty_like(blank)
    alpha[:, 0] = offset[:, 0]
    for t in range(1, blank.shape[1]):
        entered = alpha[:, t - 1] + blank[:, t - 1] - offset[:, t]
        alpha[:, t] = offset[:, t] + entered.logcumsumexp(1)
    return alpha


def backward_scores(blank_BTU: Tensor, label_BTU: Tensor, frames_B: Tensor, lengths_B: Tensor) -> Tensor:
    """beta (B, T + 1, U + 1), fp64: log-sum of all paths from each node to the end of its utterance.

    Row T_b of an utterance with T_b frames is the end itself: 0 at u = U_b, impossible elsewhere.
    """
    blank, offset = blank_BTU.double(), _label_offsets(label_BTU)
    batch, num_frames, columns = blank.shape
    end = blank.new_full((batch, columns), IMPOSSIBLE).scatter_(1, lengths_B[:, None], 0.0)
    beta = blank.new_empty(batch, num_frames + 1, columns)
    beta[:, num_frames] = end
    for t in range(num_frames - 1, -1, -1):
        beta[:, t + 1] = torch.where((frames_B == t + 1)[:, None], end, beta[:, t + 1])
        left = beta[:, t + 1] + blank[:, t] + offset[:, t]
        beta[:, t] = left.flip(1).logcumsumexp(1).flip(1) - offset[:, t]
    return beta


def total_score(alpha_BTU: Tensor, blank_BTU: Tensor, frames_B: Tensor, lengths_B: Tensor) -> Tensor:
    """log P(y | x) (B,), fp64: alpha at the last node and its blank."""
    batch = torch.arange(len(frames_B), device=frames_B.device)
    last = (batch, frames_B - 1, lengths_B)
    return alpha_BTU[last] + blank_BTU[last].double()


def viterbi(
    blank_BTU: Tensor, label_BTU: Tensor, labels_BU: Tensor, frames_B: Tensor, lengths_B: Tensor
) -> tuple[Tensor, Tensor]:
    """The best path that spells the labels.

    Args:
        blank_BTU: log-probability of blank at every node, (B, T, U + 1).
        label_BTU: log-probability of the next label at every node, (B, T, U).
        labels_BU: the labels, (B, U).
        frames_B: number of frames of each utterance.
        lengths_B: number of labels of each utterance.

    Returns:
        Paths (B, max N), of which the first frames_B + lengths_B tokens are real, and log-probabilities (B,), fp64.
    """
    blank, offset = blank_BTU.double(), _label_offsets(label_BTU)
    batch, num_frames, _ = blank.shape
    best = offset[:, 0]
    scores, entries = [best], [torch.zeros_like(best, dtype=torch.long)]
    for t in range(1, num_frames):
        entered, entry = (best + blank[:, t - 1] - offset[:, t]).cummax(1)
        best = offset[:, t] + entered
        scores.append(best)
        entries.append(entry)

    # Walk back: an utterance leaves its last frame at u = U_b, and each earlier frame where the next one was entered.
    leave = lengths_B.clone()
    leaves = torch.empty(batch, num_frames, dtype=torch.long, device=blank.device)
    for t in range(num_frames - 1, -1, -1):
        leaves[:, t] = leave
        stepped = entries[t].gather(1, leave[:, None])[:, 0]
        leave = torch.where(t < frames_B, stepped, leave)

    # Label u is emitted on the first frame that is left above u, that is after all frames left at or below u.
    labels = torch.arange(labels_BU.shape[1], device=blank.device)
    real = torch.arange(num_frames, device=blank.device) < frames_B[:, None]
    emission_BU = ((leaves[:, :, None] <= labels) & real[:, :, None]).sum(1)
    path = path_from_frames(labels_BU, emission_BU, frames_B, lengths_B)
    return path, total_score(torch.stack(scores, 1), blank_BTU, frames_B, lengths_B)


def _label_offsets(label_BTU: Tensor) -> Tensor:
    """c (B, T, U + 1): the sum of a frame's label log-probs below each u."""
    return F.pad(label_BTU.double().cumsum(2), (1, 0))
