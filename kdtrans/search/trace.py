"""How a beam search's hypotheses came about, from which labels, frames and scores are read at the end.

Shapes: B utterances, K hypotheses an utterance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdtrans.search.hypothesis import Hypothesis

NO_NODE = -1


class Trace:
    """Labels emitted so far as a tree: each step adds K nodes an utterance, a node knows the label before it."""

    def __init__(self) -> None:
        self._steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, frame_B: Tensor, parent_BK: Tensor, token_BK: Tensor, logp_BK: Tensor) -> Tensor:
        """Append a label to each of (B, K) hypotheses; returns the new nodes (B, K)."""
        self._steps.append((frame_B[:, None].expand_as(token_BK), parent_BK, token_BK, logp_BK))
        places_K = torch.arange(token_BK.shape[1], device=token_BK.device)
        return ((len(self._steps) - 1) * token_BK.shape[1] + places_K).expand_as(token_BK)

    def read(self, node_BK: Tensor, score_BK: Tensor, am_BK: Tensor) -> list[list[Hypothesis]]:
        """Follow every hypothesis from its last label back to its start; best first, places of score -inf left out.

        No language model's score is known here: lm_score is 0.
        """
        # Where no step added a label, nothing of the columns is read.
        columns = list(zip(*self._steps, strict=True)) or [(node_BK,)] * 4
        frames, parents, tokens, logps = (torch.cat(column, dim=1).cpu().numpy() for column in columns)
        values = torch.stack([score_BK, am_BK], dim=-1).tolist()
        results: list[list[Hypothesis]] = []
        for b, nodes in enumerate(node_BK.tolist()):
            results.append([])
            for node, (score, am_score) in zip(nodes, values[b], strict=True):
                if score == -math.inf:
                    continue
                chain = []
                while node != NO_NODE:
                    chain.append(node)
                    node = int(parents[b, node])
                chain.reverse()
                labels, where, label_logps = (column[b, chain].tolist() for column in (tokens, frames, logps))
                results[-1].append(Hypothesis(labels, where, label_logps, score, am_score, 0.0))
            results[-1].sort(key=lambda hypothesis: -hypothesis.score)
        return results
