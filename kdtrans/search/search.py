"""One entry to all searches."""

from __future__ import annotations

import math

from torch import Tensor

from kdtrans.config import SearchConfig
from kdtrans.models.lm import LanguageModel
from kdtrans.models.transducer import Transducer
from kdtrans.search.beam import beam
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
        For each utterance its hypotheses, best first: one of them for greedy, up to `beam` for beam.

    Raises:
        ValueError: when the configuration asks for a language model and none is given, or for other hypotheses.
    """
    if config.lm and lm is None:
        raise ValueError(f"the search has lm: {config.lm}, but no language model was given: pass one, or leave lm out")
    if config.rescore:
        raise ValueError(f"this search ranks the hypotheses of '{config.rescore}' anew: run the stage `rescore`")
    if config.type == "greedy":
        return [[hypothesis] for hypothesis in greedy(model, enc_BTE, lengths_B, config.max_symbols)]
    return beam(
        model,
        enc_BTE,
        lengths_B,
        config.beam,
        config.max_symbols,
        lm if config.lm else None,
        lm_weight,
        config.ilm_weight,
        math.inf if config.threshold is None else config.threshold,
    )
