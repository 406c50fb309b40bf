"""Exact sums and maxima over all paths of a transducer's grid, frame by frame, in fp64.

Within a frame the recursion along u is a cumulative operation. With c_u = sum of frame t's label log-probs below u,

    alpha(t, u) = c_u + logcumsumexp_{u' <= u}( alpha(t-1, u') + blank(t-1, u') - c_u' )

and the Viterbi recursion is the same with a cumulative maximum, whose arg-max is the back-pointer. So the only loop is
over frames: in Python, or in a kernel of its own on CUDA (kernel.py). c grows with U, and the differences cancel: hence
fp64.

Shapes: B utterances, T frames, U labels. blank_BTU (B, T, U + 1) and label_BTU (B, T, U) are log-probabilities; cells
beyond an utterance's lengths may hold anything finite. No gradient passes: losses have theirs in closed form.
"""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtrans.lattice.path import path_from_frames

IMPOSSIBLE = -1.0e30  # finite, so that differences of impossible scores are not NaN


@torch.no_grad()
def forward_scores(blank_BTU: Tensor, label_BTU: Tensor) -> Tensor:
    """alpha (B, T, U + 1), fp64: log-sum of all partial paths from (0, 0) to each node."""
    return _accumulate(blank_BTU.double(), label_BTU.double())


@torch.no_grad()
def forward_backward_scores(
    blank_BTU: Tensor, label_BTU: Tensor, frames_B: Tensor, lengths_B: Tensor, starts_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """alpha as `forward_scores`, and beta (B, T + 1, U + 1), fp64: log-sum of all paths from each node to the end.

    Row T_b of an utterance with T_b frames is the end itself: 0 at u = U_b. Nodes off an utterance's grid are
    impossible in beta. log P(y | x) is beta at (0, 0), too.

    Where paths keep to a band, `starts_BT` says where: then the columns of row t are the nodes from u = starts_BT[b, t]
    on, and nothing outside is computed. A row's columns have to hold the band; of those that it has not, blank is
    impossible.

    Args:
        blank_BTU: log-probability of blank, (B, T, U + 1).
        label_BTU: log-probability of the next label, (B, T, U).
        frames_B: frames of each utterance.
        lengths_B: labels of each utterance.
        starts_BT: the u of each row's first column, never falling from row to row, constant from an utterance's last
            frame on; None: 0.
    """
    blank, label = _closed(blank_BTU.double(), label_BTU.double(), frames_B, lengths_B, starts_BT)
    # beta is the alpha of the grid read from its end, so that one loop over frames makes both. An arc is weighted in
    # the row that it leaves: that is where it arrives when read from the end.
    up, down = F.pad(label.cumsum(2), (1, 0, 0, 1)), F.pad(label.flip(1, 2).cumsum(2), (1, 0, 1, 0))
    leaving = torch.cat([blank + up[:, :-1], down[:, :-1]])
    arriving = torch.cat([-up[:, 1:], blank.flip(1, 2) - down[:, 1:]])
    column_BTU = None if starts_BT is None else _columns_above(starts_BT, blank.shape[2])
    sums = _log_sums(_climbed(leaving, column_BTU) + arriving, column_BTU)
    alpha, beta = (sums + torch.cat([up, down])).chunk(2)
    # From the end on labels are free, as they are off the grid, but only U_b is the end.
    ended_BT1 = (torch.arange(beta.shape[1], device=beta.device) >= frames_B[:, None])[:, :, None]
    rows_BT = None if starts_BT is None else torch.cat([starts_BT, starts_BT[:, -1:]], 1)
    is_no_end = ended_BT1 & (_labels_before(rows_BT, beta) != lengths_B[:, None, None])
    return alpha[:, :-1], beta.flip(1, 2).masked_fill_(is_no_end, IMPOSSIBLE)


def _labels_before(starts_BT: Tensor | None, rows_BTU: Tensor) -> Tensor:
    """u of every column, (B, T, U + 1) or (U + 1,)."""
    column_U = torch.arange(rows_BTU.shape[2], device=rows_BTU.device)
    return column_U if starts_BT is None else starts_BT[:, :, None] + column_U


def _closed(
    blank: Tensor, label: Tensor, frames_B: Tensor, lengths_B: Tensor, starts_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The arcs without those that lead off the grid or do not end at u = U_b; from the end on, blank is free there.

    So all utterances end in the last row. Labels off the grid are free: an impossible one would swallow the sums of the
    labels before it, and without blanks it leads nowhere.
    """
    t_T, u_BTU = torch.arange(blank.shape[1], device=blank.device), _labels_before(starts_BT, blank)
    length_B11, last_B1 = lengths_B[:, None, None], frames_B[:, None] - 1
    is_open = torch.where((t_T < last_B1)[:, :, None], u_BTU <= length_B11, u_BTU == length_B11)
    beyond_BT1 = (t_T > last_B1)[:, :, None]
    blank = blank.masked_fill(beyond_BT1, 0.0).masked_fill(~is_open, IMPOSSIBLE)
    return blank, label.masked_fill(beyond_BT1 | (u_BTU >= length_B11)[..., :-1], 0.0)


def _columns_above(starts_BT: Tensor, columns: int) -> Tensor:
    """For each column of a row its column in the row before, (2 B, T, U + 1), of the grid and of it read from its end.

    It is `columns` or more where that row has none.
    """
    climb_BT = F.pad(starts_BT.diff(dim=1), (0, 1))  # how much higher each next row begins; the end's as the last one
    return torch.cat([climb_BT, climb_BT.flip(1)])[:, :, None] + torch.arange(columns, device=climb_BT.device)


def _climbed(rows_BTU: Tensor, column_BTU: Tensor | None) -> Tensor:
    """Each row in the columns of the next one; impossible where it has none."""
    if column_BTU is None:
        return rows_BTU
    columns = rows_BTU.shape[2]
    return rows_BTU.gather(2, column_BTU.clamp(max=columns - 1)).masked_fill(column_BTU >= columns, IMPOSSIBLE)


def total_score(alpha_BTU: Tensor, blank_BTU: Tensor, frames_B: Tensor, lengths_B: Tensor) -> Tensor:
    """log P(y | x) (B,), fp64: alpha at the last node and its blank."""
    batch = torch.arange(len(frames_B), device=frames_B.device)
    last = (batch, frames_B - 1, lengths_B)
    return alpha_BTU[last] + blank_BTU[last].double()


@torch.no_grad()
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
    batch, num_frames, _ = blank_BTU.shape
    steps_BTU, offset_BTU = _steps(blank_BTU.double(), label_BTU.double())
    best_BTU, entries_BTU = _maxima(steps_BTU)

    # Walk back: an utterance leaves its last frame at u = U_b, and each earlier frame where the next one was entered.
    leave = lengths_B.clone()
    leaves = torch.empty(batch, num_frames, dtype=torch.long, device=blank_BTU.device)
    for t in range(num_frames - 1, -1, -1):
        leaves[:, t] = leave
        stepped = entries_BTU[:, t].gather(1, leave[:, None])[:, 0]
        leave = torch.where(t < frames_B, stepped, leave)

    # Label u is emitted on the first frame that is left above u, that is after all frames left at or below u.
    labels = torch.arange(labels_BU.shape[1], device=blank_BTU.device)
    real = torch.arange(num_frames, device=blank_BTU.device) < frames_B[:, None]
    emission_BU = ((leaves[:, :, None] <= labels) & real[:, :, None]).sum(1)
    path = path_from_frames(labels_BU, emission_BU, frames_B, lengths_B)
    return path, total_score(best_BTU + offset_BTU, blank_BTU, frames_B, lengths_B)


def _accumulate(blank: Tensor, label: Tensor) -> Tensor:
    """alpha of the header's recursion."""
    steps_BTU, offset_BTU = _steps(blank, label)
    return _log_sums(steps_BTU) + offset_BTU


def _steps(blank: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """What leads from each frame to the next (B, T - 1, U + 1), and c (B, T, U + 1): all but the loop over frames.

    c is the sum of a frame's label log-probs below each u. The loop is over alpha - c, so that a step is one addition.
    """
    offset_BTU = F.pad(label.cumsum(2), (1, 0))
    return blank[:, :-1] + offset_BTU[:, :-1] - offset_BTU[:, 1:], offset_BTU


def _log_sums(steps_BTU: Tensor, column_BTU: Tensor | None = None) -> Tensor:
    """alpha - c (B, T, U + 1); `column_BTU`: for each step's columns those of the row before, None: the same."""
    if column_BTU is None and (kernel := _kernel_for(steps_BTU)):
        sums_BTU: Tensor = kernel.log_sums(steps_BTU)
        return sums_BTU
    above_BU = steps_BTU.new_zeros(steps_BTU.shape[0], steps_BTU.shape[2])
    frames = [above_BU]
    # Where the row before has no such column, the step is impossible, and any will do.
    column_TBU = None if column_BTU is None else column_BTU.clamp(max=steps_BTU.shape[2] - 1).transpose(0, 1)
    for t, step_BU in enumerate(steps_BTU.transpose(0, 1).contiguous()):
        if column_TBU is not None:
            above_BU = above_BU.gather(1, column_TBU[t])
        above_BU = (above_BU + step_BU).logcumsumexp(1)
        frames.append(above_BU)
    return torch.stack(frames, 1)


def _maxima(steps_BTU: Tensor) -> tuple[Tensor, Tensor]:
    """Viterbi scores - c (B, T, U + 1), and the u at which the best partial path to each node enters its frame."""
    if kernel := _kernel_for(steps_BTU):
        best_BTU, entries_BTU = kernel.maxima(steps_BTU)
        return best_BTU, entries_BTU
    best_BU = steps_BTU.new_zeros(steps_BTU.shape[0], steps_BTU.shape[2])
    frames, entries = [best_BU], [torch.zeros_like(best_BU, dtype=torch.long)]
    for step_BU in steps_BTU.transpose(0, 1).contiguous():
        best_BU, entry_BU = (best_BU + step_BU).cummax(1)
        frames.append(best_BU)
        entries.append(entry_BU)
    return torch.stack(frames, 1), torch.stack(entries, 1)


def _kernel_for(steps_BTU: Tensor) -> ModuleType | None:
    """The module whose kernels run the loops over these steps; None: they run in torch."""
    kernel = _triton_kernel() if steps_BTU.is_cuda else None
    return kernel if kernel and steps_BTU.shape[2] <= kernel.LONGEST_ROW else None


@cache
def _triton_kernel() -> ModuleType | None:
    try:
        from kdtrans.lattice import kernel

        kernel.log_sums(torch.zeros(1, 1, 1, dtype=torch.float64, device="cuda"))
    except Exception as error:  # no Triton, no C compiler for it, a GPU that it does not know
        print(f"warning: the lattice loops over frames in torch, as Triton fails: {error}", file=sys.stderr, flush=True)
        return None
    return kernel
