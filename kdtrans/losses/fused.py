"""The transducer loss from the joiner's inputs: the T x U x V logits never exist.

The nodes of all utterances' grids, or of a band in them (losses/band.py), are joined a chunk at a time; padding and
what lies outside the band are never joined. Forward keeps two numbers a node and runs the fp64 lattice over them
(node_lattice.py). Backward joins those nodes again that paths visit with a posterior above rounding, which are few in a
trained model's grid, and feeds each chunk the closed-form gradient of its logits: only one chunk of logits and its
gradient exist (by utterances: arXiv 2211.16270; here by nodes, however long an utterance is).

A band, or the grid of a small batch, has so few nodes that they may all be kept as they were joined. Where paths visit
most of them, as an untrained model's do, backward takes them from there.

Chunks have one shape but for the last, so that oneDNN may multiply them (kdtrans/products.py).

Nodes are gathered one by one, not joined by rectangles of frames and labels: measured on a CPU, rectangles are
13 % faster for the full grid, but bands are none, and short utterances fill no chunk.

Shapes: B utterances, T frames, U labels, J joiner width, V vocabulary with blank = 0, N nodes of the whole batch, C
nodes of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdtrans.losses.distillation import Join, widened
from kdtrans.losses.grid import Cells, next_labels, real_cells
from kdtrans.losses.node_lattice import NodeLattice
from kdtrans.losses.transducer import check_grid, check_labels, node_gradient, node_scores
from kdtrans.products import onednn_products

CHUNK = 512  # nodes: 1 MB of logits at V = 500, which stays in the cache of a CPU's core
THREAD_CHUNK = 2 * CHUNK  # nodes for each of several threads: waking them has to pay
CUDA_CHUNK = 32 * CHUNK  # a device wants more at once; not measured
KEPT = 32 * CHUNK  # nodes: 32 MB of logits at V = 500, beside what the joiner keeps of its own
MOSTLY = 2 / 3  # share of visited nodes from which that pays: joining is one part, its gradient two


def fused_transducer_loss(
    join: Join,
    parameters: Iterable[Tensor],
    enc_BTJ: Tensor,
    pred_BUJ: Tensor,
    labels_BU: Tensor,
    frames_B: Tensor,
    lengths_B: Tensor,
    *,
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
    band_BTU: Tensor | None = None,
    chunk: int | None = None,
    kept: int = KEPT,
) -> Tensor:
    """`transducer_loss(join(enc_BTJ[:, :, None], pred_BUJ[:, None]), ...)`, value and gradient, without that grid.

    Args:
        join: the joiner on (C, J) and (C, J), giving logits (C, V). It runs again while gradients are computed: it has
            to be deterministic, and to enter autocast itself where it is to run so.
        parameters: all that `join` learns; those that it does not use get no gradient.
        enc_BTJ: projected encoder output.
        pred_BUJ: projected predictor output, (B, U + 1, J).
        labels_BU: as in `transducer_loss`, and so are the next four.
        frames_B: frames of each utterance.
        lengths_B: labels of each utterance.
        fastemit: scales the gradient through label arcs.
        delay_penalty: nats a frame.
        band_BTU: nodes that paths may visit, (B, T, U + 1), contiguous along U (`path_band`); None: all. The loss sums
            over fewer paths then, and is never smaller than the full one.
        chunk: nodes joined at once; None: what the device likes.
        kept: nodes that may be kept as they were joined, for the gradient; a batch that has more keeps none.

    Returns:
        Loss of each utterance (B,), nats, fp32 or wider, differentiable in encoder, predictor and parameters.

    Raises:
        ValueError: when shapes or lengths contradict each other.
    """
    shape = (*enc_BTJ.shape[:2], pred_BUJ.shape[1])
    check_grid(shape, labels_BU, frames_B, lengths_B)
    if band_BTU is not None and band_BTU.shape != shape:
        raise ValueError(
            f"band_BTU is {tuple(band_BTU.shape)}, expected {shape} for these encoder and predictor outputs"
        )
    # On CUDA one kernel runs over all frames of a row's every column (lattice/kernel.py).
    lattice = NodeLattice.of(
        *(labels_BU, frames_B, lengths_B, shape[1], delay_penalty, band_BTU), whole_rows=enc_BTJ.is_cuda
    )
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    chunk = chunk or chunk_on(enc_BTJ.device)
    loss: Tensor = _FusedLoss.apply(join, labels_BU, lattice, fastemit, chunk, kept, enc_BTJ, pred_BUJ, *trained)
    return loss


def chunk_on(device: torch.device) -> int:
    """Nodes to join at once."""
    if device.type == "cuda":
        return CUDA_CHUNK
    threads = torch.get_num_threads()
    return CHUNK if threads == 1 else THREAD_CHUNK * threads


@torch.no_grad()
def arc_scores(
    join: Join, enc_BTJ: Tensor, pred_BUJ: Tensor, labels_BU: Tensor, frames_B: Tensor, lengths_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the arcs of each utterance's grid, as the lattice takes them.

    Args:
        join: the joiner on (C, J) and (C, J), giving logits (C, V).
        enc_BTJ: projected encoder output.
        pred_BUJ: projected predictor output, (B, U + 1, J).
        labels_BU: the labels.
        frames_B: frames of each utterance.
        lengths_B: labels of each utterance.

    Returns:
        Those of blank (B, T, U + 1) and of the next label (B, T, U), fp32; 0 in the padding.
    """
    cells = real_cells(frames_B, lengths_B)
    next_N = next_labels(labels_BU, lengths_B, cells)
    blank_BTU = torch.zeros(*enc_BTJ.shape[:2], pred_BUJ.shape[1], device=enc_BTJ.device)
    label_BTU = torch.zeros_like(blank_BTU)
    for b_C, t_C, u_C, next_C in zip(*(part.split(chunk_on(enc_BTJ.device)) for part in (*cells, next_N)), strict=True):
        blank_C, label_C = node_scores(join(enc_BTJ[b_C, t_C], pred_BUJ[b_C, u_C]), next_C)
        blank_BTU[b_C, t_C, u_C], label_BTU[b_C, t_C, u_C] = blank_C, label_C
    return blank_BTU, label_BTU[:, :, :-1]


class _Joined(NamedTuple):
    """A chunk of nodes: the rows gathered for it, and what the joiner makes of them."""

    enc_CJ: Tensor
    pred_CJ: Tensor
    logits_CV: Tensor


class _Joining(NamedTuple):
    """The nodes of a batch on their way through the joiner."""

    join: Join
    enc_FJ: Tensor  # frames of all utterances, padding included
    pred_PJ: Tensor
    frame_N: Tensor  # row of enc_FJ
    column_N: Tensor  # row of pred_PJ
    chunk: int

    @classmethod
    def of(cls, join: Join, enc_BTJ: Tensor, pred_BUJ: Tensor, cells: Cells, chunk: int) -> _Joining:
        frame_N = cells.utterance_N * enc_BTJ.shape[1] + cells.t_N
        column_N = cells.utterance_N * pred_BUJ.shape[1] + cells.u_N
        return cls(join, enc_BTJ.detach().flatten(0, 1), pred_BUJ.detach().flatten(0, 1), frame_N, column_N, chunk)

    def chunks(self) -> list[slice]:
        return [slice(first, first + self.chunk) for first in range(0, len(self.frame_N), self.chunk)]

    def suits_onednn(self, nodes: slice) -> bool:
        """Whether a chunk is on a CPU, and has the shape that all but the last one have."""
        return self.enc_FJ.device.type == "cpu" and nodes.stop <= len(self.frame_N)

    def joined(self, nodes: slice) -> _Joined:
        """Join a chunk, differentiable down to the gathered rows where gradients are enabled."""
        enc_CJ = self.enc_FJ.index_select(0, self.frame_N[nodes]).requires_grad_()
        pred_CJ = self.pred_PJ.index_select(0, self.column_N[nodes]).requires_grad_()
        return _Joined(enc_CJ, pred_CJ, self.join(enc_CJ, pred_CJ))


class _FusedLoss(torch.autograd.Function):
    """Forward: scores of all nodes, lattice. Backward: the gradient of each chunk's logits, through the joiner."""

    @staticmethod
    def forward(
        ctx: Any,
        join: Join,
        labels: Tensor,
        lattice: NodeLattice,
        fastemit: float,
        chunk: int,
        most_kept: int,
        enc: Tensor,
        pred: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        joining = _Joining.of(join, enc, pred, lattice.cells, chunk)
        learns = any(ctx.needs_input_grad)
        keeps = learns and len(lattice.next_N) <= most_kept
        kept: list[_Joined] = []
        # One buffer for all chunks: small ones that outlive their chunk would keep its memory from being used again.
        scores_2N = enc.new_empty((2, len(lattice.next_N)), dtype=torch.promote_types(enc.dtype, torch.float32))
        # Not no_grad: autocast would keep weights cast without a gradient, and hand them to whoever joins next.
        with torch.set_grad_enabled(learns):
            for nodes in joining.chunks():
                with onednn_products(joining.suits_onednn(nodes)):
                    joined = joining.joined(nodes)
                if nodes.start == 0:  # V shows here first
                    check_labels(labels, joined.logits_CV.shape[1])
                scores_2N[:, nodes] = node_scores(joined.logits_CV.detach(), lattice.next_N[nodes])
                if keeps:
                    kept.append(joined)
                del joined  # or two chunks were there while the next one is joined
        total, blank_arc_N, label_arc_N = lattice.total_and_arcs(*scores_2N)
        if learns:
            visited_N = (blank_arc_N > 0) | (label_arc_N > 0)
            if kept and int(visited_N.count_nonzero()) < MOSTLY * len(visited_N):
                kept = []
            ctx.join, ctx.chunk, ctx.parameters, ctx.kept = join, chunk, parameters, kept
            at_nodes = (*lattice.cells, lattice.next_N, blank_arc_N, label_arc_N * (1.0 + fastemit))
            chosen = slice(None) if kept else visited_N
            ctx.save_for_backward(enc, pred, *(value_N[chosen] for value_N in at_nodes))
        return -total.to(scores_2N.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        enc, pred, *indices, next_N, blank_arc_N, label_arc_N = ctx.saved_tensors
        cells = Cells(*indices)
        joining = _Joining.of(ctx.join, enc, pred, cells, ctx.chunk)
        weight_N = grad_outputs[0][cells.utterance_N]
        at_nodes = (next_N, blank_arc_N * weight_N, label_arc_N * weight_N)
        # Sums over many nodes: narrow ones would lose most of them.
        enc_grad = torch.zeros_like(widened(joining.enc_FJ))
        pred_grad = torch.zeros_like(widened(joining.pred_PJ))
        sums: list[Tensor | None] = [None] * len(ctx.parameters)

        def add_chunk(place: int, nodes: slice) -> None:  # so that nothing of a chunk is there while the next is joined
            with torch.enable_grad():
                joined = ctx.kept[place] if ctx.kept else joining.joined(nodes)
            gradient = node_gradient(joined.logits_CV.detach(), *(value_N[nodes] for value_N in at_nodes))
            gradient = gradient.to(joined.logits_CV.dtype)
            inputs = (joined.enc_CJ, joined.pred_CJ, *ctx.parameters)
            enc_part, pred_part, *parts = torch.autograd.grad(
                joined.logits_CV, inputs, gradient, allow_unused=True, retain_graph=bool(ctx.kept)
            )
            enc_grad.index_add_(0, joining.frame_N[nodes], enc_part.to(enc_grad.dtype))
            pred_grad.index_add_(0, joining.column_N[nodes], pred_part.to(pred_grad.dtype))
            sums[:] = [new if old is None else old.add_(new) for old, new in zip(sums, parts, strict=True)]

        for place, nodes in enumerate(joining.chunks()):
            with onednn_products(joining.suits_onednn(nodes)):
                add_chunk(place, nodes)
        gradients = (enc_grad.view_as(enc).to(enc.dtype), pred_grad.view_as(pred).to(pred.dtype), *sums)
        return None, None, None, None, None, None, *gradients
