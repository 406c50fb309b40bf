"""k2's search: transducer and graph walked together, a frame an arc, all utterances at the same frame.

Shapes: B utterances, T encoder frames, E encoder width, J joiner width, V vocabulary, N contexts of all utterances,
C labels of a context.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdtrans.contracts import BLANK
from kdtrans.losses.backends import imported
from kdtrans.models.ngram import Ngram
from kdtrans.models.predictor import StatelessPredictor
from kdtrans.models.transducer import Transducer
from kdtrans.search.fsa_graph import label_graph
from kdtrans.search.fsa_nbest import best_paths, lattice_arcs
from kdtrans.search.hypothesis import Hypothesis

STATES_A_CONTEXT = 8
"""States kept an utterance, to each context kept: as many as icefall keeps, 64 to 8."""
NO_THRESHOLD = 1.0e30
"""Not infinity: k2 would keep what is impossible."""


@torch.no_grad()  # k2 takes no tensors of inference mode
def fsa(
    model: Transducer,
    enc_BTE: Tensor,
    lengths_B: Tensor,
    beam: int,
    threshold: float = math.inf,
    lm: Ngram | None = None,
    lm_weight: float = 0.0,
) -> list[list[Hypothesis]]:
    """The best label sequences, a label or a blank a frame (k2's RnntDecodingStreams, arXiv 2211.00484).

    Args:
        model: transducer in eval mode whose predictor is stateless.
        enc_BTE: encoder output.
        lengths_B: encoder frames of each utterance.
        beam: contexts of the predictor kept an utterance (k2's max_contexts); of their states, 8 for each (max_states).
            So many hypotheses are returned, if the lattice has them.
        threshold: nats; what is further below the best state of a frame is dropped (k2's beam).
        lm: n-gram, or none.
        lm_weight: its weight, not negative; a blank and the sentence end get no language-model score.

    Returns:
        Hypotheses of each utterance, best first, independent of the other utterances: those of the lattice that the
        search leaves. am_score is the log-probability of the best path of these labels.

    Raises:
        ValueError: when k2 is not installed, the predictor is not stateless, or the graph would be too large.
    """
    k2, context = imported("k2"), context_of(model)
    graph = label_graph(model.vocab_size, lm if lm_weight > 0 else None, lm_weight, enc_BTE.device)
    # k2 numbers pairs of context and state with 64 bits.
    if model.vocab_size**context * graph.shape[0] >= 2**63:
        raise ValueError(
            f"contexts of {context} labels out of {model.vocab_size:,}, with {graph.shape[0]:,} states of the graph "
            "each, are more than k2 can number: lower predictor.context, or decode with type: beam"
        )
    config = k2.RnntDecodingConfig(
        vocab_size=model.vocab_size,
        decoder_history_len=context,
        beam=min(threshold, NO_THRESHOLD),
        max_contexts=beam,
        max_states=STATES_A_CONTEXT * beam,
    )
    streams = k2.RnntDecodingStreams([k2.RnntDecodingStream(graph) for _ in enc_BTE], config)
    enc_BTJ = model.project_encoder(enc_BTE)
    lengths_B = lengths_B.to(enc_BTE.device)
    # k2 gives the arcs of a stream's last frame no score, but makes them its end. So each has a frame more.
    for t in range(int(lengths_B.max()) + 1):
        shape, contexts_NC = streams.get_contexts()
        stream_N = shape.row_ids(1).long()
        enc_NJ = enc_BTJ[stream_N, min(t, enc_BTJ.shape[1] - 1)]
        streams.advance(_log_probs(model, enc_NJ, contexts_NC.long(), t >= lengths_B[stream_N]))
    streams.terminate_and_flush_to_streams()
    lengths = lengths_B.tolist()
    # No state of the graph is final, so all of them may end: that is what k2 calls partial.
    lattice = streams.format_output([length + 1 for length in lengths], allow_partial=True)
    logp_A = lattice.scores.double() - lm_weight * lattice.lm_scores.double()
    labels, logps, lm_scores = (column.tolist() for column in (lattice.labels, logp_A, lattice.lm_scores.double()))
    found = []
    for arcs, first in lattice_arcs(lattice):
        paths = [[first + arc for arc in path] for path in best_paths(arcs, beam)]
        found.append([_hypothesis(path, labels, logps, lm_scores, lm_weight) for path in paths])
    return found


def context_of(model: Transducer) -> int:
    """How many labels the predictor sees; raises ValueError for one that sees them all."""
    if not isinstance(model.predictor, StatelessPredictor):
        raise ValueError(
            f"type: fsa needs predictor.type: stateless, which sees a few labels only, but this model has a "
            f"{type(model.predictor).__name__}: decode it with type: beam"
        )
    return model.predictor.context


def _log_probs(model: Transducer, enc_NJ: Tensor, contexts_NC: Tensor, ended_N: Tensor) -> Tensor:
    """(N, V), oldest label of a context first; behind the end of an utterance a blank has probability 1."""
    # The state before a context's last label lacks that label; its oldest place is overwritten.
    output_NP, _ = model.predictor.step(contexts_NC[:, -1], contexts_NC.roll(1, 1))
    logp_NV = model.joiner(enc_NJ, model.project_predictor(output_NP)).float().log_softmax(-1)
    logp_NV[ended_N] = -math.inf
    logp_NV[ended_N, BLANK] = 0.0
    return logp_NV


def _hypothesis(
    path: list[int], labels: list[int], logps: list[float], lm_scores: list[float], lm_weight: float
) -> Hypothesis:
    """What a path of the lattice's arcs stands for: an arc for each frame, then the final one."""
    frames = [frame for frame, arc in enumerate(path[:-1]) if labels[arc] != BLANK]
    emitted = [path[frame] for frame in frames]
    am, lm = sum(logps[arc] for arc in path[:-1]), sum(lm_scores[arc] for arc in path[:-1])
    tokens, token_logps = [labels[arc] for arc in emitted], [logps[arc] for arc in emitted]
    return Hypothesis(tokens, frames, token_logps, am + lm_weight * lm, am, lm)
