"""Predictors: the part of a transducer that sees the labels so far.

Shapes: B utterances (or hypotheses), U labels, P predictor width. A search state is one tensor with the batch first, so
that a search reorders hypotheses by indexing it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtrans.config import PredictorConfig
from kdtrans.contracts import BLANK


class Predictor(nn.Module):
    """What a transducer asks of a predictor."""

    dim: int

    def forward(self, labels_BU: Tensor) -> Tensor:
        """Outputs for every prefix: (B, U) labels -> (B, U + 1, P); output u has seen the first u labels."""
        raise NotImplementedError

    def start(self, batch: int) -> tuple[Tensor, Tensor]:
        """Output (batch, P) and state of the empty prefix."""
        raise NotImplementedError

    def step(self, label_B: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Append one label to each prefix: (B,) labels and state -> output (B, P) and new state."""
        raise NotImplementedError


class LstmPredictor(Predictor):
    """Embedding and LSTM over all labels so far (Graves 2012, arXiv 1211.3711)."""

    def __init__(self, vocab_size: int, config: PredictorConfig) -> None:
        super().__init__()
        self.dim = config.dim
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.lstm = nn.LSTM(config.dim, config.dim, config.layers, batch_first=True)

    def forward(self, labels_BU: Tensor) -> Tensor:
        prefixed = F.pad(labels_BU, (1, 0), value=BLANK)
        output, _ = self.lstm(self.dropout(self.embedding(prefixed)))
        return self.dropout(output)

    def start(self, batch: int) -> tuple[Tensor, Tensor]:
        device = self.embedding.weight.device
        state = torch.zeros(batch, 2, self.lstm.num_layers, self.dim, device=device)
        return self.step(torch.full((batch,), BLANK, device=device), state)

    def step(self, label_B: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        hidden, cell = state.transpose(0, 1).transpose(1, 2).contiguous().unbind(0)
        output, (hidden, cell) = self.lstm(self.embedding(label_B)[:, None], (hidden, cell))
        return output[:, 0], torch.stack([hidden, cell]).transpose(1, 2).transpose(0, 1)


class StatelessPredictor(Predictor):
    """Embedding and a convolution over the last `context` labels (Ghodsi et al. 2020)."""

    def __init__(self, vocab_size: int, config: PredictorConfig) -> None:
        super().__init__()
        self.dim, self.context = config.dim, config.context
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.conv = nn.Conv1d(config.dim, config.dim, config.context, groups=config.dim)

    def forward(self, labels_BU: Tensor) -> Tensor:
        return self._output(F.pad(labels_BU, (self.context, 0), value=BLANK))

    def start(self, batch: int) -> tuple[Tensor, Tensor]:
        state = torch.full((batch, self.context), BLANK, device=self.embedding.weight.device)
        return self._output(state)[:, 0], state

    def step(self, label_B: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.cat([state[:, 1:], label_B[:, None]], dim=1)
        return self._output(state)[:, 0], state

    def _output(self, labels: Tensor) -> Tensor:
        embedded = self.dropout(self.embedding(labels))
        return self.dropout(F.relu(self.conv(embedded.transpose(1, 2)).transpose(1, 2)))


def build_predictor(vocab_size: int, config: PredictorConfig) -> Predictor:
    """The predictor that the configuration names."""
    if config.type == "lstm":
        return LstmPredictor(vocab_size, config)
    return StatelessPredictor(vocab_size, config)
