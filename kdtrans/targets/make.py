"""From a teacher and audio to targets: the paths, the distributions at their nodes, their posteriors.

Labelled audio gets the Viterbi path of its text; unlabelled audio the paths of the best search hypotheses, so that one
pass gives pseudo text, paths and distributions together.

Shapes: B utterances, T frames, U labels, J joiner width, V vocabulary, N nodes of one path, K stored classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lhotse import MonoCut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kdtrans.config import TargetsConfig
from kdtrans.contracts import BLANK, ContractError
from kdtrans.data.manifest import text_of
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.lattice.path import check_path, nodes
from kdtrans.lattice.recursion import forward_scores, total_score, viterbi
from kdtrans.losses.fused import arc_scores
from kdtrans.models.lm import LanguageModel
from kdtrans.models.transducer import Transducer
from kdtrans.search.hypothesis import Hypothesis, path_of
from kdtrans.search.search import search
from kdtrans.targets.encoding import encode
from kdtrans.targets.index import row_groups
from kdtrans.targets.shards import Target, read_shard_footer, row_to_target

LEAST_WEIGHT = 1.0e-6  # against the best hypothesis


@dataclass(frozen=True)
class Ranked:
    """Labels of an utterance that get a target: its text, or one of the hypotheses of a search."""

    labels: list[int]
    text: str
    origin: str
    weight: float = 1.0
    path: list[int] | None = None  # None: the Viterbi path


def read_paths(shard: Path, tokenizer: Tokenizer, manifest_sha256: str) -> dict[str, list[Ranked]]:
    """The paths of another teacher's shard by utterance, best first, for this teacher's distributions along them.

    Args:
        shard: of the same manifest shard.
        tokenizer: this teacher's.
        manifest_sha256: of the manifest shard that is dumped.

    Raises:
        ContractError: when the shard is damaged, or of another tokenizer or manifest, naming both.
    """
    footer = read_shard_footer(shard)
    for key, value in {"tokenizer_sha256": tokenizer.sha256, "manifest_sha256": manifest_sha256}.items():
        if getattr(footer, key) != value:
            raise ContractError(
                f"{shard}: {key} is {getattr(footer, key)[:12]}, here it is {value[:12]}: "
                "follow the paths of a shard with the same tokenizer and manifest"
            )
    paths: dict[str, list[Ranked]] = {}
    for table in row_groups(shard):
        for row in range(len(table)):
            target = row_to_target(table, row, footer.top_k)
            ranked = Ranked(target.labels.tolist(), target.text, target.origin, target.weight, target.path.tolist())
            paths.setdefault(target.utt_id, []).append(ranked)
    return paths


@torch.inference_mode()
def make_targets(
    teacher: Transducer,
    cuts: list[MonoCut],
    features_BFC: Tensor,
    lengths_B: Tensor,
    tokenizer: Tokenizer,
    config: TargetsConfig,
    lm: LanguageModel | None = None,
    along: dict[str, list[Ranked]] | None = None,
) -> list[list[Target]]:
    """Targets of one batch: for each of its cuts, in their order, those of rank 0, 1, ...

    Args:
        teacher: in eval mode; SSL models in training mode mask their input.
        cuts: the batch's cuts; text None means unlabelled.
        features_BFC: their features, padded.
        lengths_B: their lengths.
        tokenizer: the teacher's.
        config: top_k, search, paths, lm_weight.
        lm: language model of the search and of the fused distributions; needed if lm_weight > 0.
        along: paths to follow, as `read_paths` gives them; None: this teacher's own.

    Raises:
        ValueError: when the teacher is in training mode, the language model is missing, or a path is broken or does not
            fit the teacher's frames, naming the utterance.
    """
    if teacher.training:
        raise ValueError("the teacher is in training mode, where it masks its input: call .eval() first")
    if config.lm_weight > 0 and lm is None:
        raise ValueError(f"lm_weight is {config.lm_weight:g}, but there is no language model: pass one")
    return targets_of_encoded(teacher, cuts, *teacher.encode(features_BFC, lengths_B), tokenizer, config, lm, along)


@torch.inference_mode()
def targets_of_encoded(
    teacher: Transducer,
    cuts: list[MonoCut],
    enc_BTE: Tensor,
    frames_B: Tensor,
    tokenizer: Tokenizer,
    config: TargetsConfig,
    lm: LanguageModel | None = None,
    along: dict[str, list[Ranked]] | None = None,
) -> list[list[Target]]:
    """`make_targets` after the teacher's forward pass: what distillation adds to it.

    Args:
        teacher: as in `make_targets`, and so are cuts, tokenizer, config, lm and along.
        cuts: the batch's cuts.
        enc_BTE: the teacher's encoder output.
        frames_B: its frames.
        tokenizer: the teacher's.
        config: top_k, search, paths, lm_weight.
        lm: the language model, if any.
        along: paths to follow, if any.
    """
    if along is None:
        ranked = _searched(teacher, cuts, enc_BTE, frames_B, tokenizer, config, lm)
    else:
        ranked = [_followed(along, cut.id, frames) for cut, frames in zip(cuts, frames_B.tolist(), strict=True)]
    enc_BTJ = teacher.project_encoder(enc_BTE)
    targets: list[list[Target]] = [[] for _ in cuts]
    # Rank by rank, so that n-best lists take no more memory than the best alone.
    for rank in range(max(map(len, ranked))):
        rows = [i for i, candidates in enumerate(ranked) if len(candidates) > rank]
        ids, labellings = [cuts[i].id for i in rows], [ranked[i][rank] for i in rows]
        made = _along_paths(teacher, ids, rank, labellings, enc_BTJ[rows], frames_B[rows], config, lm)
        for i, target in zip(rows, made, strict=True):
            targets[i].append(target)
    return targets


def _searched(
    teacher: Transducer,
    cuts: list[MonoCut],
    enc_BTE: Tensor,
    frames_B: Tensor,
    tokenizer: Tokenizer,
    config: TargetsConfig,
    lm: LanguageModel | None,
) -> list[list[Ranked]]:
    """For each cut its text, or the hypotheses of a search where it has none."""
    texts = [text_of(cut) for cut in cuts]
    unlabelled = [i for i, text in enumerate(texts) if text is None]
    found: list[list[Hypothesis]] = []
    if unlabelled:
        found = search(teacher, enc_BTE[unlabelled], frames_B[unlabelled], config.search, lm, config.lm_weight)
    nbest = dict(zip(unlabelled, found, strict=True))
    return [
        [Ranked(tokenizer.encode(text), text, "viterbi")]
        if text is not None
        else rank_hypotheses(nbest[i], int(frames_B[i]), tokenizer, config)
        for i, text in enumerate(texts)
    ]


def _followed(along: dict[str, list[Ranked]], utt_id: str, num_frames: int) -> list[Ranked]:
    """The paths to follow in one utterance, which have to fit the teacher's frames."""
    if utt_id not in along:
        raise ContractError(f"utterance {utt_id} has no path in the shard that is followed: verify that shard")
    for ranked in along[utt_id]:
        frames = (ranked.path or []).count(BLANK)
        if frames != num_frames:
            raise ContractError(
                f"utterance {utt_id}: the path to follow has {frames} frames, this teacher {num_frames}: "
                "only teachers with the same frames can share paths"
            )
    return along[utt_id]


def rank_hypotheses(
    hypotheses: list[Hypothesis], num_frames: int, tokenizer: Tokenizer, config: TargetsConfig
) -> list[Ranked]:
    """The best `nbest` hypotheses of an utterance, weighted by the softmax of their search scores.

    Beyond the best one, those without labels, and those so improbable that no training would draw them, are left out.
    """
    kept = [h for rank, h in enumerate(hypotheses[: config.nbest]) if rank == 0 or h.tokens]
    scores = np.array([hypothesis.score for hypothesis in kept])
    kept = [h for h, score in zip(kept, scores, strict=True) if score - scores[0] > math.log(LEAST_WEIGHT)]
    weights = np.exp(scores[: len(kept)] - scores[0])
    origin = "beam_lm" if config.lm_weight > 0 else config.search.type
    return [
        Ranked(
            labels=hypothesis.tokens,
            text=tokenizer.decode(hypothesis.tokens),
            origin=origin,
            weight=float(weight),
            path=path_of(hypothesis, num_frames) if config.unlabelled_path == "search" else None,
        )
        for hypothesis, weight in zip(kept, weights / weights.sum(), strict=True)
    ]


def _along_paths(
    teacher: Transducer,
    ids: list[str],
    rank: int,
    labellings: list[Ranked],
    enc_BTJ: Tensor,
    frames_B: Tensor,
    config: TargetsConfig,
    lm: LanguageModel | None,
) -> list[Target]:
    """A target for each utterance of a batch, along one path each."""
    labels_BU, label_lengths_B = _padded([labelling.labels for labelling in labellings], frames_B.device)
    pred_BUJ = teacher.project_predictor(teacher.predictor(labels_BU))
    grid = (labels_BU, frames_B, label_lengths_B)
    blank_BTU, label_BTU = arc_scores(teacher.joiner, enc_BTJ, pred_BUJ, *grid)
    totals = total_score(forward_scores(blank_BTU, label_BTU), blank_BTU, frames_B, label_lengths_B)
    best_BN, _ = viterbi(blank_BTU, label_BTU, *grid)
    lm_BUV = config.lm_weight * label_scores(lm, labels_BU) if lm is not None and config.lm_weight > 0 else None

    targets = []
    for i, labelling in enumerate(labellings):
        num_frames, num_labels = int(frames_B[i]), len(labelling.labels)
        viterbi_N = best_BN[i, : num_frames + num_labels]
        path_N = viterbi_N if labelling.path is None else torch.tensor(labelling.path, device=best_BN.device)
        check_path(path_N, num_frames, f"utterance {ids[i]}")
        t_N, u_N = nodes(path_N)
        logp_NV = teacher.joiner(enc_BTJ[i, t_N], pred_BUJ[i, u_N]).float().log_softmax(1)
        path_logp = float(logp_NV.gather(1, path_N[:, None]).double().sum())
        if lm_BUV is not None:
            logp_NV = fuse(logp_NV, path_N, lm_BUV[i, :num_labels])
        logp_NK, ids_NK = (top_NK.cpu().numpy() for top_NK in logp_NV.topk(min(config.top_k, logp_NV.shape[1]), dim=1))
        topk_ids, topk_logp = encode(ids_NK, logp_NK, config.min_probability, config.logp_step)
        targets.append(
            Target(
                utt_id=ids[i],
                rank=rank,
                weight=labelling.weight,
                origin=labelling.origin,
                num_frames=num_frames,
                path=path_N.cpu().numpy().astype(np.uint16),
                topk_ids=topk_ids,
                topk_logp=topk_logp,
                path_logp=path_logp,
                total_logp=float(totals[i]),
                text=labelling.text,
            )
        )
    return targets


def label_scores(lm: LanguageModel, labels_BU: Tensor) -> Tensor:
    """The language model's log-probabilities (B, U, V) of every token after the first 0, 1, ..., U - 1 labels."""
    state = lm.start(len(labels_BU))
    scores = []
    for token_B in labels_BU.T:
        scores.append(lm.score(state))
        state = lm.advance(state, token_B)
    return torch.stack(scores, 1) if scores else torch.zeros(*labels_BU.shape, 1, device=labels_BU.device)


def fuse(logp_NV: Tensor, path_N: Tensor, lm_UV: Tensor) -> Tensor:
    """Shallow fusion in the distributions: at label nodes the language model's scores are added and the sum normalised.

    At a blank node the path waits for more audio, about which a language model knows nothing: it stays as it is.

    Args:
        logp_NV: the teacher's log-probabilities along a path.
        path_N: its tokens with blanks.
        lm_UV: weighted scores of the language model before each label; 0 for blank.
    """
    # A path has one label node for each number of labels before it, in that order.
    at_label_N = path_N != BLANK
    fused_NV = logp_NV.clone()
    fused_NV[at_label_N] = (logp_NV[at_label_N] + lm_UV).log_softmax(1)
    return fused_NV


def _padded(labels: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    tensors = [torch.tensor(tokens, dtype=torch.long, device=device) for tokens in labels]
    return pad_sequence(tensors, batch_first=True), torch.tensor([len(tokens) for tokens in labels], device=device)
