"""Dev WER while training: greedy, with features kept between evaluations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lhotse import MonoCut

from kdtrans.config import SearchConfig
from kdtrans.data.batches import inference_batches
from kdtrans.data.manifest import text_of
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.models.transducer import Transducer
from kdtrans.scoring.wer import word_error_rate
from kdtrans.search.search import search


def dev_evaluation(
    cuts: list[MonoCut], tokenizer: Tokenizer, model: Transducer, max_duration_s: float
) -> Callable[[Transducer], float]:
    """A function from a model to its greedy WER (%) on these cuts.

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
    def evaluate(current: Transducer) -> float:
        device = next(current.parameters()).device
        references, hypotheses = [], []
        for batch_cuts, features_BFC, lengths_B in batches:
            enc_BTE, frames_B = current.encode(features_BFC.to(device), lengths_B.to(device))
            found = search(current, enc_BTE, frames_B, SearchConfig())
            references += [text_of(cut) or "" for cut in batch_cuts]
            hypotheses += [tokenizer.decode(nbest[0].tokens) for nbest in found]
        return word_error_rate(references, hypotheses)

    return evaluate
