"""Dev WER and dev loss while training, with features kept between evaluations.

The WER is what a model is chosen by. Of a small development set it moves in steps of a word, so that the loss tells
settings apart that have the same one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from lhotse import MonoCut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kdtrans.config import SearchConfig
from kdtrans.data.batches import inference_batches
from kdtrans.data.manifest import text_of
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.losses.fused import fused_transducer_loss
from kdtrans.models.transducer import Transducer
from kdtrans.scoring.wer import word_error_rate
from kdtrans.search.search import search


class DevScores(NamedTuple):
    """How well a model does on the development set."""

    wer: float  # %, greedy
    loss: float  # transducer loss of the references, nats an utterance


def dev_evaluation(
    cuts: list[MonoCut], tokenizer: Tokenizer, model: Transducer, max_duration_s: float
) -> Callable[[Transducer], DevScores]:
    """A function from a model to its scores on these cuts.

    Raises:
        ValueError: when no cut has text.
    """
    labelled = [cut for cut in cuts if text_of(cut)]
    if not labelled:
        raise ValueError(
            f"none of the {len(cuts)} utterances of the development set has text: training keeps the weights with the "
            "lowest dev WER, so give it some (corpus.dev or corpus.split.dev_fraction)"
        )
    # Constant while training, and dev sets are small.
    batches = list(inference_batches(labelled, model.encoder.extract, max_duration_s))

    @torch.inference_mode()
    def evaluate(current: Transducer) -> DevScores:
        device = next(current.parameters()).device
        references, hypotheses, losses = [], [], []
        for batch_cuts, features_BFC, lengths_B in batches:
            enc_BTE, frames_B = current.encode(features_BFC.to(device), lengths_B.to(device))
            found = search(current, enc_BTE, frames_B, SearchConfig())
            texts = [text_of(cut) or "" for cut in batch_cuts]
            references += texts
            hypotheses += [tokenizer.decode(nbest[0].tokens) for nbest in found]
            losses += reference_losses(current, enc_BTE, frames_B, [tokenizer.encode(text) for text in texts])
        return DevScores(word_error_rate(references, hypotheses), sum(losses) / len(losses))

    return evaluate


def reference_losses(model: Transducer, enc_BTE: Tensor, frames_B: Tensor, labels: list[list[int]]) -> list[float]:
    """Transducer loss of each utterance, nats, from encoder output (B, T, E), its frames (B,) and the references."""
    labels_BU = pad_sequence([torch.tensor(tokens, dtype=torch.long) for tokens in labels], batch_first=True)
    labels_BU = labels_BU.to(enc_BTE.device)
    lengths_B = torch.tensor([len(tokens) for tokens in labels], device=enc_BTE.device)
    outputs = model.project_encoder(enc_BTE), model.project_predictor(model.predictor(labels_BU))
    losses: list[float] = fused_transducer_loss(model.joiner, (), *outputs, labels_BU, frames_B, lengths_B).tolist()
    return losses
