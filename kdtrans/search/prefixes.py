"""What prefixes of labels mean to the networks that a beam search asks: predictor, language model, internal one.

Shapes: N prefixes, E encoder width, J joiner width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from kdtrans.contracts import BLANK
from kdtrans.models.lm import LanguageModel
from kdtrans.models.transducer import Transducer


@dataclass(frozen=True)
class Prefixes:
    """Every tensor starts with (N,)."""

    pred: Tensor  # (N, J): projected predictor output
    state: Tensor  # (N, ...): predictor state
    lm_state: Tensor  # (N, ...): language model's state
    bonus: Tensor  # (N, V): what is added to the next label's acoustic log-probability to rank it; (N, 1) zeros without

    def select(self, index_N: Tensor) -> Prefixes:
        """Those at these places."""
        return Prefixes(*(getattr(self, field.name).index_select(0, index_N) for field in fields(self)))

    def beside(self, other: Prefixes) -> Prefixes:
        """All of both."""
        names = [field.name for field in fields(self)]
        return Prefixes(*(torch.cat([getattr(self, name), getattr(other, name)]) for name in names))


class Fusion:
    """A transducer's predictor beside language models: score = acoustics + lm_weight * LM - ilm_weight * internal LM.

    The internal language model is what the transducer says of labels without hearing any: the joiner with the encoder
    output at zero, over labels without blank (Meng et al. 2021, arXiv 2011.01991).
    """

    @torch.inference_mode()
    def __init__(
        self, model: Transducer, lm: LanguageModel | None = None, lm_weight: float = 0.0, ilm_weight: float = 0.0
    ) -> None:
        """Prepare the models.

        Args:
            model: transducer in eval mode.
            lm: language model, or none.
            lm_weight: its weight, not negative; 0 is no language model.
            ilm_weight: the weight of the internal one, which is subtracted; not negative.
        """
        for name, weight in (("lm_weight", lm_weight), ("ilm_weight", ilm_weight)):
            if weight < 0:
                raise ValueError(f"{name} {weight} is negative")
        self.model, self.lm_weight, self.ilm_weight = model, lm_weight, ilm_weight
        self.lm = lm if lm_weight > 0 else None
        silence_E = torch.zeros(model.encoder.dim, device=next(model.parameters()).device)
        self._silence_J = model.project_encoder(silence_E) if ilm_weight > 0 else None

    def start(self, batch: int) -> Prefixes:
        """Empty prefixes."""
        output, state = self.model.predictor.start(batch)
        lm_state = state.new_zeros(batch) if self.lm is None else self.lm.start(batch)
        return self._prefixes(output, state, lm_state)

    def extend(self, prefixes: Prefixes, row_N: Tensor, token_N: Tensor) -> Prefixes:
        """Append a label to the prefixes at row_N."""
        output, state = self.model.predictor.step(token_N, prefixes.state.index_select(0, row_N))
        lm_state = prefixes.lm_state.index_select(0, row_N)
        return self._prefixes(output, state, lm_state if self.lm is None else self.lm.advance(lm_state, token_N))

    def _prefixes(self, output_NP: Tensor, state: Tensor, lm_state: Tensor) -> Prefixes:
        pred_NJ = self.model.project_predictor(output_NP)
        bonus = pred_NJ.new_zeros(len(pred_NJ), 1)
        if self.lm is not None:
            bonus = self.lm_weight * self.lm.score(lm_state)
        if self._silence_J is not None:
            bonus = bonus - self.ilm_weight * internal_lm(self.model, self._silence_J, pred_NJ)
        return Prefixes(pred_NJ, state, lm_state, bonus)


def internal_lm(model: Transducer, silence_J: Tensor, pred_NJ: Tensor) -> Tensor:
    """Log-probabilities (N, V) of labels at a projected encoder output of nothing; 0 for blank, which is no word."""
    logits_NV = model.joiner(silence_J, pred_NJ).float()
    logits_NV[:, BLANK] = -torch.inf
    logp_NV = logits_NV.log_softmax(-1)
    logp_NV[:, BLANK] = 0.0
    return logp_NV
