"""From a teacher and audio to targets: the path, the distributions at its nodes, its posterior.

Labelled audio gets the Viterbi path of its text; unlabelled audio the path of the best search hypothesis, so that one
pass gives pseudo text, path and distributions together.

Shapes: B utterances, T frames, U labels, J joiner width, V vocabulary, N nodes of one path, K stored classes.
"""

from __future__ import annotations

import numpy as np
import torch
from lhotse import MonoCut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kdtrans.config import TargetsConfig
from kdtrans.contracts import BLANK
from kdtrans.data.manifest import text_of
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.lattice.path import check_path, nodes
from kdtrans.lattice.recursion import forward_scores, total_score, viterbi
from kdtrans.losses.transducer import node_log_probs
from kdtrans.models.ngram import Ngram
from kdtrans.models.transducer import Transducer
from kdtrans.search.hypothesis import path_of
from kdtrans.search.search import search
from kdtrans.targets.shards import Target


@torch.inference_mode()
def make_targets(
    teacher: Transducer,
    cuts: list[MonoCut],
    features_BFC: Tensor,
    lengths_B: Tensor,
    tokenizer: Tokenizer,
    config: TargetsConfig,
    lm: Ngram | None = None,
) -> list[Target]:
    """Targets of one batch, in the order of its cuts.

    Args:
        teacher: in eval mode; SSL models in training mode mask their input.
        cuts: the batch's cuts; text None means unlabelled.
        features_BFC: their features, padded.
        lengths_B: their lengths.
        tokenizer: the teacher's.
        config: top_k, search.
        lm: language model of the search, if it uses one.

    Raises:
        ValueError: when the teacher is in training mode, or a path is broken, naming the utterance.
    """
    if teacher.training:
        raise ValueError("the teacher is in training mode, where it masks its input: call .eval() first")
    enc_BTE, frames_B = teacher.encode(features_BFC, lengths_B)
    texts = [text_of(cut) for cut in cuts]
    searched: dict[int, list[int]] = {}
    unlabelled = [i for i, text in enumerate(texts) if text is None]
    if unlabelled:
        found = search(teacher, enc_BTE[unlabelled], frames_B[unlabelled], config.search, lm, config.lm_weight)
        searched = {i: path_of(nbest[0], int(frames_B[i])) for i, nbest in zip(unlabelled, found, strict=True)}
    labels = [tokenizer.encode(text) if text is not None else _spelled(searched[i]) for i, text in enumerate(texts)]
    labels_BU, label_lengths_B = _padded(labels, frames_B.device)

    enc_BTJ = teacher.project_encoder(enc_BTE)
    pred_BUJ = teacher.project_predictor(teacher.predictor(labels_BU))
    blank_BTU, label_BTU, _ = node_log_probs(teacher.grid(enc_BTJ, pred_BUJ), labels_BU)
    totals = total_score(forward_scores(blank_BTU, label_BTU), blank_BTU, frames_B, label_lengths_B)
    best_BN, _ = viterbi(blank_BTU, label_BTU, labels_BU, frames_B, label_lengths_B)

    targets = []
    for i, cut in enumerate(cuts):
        num_frames = int(frames_B[i])
        viterbi_path = best_BN[i, : num_frames + len(labels[i])]
        path_N = torch.tensor(searched[i], device=best_BN.device) if i in searched else viterbi_path
        check_path(path_N, num_frames, f"utterance {cut.id}")
        path_logp, ids_NK, logp_NK = _at_nodes(teacher, enc_BTJ[i], pred_BUJ[i], path_N, config.top_k)
        targets.append(
            Target(
                utt_id=cut.id,
                rank=0,
                origin=_origin(config) if i in searched else "viterbi",
                num_frames=num_frames,
                path=path_N.cpu().numpy().astype(np.uint16),
                topk_ids=ids_NK.cpu().numpy().astype(np.uint16),
                topk_logp=logp_NK.cpu().numpy().astype(np.float16),
                path_logp=path_logp,
                total_logp=float(totals[i]),
                text=text if (text := texts[i]) is not None else tokenizer.decode(labels[i]),
            )
        )
    return targets


def _at_nodes(
    teacher: Transducer, enc_TJ: Tensor, pred_UJ: Tensor, path_N: Tensor, top_k: int
) -> tuple[float, Tensor, Tensor]:
    """The path's log-probability, and ids and log-probs (N, K) of the most probable classes at its nodes."""
    t_N, u_N = nodes(path_N)
    logp_NV = teacher.joiner(enc_TJ[t_N], pred_UJ[u_N]).float().log_softmax(1)
    path_logp = float(logp_NV.gather(1, path_N[:, None]).double().sum())
    logp_NK, ids_NK = logp_NV.topk(min(top_k, logp_NV.shape[1]), dim=1)
    return path_logp, ids_NK, logp_NK


def _origin(config: TargetsConfig) -> str:
    return "beam_lm" if config.search.lm else config.search.type


def _spelled(path: list[int]) -> list[int]:
    return [token for token in path if token != BLANK]


def _padded(labels: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    tensors = [torch.tensor(tokens, dtype=torch.long, device=device) for tokens in labels]
    return pad_sequence(tensors, batch_first=True), torch.tensor([len(tokens) for tokens in labels], device=device)
