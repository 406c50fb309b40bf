"""The lattice over the nodes of a batch's grids, or of bands in them.

Shapes: B utterances, T frames, U labels, N nodes of the whole batch, W columns of a row of the lattice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdtrans.lattice.recursion import IMPOSSIBLE, forward_backward_scores
from kdtrans.losses.grid import Cells, next_labels
from kdtrans.losses.transducer import earliness, on_grid, posterior


@dataclass(frozen=True)
class NodeLattice:
    """The nodes that paths may visit, and where they stand in the rows that the recursion takes.

    A row is a frame. Its columns are all u or, in a band, as many as the band's widest frame has.
    """

    cells: Cells
    next_N: Tensor  # the label that is emitted next
    frames_B: Tensor
    lengths_B: Tensor
    delay_penalty: float
    size: tuple[int, int, int]  # B, T, W
    starts_BT: Tensor | None  # u of each row's first column; None: 0
    leaves_N: Tensor | None  # whether a node's blank leads off the band; None: there is no band

    @classmethod
    def of(
        cls,
        labels_BU: Tensor,
        frames_B: Tensor,
        lengths_B: Tensor,
        num_frames: int,
        delay_penalty: float,
        band_BTU: Tensor | None,
        whole_rows: bool = False,
    ) -> NodeLattice:
        """That of a batch; arguments as in `fused_transducer_loss`, and whether a band's rows have all columns, too."""
        grid_BTU = on_grid(frames_B, lengths_B, num_frames, labels_BU.shape[1] + 1)
        starts_BT, columns, leaves_N = None, grid_BTU.shape[2], None
        open_BTU = grid_BTU if band_BTU is None else grid_BTU & band_BTU
        cells = Cells(*open_BTU.nonzero(as_tuple=True))
        if band_BTU is not None:
            below = (cells.utterance_N, (cells.t_N + 1).clamp(max=num_frames - 1), cells.u_N)
            leaves_N = grid_BTU[below] & ~band_BTU[below]
            if not whole_rows:
                starts_BT, columns = band_rows(open_BTU, frames_B)
        next_N = next_labels(labels_BU, lengths_B, cells)
        size = (len(frames_B), num_frames, columns)
        return cls(cells, next_N, frames_B, lengths_B, delay_penalty, size, starts_BT, leaves_N)

    def total_and_arcs(self, blank_N: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log P(labels) (B,), fp64, and the posteriors of the nodes' blank and label arcs (N,), in the scores' dtype.

        No path leaves the band. Off it blank is impossible, but labels are free: they only lead up within their frame,
        and an impossible one would swallow the sums of the labels before it (lattice/recursion.py). So two arcs keep
        paths inside: blank off the band, above it, and blank that leads off the band, below it.

        Args:
            blank_N: log-probability of blank at every node.
            label_N: that of the next label; whatever it is where none follows.
        """
        dtype, (b_N, t_N, u_N) = blank_N.dtype, self.cells
        blank_N, label_N = blank_N.double(), label_N.double()
        if self.leaves_N is not None:
            blank_N = blank_N.masked_fill(self.leaves_N, IMPOSSIBLE)
        if self.delay_penalty:
            label_N = label_N + self.delay_penalty * earliness(self.frames_B[b_N], t_N)
        column_N = u_N if self.starts_BT is None else u_N - self.starts_BT[b_N, t_N]
        blank = blank_N.new_full(self.size, IMPOSSIBLE).index_put_((b_N, t_N, column_N), blank_N)
        label = label_N.new_zeros(self.size).index_put_((b_N, t_N, column_N), label_N)
        alpha, beta = forward_backward_scores(blank, label[:, :, :-1], self.frames_B, self.lengths_B, self.starts_BT)
        total_B = beta[:, 0, 0]
        reach_N = alpha[b_N, t_N, column_N] - total_B[b_N]
        below_N = column_N
        if self.starts_BT is not None:
            # The end's row begins as the last frame's. Where blank leads off the band it is impossible: any will do.
            next_N = (t_N + 1).clamp(max=self.size[1] - 1)
            below_N = (u_N - self.starts_BT[b_N, next_N]).clamp(min=0)
        has_label_N = (u_N < self.lengths_B[b_N]) & (column_N + 1 < self.size[2])
        above_N = torch.where(has_label_N, column_N + 1, column_N)
        blank_arc_N = posterior(reach_N + blank_N + beta[b_N, t_N + 1, below_N], dtype)
        label_arc_N = (reach_N + label_N + beta[b_N, t_N, above_N]).masked_fill(~has_label_N, -torch.inf)
        return total_B, blank_arc_N, posterior(label_arc_N, dtype)


def band_rows(band_BTU: Tensor, frames_B: Tensor) -> tuple[Tensor, int]:
    """The u (B, T) at which each row of a lattice begins, and how many columns rows have, to hold a band.

    The first row begins at 0, where paths do; starts never fall, and an utterance's last one stays in its padding.
    """
    num_frames, columns = band_BTU.shape[1:]
    present_BTU = band_BTU.byte()  # what argmax takes
    t_T = torch.arange(num_frames, device=band_BTU.device)
    row_BT = torch.minimum(t_T, frames_B[:, None] - 1)
    low_BT, high_BT = present_BTU.argmax(2), columns - 1 - present_BTU.flip(2).argmax(2)
    low_BT[:, 0] = 0
    low_BT = low_BT.gather(1, row_BT).flip(1).cummin(1).values.flip(1)
    return low_BT, int((high_BT.gather(1, row_BT) - low_BT).max()) + 1
