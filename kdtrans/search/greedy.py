"""Greedy search: the best class at every node, each utterance at its own place in its grid.

Shapes: B utterances, T encoder frames, E encoder width, J joiner width, V vocabulary, W frames looked at together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdtrans.contracts import BLANK
from kdtrans.models.transducer import Transducer
from kdtrans.search.hypothesis import Hypothesis

WINDOW = 8
"""Frames joined in one step. While the labels stay the same, the nodes of the coming frames need no new predictor
output, so that one step passes all blanks up to the next label: steps go with the labels, not with the frames."""


@dataclass(frozen=True)
class Context:
    """The labels so far, as the predictor sees them: its state (B first) and its projected output (B, J)."""

    state: Tensor
    pred_BJ: Tensor


@torch.inference_mode()
def no_labels(model: Transducer, batch: int) -> Context:
    """The context at the start of an utterance."""
    output, state = model.predictor.start(batch)
    return Context(state, model.project_predictor(output))


def greedy(model: Transducer, enc_BTE: Tensor, lengths_B: Tensor, max_symbols: int) -> list[Hypothesis]:
    """Decode a batch; an utterance's result does not depend on the others (label looping, arXiv 2406.06220).

    Args:
        model: transducer in eval mode.
        enc_BTE: encoder output.
        lengths_B: encoder frames of each utterance.
        max_symbols: most labels on one frame; then a blank is taken whatever its probability.

    Returns:
        One hypothesis an utterance; am_score is the log-probability of its path, blanks included.
    """
    return greedy_from(no_labels(model, len(enc_BTE)), model, enc_BTE, lengths_B, max_symbols)[0]


@torch.inference_mode()
def greedy_from(
    context: Context, model: Transducer, enc_BTE: Tensor, lengths_B: Tensor, max_symbols: int
) -> tuple[list[Hypothesis], Context]:
    """Decode the frames that follow a context, as `greedy` does; also returns the context after them.

    A path leaves each frame by a blank, hence labels are all that one stretch of frames hands to the next.
    """
    enc_BTJ = model.project_encoder(enc_BTE)
    batch, num_frames = enc_BTJ.shape[:2]
    device = enc_BTJ.device
    lengths_B = lengths_B.to(device)
    rows_B = torch.arange(batch, device=device)
    window_W = torch.arange(WINDOW, device=device)
    frame_B = torch.zeros(batch, dtype=torch.long, device=device)
    symbols_B = torch.zeros(batch, dtype=torch.long, device=device)  # labels so far on the present frame
    am_score_B = torch.zeros(batch, dtype=torch.float64, device=device)
    state, pred_BJ = context.state, context.pred_BJ
    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    while bool((frame_B < lengths_B).any()):
        frames_BW = frame_B[:, None] + window_W
        inside_BW = frames_BW < lengths_B[:, None]
        enc_BWJ = enc_BTJ[rows_B[:, None], frames_BW.clamp(max=num_frames - 1)]
        logp_BWV = model.joiner(enc_BWJ, pred_BJ[:, None]).float().log_softmax(-1)
        best_BW, token_BW = logp_BWV.max(-1)
        label_BW = (token_BW != BLANK) & inside_BW
        label_BW[:, 0] &= symbols_B < max_symbols
        emits_B, first_B = label_BW.max(1)  # the first of the window's labels, if there is one
        first_B = torch.where(emits_B, first_B, WINDOW)

        passed_BW = inside_BW & (window_W < first_B[:, None])
        am_score_B += logp_BWV[..., BLANK].double().masked_fill(~passed_BW, 0.0).sum(1)
        frame_B = frame_B + passed_BW.sum(1)
        symbols_B = torch.where(first_B > 0, 0, symbols_B) + emits_B

        at_B = first_B.clamp(max=WINDOW - 1)
        token_B = torch.where(emits_B, token_BW[rows_B, at_B], BLANK)
        logp_B = best_BW[rows_B, at_B].masked_fill(~emits_B, 0.0)
        am_score_B += logp_B.double()
        steps.append((token_B, frame_B, logp_B))
        output, new_state = model.predictor.step(token_B, state)
        state = torch.where(emits_B.view(-1, *[1] * (state.dim() - 1)), new_state, state)
        pred_BJ = torch.where(emits_B[:, None], model.project_predictor(output), pred_BJ)
    return _hypotheses(steps, am_score_B), Context(state, pred_BJ)


def _hypotheses(steps: list[tuple[Tensor, Tensor, Tensor]], am_score_B: Tensor) -> list[Hypothesis]:
    """Gather what each step emitted: tokens (BLANK where it emitted none), frames and log-probabilities, (B,) each."""
    am_scores = am_score_B.tolist()
    if not steps:
        return [Hypothesis([], [], [], score, score, 0.0) for score in am_scores]
    columns = [torch.stack(column, dim=1).tolist() for column in zip(*steps, strict=True)]
    hypotheses = []
    for score, *row in zip(am_scores, *columns, strict=True):
        kept = [step for step in zip(*row, strict=True) if step[0] != BLANK]
        tokens, frames, logps = (list(values) for values in zip(*kept, strict=True)) if kept else ([], [], [])
        hypotheses.append(Hypothesis(tokens, frames, logps, score, score, 0.0))
    return hypotheses
