"""Encoders that eat the waveform: wav2vec 2.0 (arXiv 2006.11477), HuBERT (2106.07447) and WavLM (2110.13900).

All three are seven convolutions (16 kHz -> 20 ms), a projection, and a transformer with convolutional positions.
Shapes: B utterances, S samples, C channels of the convolutions, T frames (20 ms), E encoder width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtrans.config import MaskingConfig, RandomEncoderConfig
from kdtrans.models.masking import mask
from kdtrans.models.padding import real_frames
from kdtrans.models.pretrained.common import PretrainedEncoder, check_waveform


class WaveformEncoder(PretrainedEncoder):
    """What the wav2vec 2.0 families share, whichever library built them.

    A subclass sets `extractor` and implements `convolve`, `project` and `contextualise`.
    """

    extractor: nn.Module

    def __init__(
        self,
        dim: int,
        kernels: Sequence[tuple[int, int]],
        group_norm: bool,
        normalise_eps: float | None,
        pooling: Literal["average", "concat"],
        masking: MaskingConfig,
    ) -> None:
        """Args:
        dim: E.
        kernels: (kernel, stride) of each convolution, samples.
        group_norm: whether the extractor normalises over time, and so sees padding.
        normalise_eps: make waveforms zero-mean, unit-variance with this epsilon; None: leave them.
        pooling: how 20 ms become 40 ms.
        masking: masks of the projected frames in training mode.
        """
        super().__init__(dim, pooling)
        self.kernels, self.group_norm, self.normalise_eps, self.masking = kernels, group_norm, normalise_eps, masking

    def convolve(self, waveform_BS: Tensor) -> Tensor:
        """(B, S) -> (B, T, C)."""
        raise NotImplementedError

    def project(self, conv_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, E)."""
        raise NotImplementedError

    def contextualise(self, projected_BTE: Tensor, real_BT: Tensor) -> Tensor:
        """The transformer: (B, T, E), of which real_BT are real -> (B, T, E)."""
        raise NotImplementedError

    def extract(self, waveform_S: Tensor) -> Tensor:
        """The waveform itself as (S, 1), normalised if the model wants it.

        Raises:
            ValueError: under 50 ms.
        """
        check_waveform(waveform_S)
        if self.normalise_eps is not None:
            waveform_S = functional.layer_norm(waveform_S, waveform_S.shape, eps=self.normalise_eps)
        return waveform_S[:, None]

    def frames(self, samples_B: Tensor) -> Tensor:
        """Number of 20 ms frames of so many samples: (B,) -> (B,)."""
        for kernel, stride in self.kernels:
            samples_B = (samples_B - kernel) // stride + 1
        return samples_B

    def encode_20ms(self, features_BFC: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S, 1) -> (B, T, E); see `frames` for T."""
        # transformers asks for gradients of the waveform in training mode; a frozen extractor has no use for them.
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.extractor.parameters())
        with torch.set_grad_enabled(trains):
            conv_BTC = self._convolve_batch(features_BFC.squeeze(2), lengths_B)
        lengths_B = self.frames(lengths_B)
        projected_BTE = self.project(conv_BTC)
        real_BT = real_frames(lengths_B, projected_BTE.shape[1])
        projected_BTE = projected_BTE * real_BT[:, :, None]
        if self.training:
            projected_BTE = mask(projected_BTE, lengths_B, self.masking, frame_shift_ms=20.0)
        return self.contextualise(projected_BTE, real_BT), lengths_B

    def _convolve_batch(self, waveform_BS: Tensor, lengths_B: Tensor) -> Tensor:
        if not self.group_norm:
            return self.convolve(waveform_BS)
        # Group norm takes its statistics over time: padding would change them, so each utterance goes alone.
        alone = [self.convolve(waveform_BS[b : b + 1, :size])[0] for b, size in enumerate(lengths_B.tolist())]
        return nn.utils.rnn.pad_sequence(alone, batch_first=True)

    def extractor_parameters(self) -> Iterator[nn.Parameter]:
        """The convolutions."""
        return self.extractor.parameters()


class Wav2Vec2Encoder(WaveformEncoder):
    """Wav2Vec2Model, HubertModel or WavLMModel of transformers."""

    def __init__(
        self, network: Any, normalise: bool, pooling: Literal["average", "concat"], masking: MaskingConfig
    ) -> None:
        """Args:
        network: the model; its own masking and layer drop must be off. Its adapter, if any, is not used.
        normalise: make waveforms zero-mean, unit-variance.
        pooling: how 20 ms become 40 ms.
        masking: masks of the projected frames in training mode.
        """
        config = network.config
        kernels = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        group_norm = config.feat_extract_norm == "group"
        super().__init__(config.hidden_size, kernels, group_norm, 1e-7 if normalise else None, pooling, masking)
        self.extractor = network.feature_extractor
        self.projection = network.feature_projection
        self.transformer = network.encoder

    def convolve(self, waveform_BS: Tensor) -> Tensor:
        return self.extractor(waveform_BS).transpose(1, 2)

    def project(self, conv_BTC: Tensor) -> Tensor:
        projected = self.projection(conv_BTC)
        return projected[0] if isinstance(projected, tuple) else projected  # HuBERT returns one, the others two

    def contextualise(self, projected_BTE: Tensor, real_BT: Tensor) -> Tensor:
        return self.transformer(projected_BTE, attention_mask=real_BT).last_hidden_state


def random_network(config: RandomEncoderConfig) -> Any:
    """A small untrained wav2vec 2.0 with the strides of the large one, for tests."""
    import transformers

    return transformers.Wav2Vec2Model(
        transformers.Wav2Vec2Config(
            hidden_size=config.dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.ffn_dim,
            conv_dim=(config.conv_dim,) * 7,
            conv_bias=True,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            num_conv_pos_embeddings=32,
            num_conv_pos_embedding_groups=config.heads,
            mask_time_prob=0.0,
            mask_feature_prob=0.0,
            layerdrop=0.0,
        )
    )
