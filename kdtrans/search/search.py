"""One entry to all searches."""

from __future__ import annotations

import math

from torch import Tensor

from kdtrans.config import SearchConfig
from kdtrans.models.lm import LanguageModel
from kdtrans.models.ngram import Ngram
from kdtrans.models.transducer import Transducer
from kdtrans.search.beam import beam
from kdtrans.search.fsa import fsa
from kdtrans.search.greedy import greedy
from kdtrans.search.hypothesis import Hypothesis


def search(
    model: Transducer,
    enc_BTE: Tensor,
    lengths_B: Tensor,
    config: SearchConfig,
    lm: LanguageModel | None = None,
    lm_weight: float = 0.0,
) -> list[list[Hypothesis]]:
    """Decode a batch as the configuration says.

    Args:
        model: transducer in eval mode.
        enc_BTE: encoder output.
        lengths_B: encoder frames of each utterance.
        config: strategy; its `lm` needs a language model.
        lm: that language model, over tokens.
        lm_weight: its weight in shallow fusion.

    Returns:
        For each utterance its hypotheses, best first: one of them for greedy, up to `beam` for the others.

    Raises:
        ValueError: when the configuration asks for a language model and none is given, or for other hypotheses; for
            fsa as `fsa` does, or when the language model is no n-gram.
    """
    if config.lm and lm is None:
        raise ValueError(f"the search has lm: {config.lm}, but no language model was given: pass one, or leave lm out")
    if config.rescore:
        raise ValueError(f"this search ranks the hypotheses of '{config.rescore}' anew: run the stage `rescore`")
    if config.type == "greedy":
        return [[hypothesis] for hypothesis in greedy(model, enc_BTE, lengths_B, config.max_symbols)]
    fused = lm if config.lm else None
    threshold = math.inf if config.threshold is None else config.threshold
    if config.type == "fsa":
        if fused is not None and not isinstance(fused, Ngram):
            raise ValueError(f"type: fsa needs an n-gram, but was given {type(fused).__name__}: decode with type: beam")
        return fsa(model, enc_BTE, lengths_B, config.beam, threshold, fused, lm_weight)
    width, symbols, ilm_weight = config.beam, config.max_symbols, config.ilm_weight
    return beam(model, enc_BTE, lengths_B, width, symbols, fused, lm_weight, ilm_weight, threshold)
