"""Beam search, frame by frame, with shallow fusion; all hypotheses of all utterances advance together.

Shapes: B utterances, K hypotheses an utterance, M candidates (2 K), T encoder frames, E encoder width, J joiner width,
V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cache

import torch
from torch import Tensor

from kdtrans.contracts import BLANK
from kdtrans.models.lm import LanguageModel
from kdtrans.models.transducer import Transducer
from kdtrans.search.hypothesis import Hypothesis

HASH_BASE = 6364136223846793005  # odd; the multiplier of Knuth's generator
NO_NODE = -1


@dataclass
class Beam:
    """K hypotheses an utterance; every tensor starts with (B, K). An empty place has am = -inf."""

    am: Tensor  # (B, K) float64: log-probability, summed over merged paths
    lm: Tensor  # (B, K) float64: language model's log-probability of the labels
    prefix: Tensor  # (B, K) int64: hash of the labels so far
    node: Tensor  # (B, K) int64: last label, in the trace
    pred: Tensor  # (B, K, J): projected predictor output
    state: Tensor  # (B, K, ...): predictor state
    lm_state: Tensor  # (B, K, ...): language model's state
    lm_next: Tensor  # (B, K, V) log-probabilities of the next label; (B, K, 1) zeros without a language model

    def select(self, index_BK: Tensor) -> Beam:
        """The hypotheses at places index_BK of each utterance."""
        rows = torch.arange(len(index_BK), device=index_BK.device)[:, None]
        return Beam(*(getattr(self, field.name)[rows, index_BK] for field in fields(self)))

    def beside(self, other: Beam) -> Beam:
        """Both beams' hypotheses, (B, K + K')."""
        names = [field.name for field in fields(self)]
        return Beam(*(torch.cat([getattr(self, name), getattr(other, name)], dim=1) for name in names))

    def score(self, lm_weight: float) -> Tensor:
        """(B, K) scores that hypotheses are ranked by."""
        return self.am + lm_weight * self.lm


class Trace:
    """Labels emitted so far as a tree: each step adds K nodes an utterance, a node knows the label before it."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, Tensor, Tensor, Tensor]] = []

    def add(self, frame: int, parent_BK: Tensor, token_BK: Tensor, logp_BK: Tensor) -> Tensor:
        """Append a label to each of (B, K) hypotheses; returns the new nodes (B, K)."""
        self._steps.append((frame, parent_BK, token_BK, logp_BK))
        places_K = torch.arange(token_BK.shape[1], device=token_BK.device)
        return ((len(self._steps) - 1) * token_BK.shape[1] + places_K).expand_as(token_BK)

    def read(self, final: Beam, lm_weight: float) -> list[list[Hypothesis]]:
        """Follow every hypothesis of the final beam back to its start; best first, empty places left out."""
        frames = [frame for frame, _, token_BK, _ in self._steps for _ in range(token_BK.shape[1])]
        # Where no step added a label, nothing of the columns is read.
        columns = list(zip(*(step[1:] for step in self._steps), strict=True)) or [(final.node,)] * 3
        parents, tokens, logps = (torch.cat(column, dim=1).cpu().numpy() for column in columns)
        values = torch.stack([final.score(lm_weight), final.am, final.lm], dim=-1).tolist()
        results: list[list[Hypothesis]] = []
        for b, nodes in enumerate(final.node.tolist()):
            results.append([])
            for node, (score, am_score, lm_score) in zip(nodes, values[b], strict=True):
                if score == -math.inf:
                    continue
                chain = []
                while node != NO_NODE:
                    chain.append(node)
                    node = int(parents[b, node])
                chain.reverse()
                labels = [int(tokens[b, n]) for n in chain]
                label_logps = [float(logps[b, n]) for n in chain]
                where = [frames[n] for n in chain]
                results[-1].append(Hypothesis(labels, where, label_logps, score, am_score, lm_score))
            results[-1].sort(key=lambda hypothesis: -hypothesis.score)
        return results


@torch.inference_mode()
def beam(
    model: Transducer,
    enc_BTE: Tensor,
    lengths_B: Tensor,
    beam: int,
    max_symbols: int,
    lm: LanguageModel | None = None,
    lm_weight: float = 0.0,
) -> list[list[Hypothesis]]:
    """Frame-synchronous beam search on the standard transducer topology (Graves 2012; max_symbols labels a frame).

    On a frame, hypotheses that take the blank are finished with it; the others are extended by a label, at most
    max_symbols times, as long as one of them scores above the worst of the K finished. Hypotheses with the same labels
    are merged: their probabilities add, and the better of them gives the path. A label's score is
    log P(label) + lm_weight * log P_LM(label); a blank and the sentence end get no language-model score.

    Args:
        model: transducer in eval mode.
        enc_BTE: encoder output.
        lengths_B: encoder frames of each utterance.
        beam: K.
        max_symbols: most labels on one frame.
        lm: language model, or none.
        lm_weight: its weight, not negative.

    Returns:
        For each utterance up to K hypotheses with different labels, best first; independent of the other utterances.
    """
    if lm_weight < 0:
        raise ValueError(f"lm_weight {lm_weight} is negative")
    if lm_weight == 0:
        lm = None  # ranks nothing, and skipping it is faster
    enc_BTJ = model.project_encoder(enc_BTE)
    lengths_B = lengths_B.to(enc_BTJ.device)
    trace = Trace()
    hypotheses = _empty_prefix(model, len(lengths_B), beam, lm)
    for t in range(int(lengths_B.max())):
        inside_B11 = (t < lengths_B)[:, None, None]
        active = hypotheses
        finished: Beam | None = None
        for symbols in range(max_symbols + 1):
            logp_BKV = model.joiner(enc_BTJ[:, t, None], active.pred).float().log_softmax(-1).double()
            # Past its end an utterance takes blanks of probability 1: its hypotheses stay as they are.
            logp_BKV = logp_BKV.masked_fill(~inside_B11, -math.inf)
            blank_BK = logp_BKV[..., BLANK].masked_fill(~inside_B11[..., 0], 0.0)
            passed = replace(active, am=active.am + blank_BK)
            finished = passed if finished is None else _merge(finished.beside(passed), beam, lm_weight)
            if symbols == max_symbols:
                break
            logp_BKV[..., BLANK] = -math.inf
            candidate_BKV = active.score(lm_weight)[..., None] + logp_BKV + lm_weight * active.lm_next
            best_BK, index_BK = candidate_BKV.flatten(1).topk(beam)
            alive_BK = best_BK > finished.score(lm_weight).amin(1, keepdim=True)
            if not bool(alive_BK.any()):
                break
            active = _extend(model, lm, active, index_BK, alive_BK, logp_BKV, t, trace)
        assert finished is not None
        hypotheses = finished
    return trace.read(hypotheses, lm_weight)


def _empty_prefix(model: Transducer, batch: int, beam: int, lm: LanguageModel | None) -> Beam:
    """A beam with the empty prefix in place 0 and nothing in the others."""
    output, state = model.predictor.start(batch)
    pred_BJ = model.project_predictor(output)
    device = pred_BJ.device
    zeros_BK = torch.zeros(batch, beam, dtype=torch.long, device=device)
    lm_state, lm_next_BV = zeros_BK[:, 0], pred_BJ.new_zeros(batch, 1)
    if lm is not None:
        lm_state = lm.start(batch)
        lm_next_BV = lm.score(lm_state)
    am_BK = torch.full((batch, beam), -math.inf, dtype=torch.float64, device=device)
    am_BK[:, 0] = 0.0
    firsts = (pred_BJ, state, lm_state, lm_next_BV)
    spread = [tensor[:, None].expand(-1, beam, *tensor.shape[1:]) for tensor in firsts]
    return Beam(am_BK, zeros_BK.double(), zeros_BK, zeros_BK + NO_NODE, *spread)


def _extend(
    model: Transducer,
    lm: LanguageModel | None,
    active: Beam,
    index_BK: Tensor,
    alive_BK: Tensor,
    logp_BKV: Tensor,
    frame: int,
    trace: Trace,
) -> Beam:
    """Append a label to hypotheses.

    Args:
        index_BK: which place and label, as place * V + label.
        alive_BK: False leaves the new place empty.
        logp_BKV: acoustic log-probabilities of the labels.
    """
    batch, beam, vocab = logp_BKV.shape
    token_BK = index_BK % vocab
    source = active.select(index_BK // vocab)
    logp_BK = logp_BKV.flatten(1).gather(1, index_BK)
    output, state = model.predictor.step(token_BK.flatten(), source.state.flatten(0, 1))
    pred_BKJ = model.project_predictor(output).unflatten(0, (batch, beam))
    lm_BK, lm_state, lm_next_BKV = source.lm, source.lm_state, source.lm_next
    if lm is not None:
        lm_BK = lm_BK + lm_next_BKV.gather(2, token_BK[..., None])[..., 0]
        advanced = lm.advance(lm_state.flatten(0, 1), token_BK.flatten())
        lm_state = advanced.unflatten(0, (batch, beam))
        lm_next_BKV = lm.score(advanced).unflatten(0, (batch, beam))
    return Beam(
        am=(source.am + logp_BK).masked_fill(~alive_BK, -math.inf),
        lm=lm_BK,
        prefix=source.prefix * HASH_BASE + _salt(vocab, token_BK.device)[token_BK],
        node=trace.add(frame, source.node, token_BK, logp_BK),
        pred=pred_BKJ,
        state=state.unflatten(0, (batch, beam)),
        lm_state=lm_state,
        lm_next=lm_next_BKV,
    )


def _merge(candidates: Beam, beam: int, lm_weight: float) -> Beam:
    """Add the probabilities of hypotheses with the same labels, of which the more probable stays; keep the best K."""
    same_BMM = candidates.prefix[:, :, None] == candidates.prefix[:, None, :]
    mine_BM1, other_B1M = candidates.am[:, :, None], candidates.am[:, None, :]
    places_M = torch.arange(candidates.am.shape[1], device=candidates.am.device)
    earlier_MM = places_M[None, :] < places_M[:, None]
    absorbed_BM = (same_BMM & ((other_B1M > mine_BM1) | ((other_B1M == mine_BM1) & earlier_MM))).any(2)
    total_BM = torch.where(same_BMM, other_B1M, -math.inf).logsumexp(2)
    merged = replace(candidates, am=total_BM.masked_fill(absorbed_BM, -math.inf))
    return merged.select(merged.score(lm_weight).topk(beam).indices)


@cache
def _salt(vocab_size: int, device: torch.device) -> Tensor:
    """A random 64-bit number for each label: prefix hashes are polynomials in HASH_BASE over them, modulo 2^64.

    Two of a beam's prefixes collide with a probability of about 2^-50.
    """
    generator = torch.Generator().manual_seed(vocab_size)
    return torch.randint(-(2**62), 2**62, (vocab_size,), generator=generator).to(device)
