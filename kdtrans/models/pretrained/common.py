"""What all pre-trained encoders share: pooling to 40 ms, and who owns which parameters.

Shapes: B utterances, S samples, F feature frames, C feature channels, T encoder frames, E encoder width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from kdtrans.contracts import SAMPLE_RATE
from kdtrans.models.transducer import Encoder

SHORTEST = SAMPLE_RATE // 20  # 50 ms: every front-end makes two frames of 20 ms of it, hence one of 40 ms


class Pooling(nn.Module):
    """Makes one frame of 40 ms of two frames of 20 ms; an odd last frame is dropped."""

    def __init__(self, dim: int, kind: Literal["average", "concat"]) -> None:
        super().__init__()
        self.projection = None
        if kind == "concat":
            self.projection = nn.Linear(2 * dim, dim)
            with torch.no_grad():  # starts as the average: a random map would hide what the encoder has learnt
                self.projection.weight.copy_(torch.eye(dim).repeat(1, 2) / 2)
                self.projection.bias.zero_()

    def forward(self, frames_BTE: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, E) and lengths -> (B, T // 2, E) and lengths // 2."""
        batch, size, dim = frames_BTE.shape
        pairs = frames_BTE[:, : size // 2 * 2].reshape(batch, size // 2, 2, dim)
        pooled = pairs.mean(2) if self.projection is None else self.projection(pairs.flatten(2))
        return pooled, lengths_B // 2


class PretrainedEncoder(Encoder):
    """Base of the pre-trained encoders.

    A subclass builds its network, then implements `extract`, `extractor_parameters` and `encode_20ms`.
    """

    def __init__(self, dim: int, pooling: Literal["average", "concat"]) -> None:
        super().__init__()
        self.dim = dim
        self.pooling = Pooling(dim, pooling)

    def forward(self, features_BFC: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Zero-padded features and lengths -> (B, T, E) at 40 ms and lengths; frames beyond a length mean nothing."""
        return self.pooling(*self.encode_20ms(features_BFC, lengths_B))

    def encode_20ms(self, features_BFC: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """The network's own output (B, T, E) at 20 ms and lengths; masks its input in training mode."""
        raise NotImplementedError

    def extractor_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the convolutional feature extractor, usually kept frozen."""
        raise NotImplementedError

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        """Everything that was pre-trained: all but the pooling's projection, which is new and must always train."""
        return (p for name, p in self.named_parameters() if not name.startswith("pooling."))


def check_waveform(waveform_S: Tensor) -> None:
    """Refuse what is not one utterance of at least 50 ms; raises ValueError."""
    if waveform_S.dim() != 1 or len(waveform_S) < SHORTEST:
        raise ValueError(
            f"expected one channel of at least {SHORTEST} samples (50 ms), found shape {tuple(waveform_S.shape)}: "
            "raise corpus.min_duration_s, or leave it out of the test set"
        )
