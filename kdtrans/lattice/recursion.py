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
    return _accumulate(blank_BTU.double(), label_BTU.double())


def forward_backward_scores(
    blank_BTU: Tensor, label_BTU: Tensor, frames_B: Tensor, lengths_B: Tensor
) -> tuple[Tensor, Tensor]:
    """alpha as `forward_scores`, and beta (B, T + 1, U + 1), fp64: log-sum of all paths from each node to the end.

    Row T_b of an utterance with T_b frames is the end itself: 0 at u = U_b. Nodes off an utterance's grid are
    impossible. beta is the alpha of the grid read from its end, so that one loop over frames makes both.
    """
    blank, label = blank_BTU.double(), label_BTU.double()
    batch, num_frames, columns = blank.shape
    device = blank.device
    # Node (t, u) is (T_b - 1 - t, U_b - u) from the end, and an arc is weighted where it arrives, not where it leaves.
    t_BT = frames_B[:, None] - 1 - torch.arange(num_frames, device=device)
    u_BU = lengths_B[:, None] - torch.arange(columns, device=device)
    rows_B11 = torch.arange(batch, device=device)[:, None, None]
    before_BT1, at_BT1 = (t_BT - 1).clamp(min=0)[:, :, None], t_BT.clamp(min=0)[:, :, None]
    from_end_blank = blank[rows_B11, before_BT1, u_BU.clamp(min=0)[:, None]]
    from_end_label = label[rows_B11, at_BT1, (u_BU[:, :-1] - 1).clamp(min=0)[:, None]]
    both = _accumulate(torch.cat([blank, from_end_blank]), torch.cat([label, from_end_label]))
    alpha, from_end = both[:batch], both[batch:]

    last = (torch.arange(batch, device=device), frames_B - 1, lengths_B)
    read_back = from_end[rows_B11, at_BT1, u_BU.clamp(min=0)[:, None]] + blank[last][:, None, None]
    on_grid = (t_BT >= 0)[:, :, None] & (u_BU >= 0)[:, None]
    beta = blank.new_full((batch, num_frames + 1, columns), IMPOSSIBLE)
    beta[:, :num_frames] = torch.where(on_grid, read_back, IMPOSSIBLE)
    beta[last[0], frames_B, lengths_B] = 0.0
    return alpha, beta


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


def _accumulate(blank: Tensor, label: Tensor) -> Tensor:
    """alpha of the header's recursion; what stays the same from frame to frame is kept out of the loop."""
    offset = _label_offsets(label)
    step_TBU = (blank[:, :-1] + offset[:, :-1] - offset[:, 1:]).transpose(0, 1).contiguous()
    above = torch.zeros_like(offset[:, 0])  # alpha - c
    frames = [above]
    for step_BU in step_TBU.unbind(0):
        above = (above + step_BU).logcumsumexp(1)
        frames.append(above)
    return torch.stack(frames, 1) + offset


def _label_offsets(label_BTU: Tensor) -> Tensor:
    """c (B, T, U + 1): the sum of a frame's label log-probs below each u."""
    return F.pad(label_BTU.double().cumsum(2), (1, 0))
