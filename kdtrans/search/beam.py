"""Beam search with shallow fusion; all hypotheses of all utterances advance together, each utterance at its own frame.

Shapes: B utterances, K hypotheses an utterance, M candidates (2 K), N prefixes, T encoder frames, W frames looked at
together, E encoder width, J joiner width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from kdtrans.contracts import BLANK
from kdtrans.models.lm import LanguageModel, score_labels
from kdtrans.models.transducer import Transducer
from kdtrans.search.hypothesis import Hypothesis
from kdtrans.search.prefixes import Fusion, Prefixes
from kdtrans.search.trace import NO_NODE, Trace

HASH_BASE = 6364136223846793005  # odd; the multiplier of Knuth's generator
WINDOW = 4
"""Frames joined in one step: those on which no label comes into question are passed together, as in greedy search."""


@dataclass(frozen=True)
class Beam:
    """K hypotheses an utterance; every tensor is (B, K). An empty place has am = -inf."""

    am: Tensor  # float64: log-probability, summed over merged paths
    bonus: Tensor  # float64: what language models add to am, each with its weight
    prefix: Tensor  # int64: hash of the labels so far
    node: Tensor  # int64: last label, in the trace
    row: Tensor  # int64: place among the present Prefixes

    @property
    def score(self) -> Tensor:
        """(B, K): what hypotheses are ranked by."""
        return self.am + self.bonus

    def select(self, index_BK: Tensor) -> Beam:
        """The hypotheses at places index_BK of each utterance."""
        return Beam(*(part.gather(1, index_BK) for part in self._parts()))

    def beside(self, other: Beam) -> Beam:
        """Both beams' hypotheses, (B, K + K')."""
        return Beam(*(torch.cat(pair, 1) for pair in zip(self._parts(), other._parts(), strict=True)))

    def where(self, mine_B1: Tensor, other: Beam) -> Beam:
        """These hypotheses or the others', utterance by utterance."""
        return Beam(*(torch.where(mine_B1, *pair) for pair in zip(self._parts(), other._parts(), strict=True)))

    def _parts(self) -> list[Tensor]:
        return [self.am, self.bonus, self.prefix, self.node, self.row]


@dataclass(frozen=True)
class _State:
    """Where each utterance is: a frame, the labels on it so far, and the hypotheses before and behind its blank."""

    frame_B: Tensor
    symbols_B: Tensor
    active: Beam  # all with symbols_B labels on the frame
    finished: Beam  # with fewer, and the frame's blank; empty while there are none
    prefixes: Prefixes  # of all of them


def beam(
    model: Transducer,
    enc_BTE: Tensor,
    lengths_B: Tensor,
    beam: int,
    max_symbols: int,
    lm: LanguageModel | None = None,
    lm_weight: float = 0.0,
    ilm_weight: float = 0.0,
    threshold: float = math.inf,
) -> list[list[Hypothesis]]:
    """Frame-synchronous beam search on the standard transducer topology (Graves 2012; max_symbols labels a frame).

    On a frame, hypotheses that take the blank are finished with it; the others are extended by a label, at most
    max_symbols times, as long as one of them scores above the worst of the K finished and at most `threshold` below the
    best. Hypotheses with the same labels are merged: their probabilities add, and the better of them gives the path. A
    beam of one is greedy search: it decides at every node, so that what it extends is not kept beside. A label's score
    is log P(label) + lm_weight * log P_LM(label) - ilm_weight * log P_ILM(label); a blank and the sentence end get no
    language-model score.

    Args:
        model: transducer in eval mode.
        enc_BTE: encoder output.
        lengths_B: encoder frames of each utterance.
        beam: K.
        max_symbols: most labels on one frame.
        lm: language model, or none.
        lm_weight: its weight, not negative.
        ilm_weight: weight of the model's internal language model, which is subtracted; not negative.
        threshold: nats; the smaller, the more frames are passed without a label, and the faster.

    Returns:
        For each utterance up to K hypotheses with different labels, best first; independent of the other utterances.
    """
    fusion = Fusion(model, lm, lm_weight, ilm_weight)
    search = BeamSearch(fusion, len(enc_BTE), beam, max_symbols, threshold)
    search.advance(enc_BTE, lengths_B)
    return search.hypotheses()


class BeamSearch:
    """The search of `beam`, whose frames may come in stretches: what it finds is that of all of them at once."""

    @torch.inference_mode()
    def __init__(self, fusion: Fusion, batch: int, beam: int, max_symbols: int, threshold: float = math.inf) -> None:
        """Start `batch` utterances with a model beside its language models; the other arguments are those of `beam`."""
        self._fusion, self._trace = fusion, Trace()
        self._limits = max_symbols, threshold
        self._state = _start(self._fusion, batch, beam)
        self._passed_B = torch.zeros_like(self._state.frame_B)  # frames of the stretches so far

    @torch.inference_mode()
    def advance(self, enc_BTE: Tensor, lengths_B: Tensor) -> None:
        """Search the next frames of each utterance.

        A hypothesis leaves each frame by a blank, so that nothing of a stretch's frames is open behind its last one.

        Args:
            enc_BTE: encoder output.
            lengths_B: encoder frames of each utterance in it; may be 0.
        """
        enc_BTJ = self._fusion.model.project_encoder(enc_BTE)
        stretch = _Stretch(self._fusion, self._trace, self._passed_B, enc_BTJ, lengths_B, *self._limits)
        state = replace(self._state, frame_B=torch.zeros_like(self._passed_B))
        while bool((state.frame_B < stretch.lengths_B).any()):
            state = stretch.step(state)
        self._state, self._passed_B = state, self._passed_B + stretch.lengths_B

    @torch.inference_mode()
    def hypotheses(self) -> list[list[Hypothesis]]:
        """What the hypotheses behind the last frame say, best first."""
        final, lm = self._state.active, self._fusion.lm
        found = self._trace.read(final.node, final.score, final.am)
        if lm is None:
            return found
        scores = iter(score_labels(lm, [hypothesis.tokens for nbest in found for hypothesis in nbest]))
        return [[replace(hypothesis, lm_score=next(scores)) for hypothesis in nbest] for nbest in found]


def _start(fusion: Fusion, batch: int, beam: int) -> _State:
    """The empty prefix in place 0 of each utterance and nothing in the others."""
    prefixes = fusion.start(batch)
    zeros_BK = torch.zeros(batch, beam, dtype=torch.long, device=prefixes.pred.device)
    am_BK = torch.full_like(zeros_BK, -math.inf, dtype=torch.float64)
    row_BK = zeros_BK + torch.arange(batch, device=zeros_BK.device)[:, None]
    nothing = Beam(am_BK, zeros_BK.double(), zeros_BK, zeros_BK + NO_NODE, row_BK)
    am_BK = am_BK.clone()
    am_BK[:, 0] = 0.0
    zeros_B = zeros_BK[:, 0]
    return _State(zeros_B, zeros_B, replace(nothing, am=am_BK), nothing, prefixes)


class _Stretch:
    """Frames of a batch's utterances and how they are searched; those before them are counted in passed_B."""

    def __init__(
        self,
        fusion: Fusion,
        trace: Trace,
        passed_B: Tensor,
        enc_BTJ: Tensor,
        lengths_B: Tensor,
        max_symbols: int,
        threshold: float,
    ) -> None:
        self.fusion, self.trace, self.passed_B, self.enc_BTJ = fusion, trace, passed_B, enc_BTJ
        self.max_symbols, self.threshold = max_symbols, threshold
        self.lengths_B = lengths_B.to(enc_BTJ.device)
        self._rows_B = torch.arange(len(enc_BTJ), device=enc_BTJ.device)
        self._window_W = torch.arange(WINDOW, device=enc_BTJ.device)

    def step(self, state: _State) -> _State:
        """Every utterance takes a blank or a label more: to the next frame where no label comes into question."""
        active, logp_BKV, frame_B = self._pass_frames(state)
        passed = replace(active, am=active.am + logp_BKV[..., BLANK])
        finished = _merge(state.finished.beside(passed), active.am.shape[1])
        index_BK, alive_BK = self._candidates(active, finished, logp_BKV + state.prefixes.bonus[active.row])
        alive_BK &= (state.symbols_B < self.max_symbols)[:, None]
        grows_B1 = alive_BK.any(1, keepdim=True)
        grows_B = grows_B1[:, 0]
        kept = state.prefixes.select(finished.row.flatten())
        finished = replace(finished, row=torch.arange(len(kept.pred), device=frame_B.device).view_as(finished.row))
        waits_B1 = grows_B1 & (active.am.shape[1] > 1)
        waiting = replace(finished, am=finished.am.masked_fill(~waits_B1, -math.inf))
        if not bool(grows_B.any()):
            return _State(frame_B + 1, torch.zeros_like(frame_B), finished, waiting, kept)
        grown, added = self._extend(active, state.prefixes, index_BK, alive_BK, logp_BKV, frame_B)
        grown = replace(grown, row=grown.row + len(kept.pred))
        symbols_B = (state.symbols_B + 1) * grows_B
        return _State(frame_B + ~grows_B, symbols_B, grown.where(grows_B1, finished), waiting, kept.beside(added))

    def _pass_frames(self, state: _State) -> tuple[Beam, Tensor, Tensor]:
        """Take the blanks up to the next frame of the window on which a label comes into question.

        Returns:
            The active hypotheses there, their log-probabilities (B, K, V) and frame (B,). What is past its
            end has a blank of probability 1: its hypotheses stay as they are.
        """
        active, burst_B1 = state.active, (state.symbols_B > 0)[:, None]
        frames_BW = state.frame_B[:, None] + self._window_W
        # Joined are the nodes of hypotheses that exist; once there are labels on the frame, its own alone.
        ahead_BW = (frames_BW < self.lengths_B[:, None]) & ~(burst_B1 & (self._window_W > 0))
        joined_BKW = ahead_BW[:, None] & (active.am > -math.inf)[..., None]
        b_N, k_N, w_N = joined_BKW.nonzero(as_tuple=True)
        row_N = active.row[b_N, k_N]
        enc_NJ = self.enc_BTJ[b_N, frames_BW[b_N, w_N]]
        logp_NV = self.fusion.model.joiner(enc_NJ, state.prefixes.pred.index_select(0, row_N)).float().log_softmax(-1)
        label_N = (logp_NV + state.prefixes.bonus.index_select(0, row_N))[:, 1:].amax(1)
        blank_BKW = torch.zeros_like(joined_BKW, dtype=torch.float64)
        label_BKW = torch.full_like(blank_BKW, -math.inf)
        blank_BKW[joined_BKW], label_BKW[joined_BKW] = logp_NV[:, BLANK].double(), label_N.double()

        after_BKW = active.score[..., None] + blank_BKW.cumsum(2)
        busy_BW = (after_BKW - blank_BKW + label_BKW).amax(1) > self._floor(after_BKW)
        # The window's last frame is taken as one, and all of them once there are labels on the frame.
        busy_BW |= (self._window_W == WINDOW - 1) | (frames_BW == self.lengths_B[:, None] - 1) | burst_B1
        first_B = busy_BW.byte().argmax(1)
        before_BKW = blank_BKW * (self._window_W < first_B[:, None])[:, None]
        place_BKW = (joined_BKW.flatten().cumsum(0) - 1).clamp(min=0).view_as(joined_BKW)
        logp_BKV = logp_NV[place_BKW[self._rows_B, :, first_B]]
        ended_B = state.frame_B >= self.lengths_B
        logp_BKV[ended_B] = -math.inf
        logp_BKV[ended_B, :, BLANK] = 0.0
        active = replace(active, am=active.am + before_BKW.sum(2))
        return active, logp_BKV, state.frame_B + first_B

    def _candidates(self, active: Beam, finished: Beam, added_BKV: Tensor) -> tuple[Tensor, Tensor]:
        """The K best extensions as place * V + label, and which of them may still become one of the best K."""
        best_B1 = active.score.amax(1, keepdim=True)  # what is left of a score above it fits fp32
        candidate_BKV = added_BKV + (active.score - best_B1).float()[..., None]
        candidate_BKV[..., BLANK] = -math.inf
        best_BK, index_BK = candidate_BKV.flatten(1).topk(active.am.shape[1])
        return index_BK, best_BK + best_B1 > self._floor(finished.score)[:, None]

    def _extend(
        self,
        active: Beam,
        prefixes: Prefixes,
        index_BK: Tensor,
        alive_BK: Tensor,
        logp_BKV: Tensor,
        frame_B: Tensor,
    ) -> tuple[Beam, Prefixes]:
        """Append labels to hypotheses; places that are not alive become empty, and no model is asked for them."""
        vocab = logp_BKV.shape[-1]
        token_BK = index_BK % vocab
        source = active.select(index_BK // vocab)
        logp_BK = logp_BKV.flatten(1).gather(1, index_BK)
        alive_N = alive_BK.flatten().nonzero()[:, 0]
        added = self.fusion.extend(prefixes, source.row.flatten()[alive_N], token_BK.flatten()[alive_N])
        grown = Beam(
            am=(source.am + logp_BK).masked_fill(~alive_BK, -math.inf),
            bonus=source.bonus + prefixes.bonus.expand(-1, vocab)[source.row, token_BK],
            prefix=source.prefix * HASH_BASE + _salt(vocab, token_BK.device)[token_BK],
            node=self.trace.add(self.passed_B + frame_B, source.node, token_BK, logp_BK),
            row=(alive_BK.flatten().cumsum(0) - 1).clamp(min=0).view_as(token_BK),
        )
        return grown, added

    def _floor(self, score_BK: Tensor) -> Tensor:
        """What a new hypothesis must score above, (B, ...): the worst of K, and the best less the threshold."""
        return torch.maximum(score_BK.amin(1), score_BK.amax(1) - self.threshold)


def _merge(candidates: Beam, beam: int) -> Beam:
    """Add the probabilities of hypotheses with the same labels, of which the more probable stays; keep the best K."""
    same_BMM = candidates.prefix[:, :, None] == candidates.prefix[:, None, :]
    mine_BM1, other_B1M = candidates.am[:, :, None], candidates.am[:, None, :]
    places_M = torch.arange(candidates.am.shape[1], device=candidates.am.device)
    earlier_MM = places_M[None, :] < places_M[:, None]
    absorbed_BM = (same_BMM & ((other_B1M > mine_BM1) | ((other_B1M == mine_BM1) & earlier_MM))).any(2)
    # Only the most probable of each prefix stays, so that no difference overflows; between empty places it is NaN.
    total_BM = candidates.am + torch.where(same_BMM, other_B1M - mine_BM1, -math.inf).exp().sum(2).log()
    gone_BM = absorbed_BM | (candidates.am == -math.inf)
    merged = replace(candidates, am=total_BM.masked_fill(gone_BM, -math.inf))
    return merged.select(merged.score.topk(beam).indices)


@cache
def _salt(vocab_size: int, device: torch.device) -> Tensor:
    """A random 64-bit number for each label: prefix hashes are polynomials in HASH_BASE over them, modulo 2^64.

    Two of a beam's prefixes collide with a probability of about 2^-50.
    """
    generator = torch.Generator().manual_seed(vocab_size)
    return torch.randint(-(2**62), 2**62, (vocab_size,), generator=generator).to(device)
