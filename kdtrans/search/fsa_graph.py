"""The graph that k2's search walks beside the transducer: every label everywhere, or a token n-gram.

Shapes: S states of the language model, V token ids, A arcs: S (V - 1).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch

from kdtrans.losses.backends import imported
from kdtrans.models.ngram import Ngram

MOST_ARCS = 2**24
"""Of 16 bytes each, and a few times that while the graph is made."""


@lru_cache(maxsize=1)  # searches come batch by batch, all over the same graph
def label_graph(vocab_size: int, lm: Ngram | None, lm_weight: float, device: torch.device) -> Any:
    """A k2.Fsa whose every state has one arc for each label, which scores lm_weight * log P_LM(label | state).

    k2 takes an arc without a label for a blank that costs a frame, so that an n-gram's back-off cannot be an arc here.
    Nor could it be one whose epsilon is removed: that leaves two ways to a label which the longer context knows, and
    the search takes the better one, not the right one. Hence all states back off for all labels beforehand.

    Args:
        vocab_size: V; labels are 1 .. V - 1.
        lm: the n-gram; none: one state, and scores of 0.
        lm_weight: its weight.
        device: where the search runs.

    Returns:
        The graph. Its attribute `lm_scores` (A + 1,) has log P_LM without the weight. Its one final arc is never taken:
        as in our other searches the sentence end has no score, so that any state may be the last.

    Raises:
        ValueError: when the n-gram makes more than MOST_ARCS, or k2 is not installed, or not for this device.
    """
    k2 = imported("k2")
    num_states = 1 if lm is None else lm.num_states
    num_arcs = num_states * (vocab_size - 1)
    if num_arcs > MOST_ARCS:
        raise ValueError(
            f"an n-gram of {num_states:,} states and {vocab_size - 1:,} labels makes a graph of {num_arcs:,} arcs, at "
            f"most {MOST_ARCS:,} are made: lower lm.order, or decode with type: beam, which needs no graph"
        )
    if device.type == "cuda" and not k2.with_cuda:
        raise ValueError(
            f"the model is on {device}, but this k2 is built without CUDA: install one that is built with it"
        )

    source_S = torch.arange(num_states)
    label_V = torch.arange(1, vocab_size)
    if lm is None:
        next_SV = torch.zeros(1, vocab_size - 1, dtype=torch.long)
        lm_SV = torch.zeros(1, vocab_size - 1)
    else:
        # k2 starts in state 0: the n-gram's start changes places with it.
        place_S = source_S.clone()
        start = int(lm.start(1))
        place_S[0], place_S[start] = start, 0
        state_S = place_S.to(lm.fail.device)
        after = [lm.advance(state_S, state_S.new_full((num_states,), label)) for label in range(1, vocab_size)]
        next_SV = place_S[torch.stack(after, 1).cpu()]
        lm_SV = lm.score(state_S)[:, 1:].cpu()

    lm_scores = torch.cat([lm_SV.flatten(), torch.zeros(1)])
    scores = torch.cat([lm_weight * lm_SV.flatten(), torch.tensor([-math.inf])])
    final = torch.tensor([[num_states - 1, num_states, -1]])
    columns = torch.broadcast_tensors(source_S[:, None], next_SV, label_V)
    arcs = torch.cat([torch.stack(columns, -1).view(-1, 3), final]).int()
    graph = k2.Fsa(torch.cat([arcs, scores.view(torch.int32)[:, None]], 1))  # k2 reads the last column's bits as floats
    graph.lm_scores = lm_scores
    return graph.to(device)
