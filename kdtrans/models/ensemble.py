"""Several transducers as one: at every node of the lattice the mean of their distributions.

They share the vocabulary and the frames; encoders, predictors and joiners may differ. What one of them hands on lies
beside that of the others in one tensor, so that searches and lattices take an ensemble for any transducer.

Shapes: as in transducer.py, S samples; E, P and J are the sums of the members' widths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from kdtrans.models.predictor import Predictor
from kdtrans.models.transducer import Encoder, Joiner, Transducer


class Ensemble(Transducer):
    """Transducers whose mean is searched and taught; it is not trained.

    The mean is one of probabilities, not of their logs: what one member is sure of keeps its share of the mass,
    whatever the others make of it.

    Args:
        members: transducers of the same vocabulary, in eval mode.

    Raises:
        ValueError: when the vocabularies differ, naming two sizes.
    """

    def __init__(self, members: Sequence[Transducer]) -> None:
        nn.Module.__init__(self)
        sizes = sorted({member.vocab_size for member in members})
        if len(sizes) > 1:
            raise ValueError(f"vocabularies of {sizes[0]} and {sizes[1]} tokens: an ensemble shares its tokenizer")
        self.vocab_size = sizes[0]
        self.fingerprint = "+".join(member.fingerprint for member in members)
        self.encoder = _Encoders([member.encoder for member in members])
        self.predictor = _Predictors([member.predictor for member in members])
        self.joiner = _Joiners([member.joiner for member in members])
        self._members = members
        self.eval()

    def project_encoder(self, enc_BTE: Tensor) -> Tensor:
        """(B, T, E) -> (B, T, J), each member's part by its own map."""
        parts = enc_BTE.split([member.encoder.dim for member in self._members], -1)
        return torch.cat([m.project_encoder(part) for m, part in zip(self._members, parts, strict=True)], -1)

    def project_predictor(self, pred_BUP: Tensor) -> Tensor:
        """(..., P) -> (..., J), each member's part by its own map."""
        parts = pred_BUP.split([member.predictor.dim for member in self._members], -1)
        return torch.cat([m.project_predictor(part) for m, part in zip(self._members, parts, strict=True)], -1)


class _Encoders(Encoder):
    def __init__(self, members: Sequence[Encoder]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.dim = sum(encoder.dim for encoder in members)
        self._encoders = members

    def extract(self, waveform_S: Tensor) -> Tensor:
        """The waveform itself as (S, 1): each member makes its own features of it.

        Raises:
            ValueError: as soon as a member refuses it, for here the utterance's name is known.
        """
        for encoder in self._encoders:
            encoder.extract(waveform_S)
        return waveform_S[:, None]

    def forward(self, features_BFC: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        samples = lengths_B.tolist()
        waveforms = [wave_S1[:count, 0] for wave_S1, count in zip(features_BFC, samples, strict=True)]
        outputs, frames = zip(*(_encode(encoder, waveforms) for encoder in self._encoders), strict=True)
        for place, frames_B in enumerate(frames):
            for count, first, other in zip(samples, frames[0].tolist(), frames_B.tolist(), strict=True):
                if first != other:
                    raise ValueError(
                        f"{count} samples are {first} frames of the first model and {other} of model {place + 1}: "
                        "the models of an ensemble need the same frames"
                    )
        return torch.cat(outputs, -1), frames[0]


def _encode(encoder: Encoder, waveforms: list[Tensor]) -> tuple[Tensor, Tensor]:
    features = [encoder.extract(waveform_S) for waveform_S in waveforms]
    lengths_B = torch.tensor([len(features_FC) for features_FC in features], device=features[0].device)
    enc_BTE, frames_B = encoder(pad_sequence(features, batch_first=True), lengths_B)
    return enc_BTE, frames_B


class _Predictors(Predictor):
    """A row of its state holds those of its members flattened, as float32, which is exact for labels too."""

    def __init__(self, members: Sequence[Predictor]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.dim = sum(predictor.dim for predictor in members)
        self._predictors = members
        self._states = [predictor.start(1)[1][0] for predictor in members]  # of one prefix: their shapes and types

    def forward(self, labels_BU: Tensor) -> Tensor:
        return torch.cat([predictor(labels_BU) for predictor in self._predictors], -1)

    def start(self, batch: int) -> tuple[Tensor, Tensor]:
        return self._beside(predictor.start(batch) for predictor in self._predictors)

    def step(self, label_B: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        parts = state.split([of_one.numel() for of_one in self._states], 1)
        return self._beside(
            predictor.step(label_B, part.reshape(-1, *of_one.shape).to(of_one.dtype))
            for predictor, part, of_one in zip(self._predictors, parts, self._states, strict=True)
        )

    def _beside(self, stepped: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        outputs, states = zip(*stepped, strict=True)
        return torch.cat(outputs, -1), torch.cat([state.flatten(1).float() for state in states], 1)


class _Joiners(Joiner):
    def __init__(self, members: Sequence[Joiner]) -> None:
        nn.Module.__init__(self)
        self.members = nn.ModuleList(members)
        self._widths = [joiner.output.in_features for joiner in members]

    def forward(self, enc_J: Tensor, pred_J: Tensor) -> Tensor:
        """Log-probabilities (..., V) of the mean, which are logits too: their softmax is the mean."""
        parts = zip(self.members, enc_J.split(self._widths, -1), pred_J.split(self._widths, -1), strict=True)
        logp = torch.stack([joiner(enc, pred).float().log_softmax(-1) for joiner, enc, pred in parts])
        return logp.logsumexp(0) - math.log(len(self.members))
