"""The band of a transducer's grid that a known path, or most of the mass, lies in: where to evaluate its lattice.

The teacher's one-best path says where the mass of a student's lattice will be, so that no second, simple joiner has to
find out, as in pruned losses (Kuang et al. 2022, arXiv 2206.13236). On every frame the band has the path's nodes of the
frames from `margin` before to `margin` after, so that labels may move by so much, and at least `width` nodes.

Nodes are joined one by one, so a band need not be equally wide on all frames, and that matters. On AN4 (letters,
several a frame), the loss of a teacher along its own paths is 20 % too large in a band of 5 nodes on every frame, and
0.02 % with all of a margin of 4 frames, which has 24 instead of 21 % of the grid's nodes; that of a student distilled
along these paths is as close. Students that have not seen the paths emit elsewhere: they are 0.01 and 0.2 nats an
utterance too large with a margin of 4, 0.00 with one of 6.

Shapes: B utterances, T frames, U labels, N nodes of all paths.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtrans.losses.grid import Cells
from kdtrans.losses.transducer import on_grid


def path_band(
    nodes: Cells, frames_B: Tensor, lengths_B: Tensor, num_frames: int, columns: int, width: int, margin: int
) -> Tensor:
    """Nodes that a banded loss sums over, for `fused_transducer_loss`.

    - Connected: the band contains the path, or what can be known of one whose first or last nodes are missing because a
      shift moved them off the grid.
    - Monotone: neither its lower nor its upper edge ever falls from frame to frame.
    - Nested: a larger `width` or `margin` only adds nodes. A width of U_b + 1 or more gives the whole grid.
    - An utterance without a node has no path: its band is its whole grid.

    Args:
        nodes: nodes of the utterances' paths, those of an utterance in order.
        frames_B: frames of each utterance.
        lengths_B: labels of each utterance.
        num_frames: T of the grid, padding included.
        columns: U + 1 of the grid, padding included.
        width: least nodes a frame, >= 1; the path's own are in their middle.
        margin: frames by which a label may be emitted earlier or later, >= 0.

    Returns:
        Whether a node is in the band, (B, T, U + 1), false in padding.

    Raises:
        ValueError: when a node is off its utterance's grid, naming it, or `width` or `margin` is too small.
    """
    if width < 1 or margin < 0:
        raise ValueError(f"a band has width {width} and margin {margin}, expected at least 1 and 0")
    _check(nodes, frames_B, lengths_B)
    low_BT, high_BT = _path_edges(nodes, frames_B, lengths_B, num_frames)
    # Each step keeps monotone edges monotone, and a larger width or margin moves none inwards: so bands are nested.
    start_BT = torch.div(low_BT + high_BT - (width - 1), 2, rounding_mode="floor")
    start_BT = torch.minimum(start_BT, (lengths_B + 1 - width)[:, None]).clamp(min=0)
    end_BT = start_BT + width - 1
    # The edges of a window of frames are the low of its first and the high of its last.
    t_T = torch.arange(num_frames, device=frames_B.device)
    later_BT = torch.minimum((t_T + margin).expand_as(low_BT), frames_B[:, None] - 1)
    start_BT = start_BT.minimum(low_BT[:, (t_T - margin).clamp(min=0)])
    end_BT = end_BT.maximum(high_BT.gather(1, later_BT))

    has_path_B = torch.zeros_like(frames_B, dtype=torch.bool).index_fill_(0, nodes.utterance_N, True)
    u_U = torch.arange(columns, device=frames_B.device)
    band_BTU = (u_U >= start_BT[:, :, None]) & (u_U <= end_BT[:, :, None])
    return (band_BTU | ~has_path_B[:, None, None]) & on_grid(frames_B, lengths_B, num_frames, columns)


def occupation_band(
    blank_arc_BTU: Tensor, label_arc_BTU: Tensor, frames_B: Tensor, lengths_B: Tensor, width: int
) -> Tensor:
    """Nodes that a pruned loss sums over: on every frame, the `width` ones in which most paths stay.

    A path stays in a window of a frame if it leaves the frame from there and has not climbed into it from below: the
    criterion of k2's `get_rnnt_prune_ranges` (Kuang et al. 2022). Where the windows of neighbouring frames do not make
    a monotone, connected band, k2 moves them; here they are kept, and nodes are added between them. So are those
    between the nodes where most paths enter and leave a frame: several labels on a frame cost nodes and not paths.
    A width of U_b + 1 or more gives the whole grid.

    Args:
        blank_arc_BTU: posterior of every blank arc, (B, T, U + 1).
        label_arc_BTU: posterior of every label arc, (B, T, U).
        frames_B: frames of each utterance.
        lengths_B: labels of each utterance.
        width: least nodes a frame, >= 1.

    Returns:
        Whether a node is in the band, (B, T, U + 1), false in padding.

    Raises:
        ValueError: when `width` is too small.
    """
    if width < 1:
        raise ValueError(f"a band has width {width}, expected at least 1")
    num_frames, columns = blank_arc_BTU.shape[1:]
    t_T, u_U = (torch.arange(size, device=frames_B.device) for size in (num_frames, columns))
    below_BTU = F.pad(blank_arc_BTU.cumsum(2), (1, 0))
    stays_BTU = below_BTU[:, :, (u_U + width).clamp(max=columns)] - below_BTU[:, :, :-1] - F.pad(label_arc_BTU, (1, 0))
    last_B1 = (lengths_B + 1 - width).clamp(min=0)[:, None]
    start_BT = stays_BTU.masked_fill(u_U > last_B1[:, :, None], -torch.inf).argmax(2)
    start_BT = torch.where(t_T < frames_B[:, None], start_BT, last_B1)
    leave_BT = torch.where(t_T < frames_B[:, None] - 1, blank_arc_BTU.argmax(2), lengths_B[:, None])
    enter_BT = F.pad(leave_BT[:, :-1], (1, 0))
    low_BT = start_BT.minimum(enter_BT).flip(1).cummin(1).values.flip(1)
    # A path passes from where it leaves a frame to where it enters the next one: the edges overlap there.
    high_BT = (start_BT + width - 1).maximum(leave_BT).cummax(1).values
    band_BTU = (u_U >= low_BT[:, :, None]) & (u_U <= high_BT[:, :, None])
    return band_BTU & on_grid(frames_B, lengths_B, num_frames, columns)


def _path_edges(nodes: Cells, frames_B: Tensor, lengths_B: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
    """Least and greatest u (B, T) of the paths on every frame, completed from (0, 0) to (T_b - 1, U_b)."""
    flat_N = nodes.utterance_N * num_frames + nodes.t_N
    last_BT = lengths_B[:, None].expand(-1, num_frames)
    low_BT = last_BT.clone(memory_format=torch.contiguous_format)
    high_BT = torch.zeros_like(low_BT)
    low_BT.view(-1).scatter_reduce_(0, flat_N, nodes.u_N, "amin")
    high_BT.view(-1).scatter_reduce_(0, flat_N, nodes.u_N, "amax")
    low_BT[:, 0] = 0
    is_last_BT = torch.arange(num_frames, device=frames_B.device) >= frames_B[:, None] - 1
    high_BT = high_BT.where(~is_last_BT, last_BT).cummax(1).values
    # A frame without a node stays between those around it.
    return low_BT.flip(1).cummin(1).values.flip(1).minimum(high_BT), high_BT


def _check(nodes: Cells, frames_B: Tensor, lengths_B: Tensor) -> None:
    off_N = (nodes.t_N < 0) | (nodes.t_N >= frames_B[nodes.utterance_N])
    off_N |= (nodes.u_N < 0) | (nodes.u_N > lengths_B[nodes.utterance_N])
    if bool(off_N.any()):
        utterance, t, u = (int(index_N[off_N][0]) for index_N in nodes)
        raise ValueError(
            f"utterance {utterance} of the batch: node ({t}, {u}) of its path is off its grid of "
            f"{int(frames_B[utterance])} frames and {int(lengths_B[utterance])} labels"
        )
