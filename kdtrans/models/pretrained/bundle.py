"""The wav2vec 2.0 families of torchaudio.pipelines; weights come from torch.hub's cache or the network.

Shapes: B utterances, S samples, C channels of the convolutions, T frames (20 ms), E encoder width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdtrans.config import TeacherConfig
from kdtrans.contracts import SAMPLE_RATE
from kdtrans.models.pretrained.wav2vec2 import WaveformEncoder


class BundleEncoder(WaveformEncoder):
    """torchaudio's Wav2Vec2Model: wav2vec 2.0, HuBERT or WavLM; a head for recognition, if any, is not used."""

    def __init__(self, network: Any, normalise: bool, config: TeacherConfig) -> None:
        """Args:
        network: torchaudio.models.Wav2Vec2Model.
        normalise: layer-normalise each waveform, as the bundle asks for.
        config: the teacher.
        """
        layers = network.feature_extractor.conv_layers
        kernels = [(layer.kernel_size, layer.stride) for layer in layers]
        group_norm = isinstance(layers[0].layer_norm, torch.nn.GroupNorm)
        dim = network.encoder.feature_projection.projection.out_features
        super().__init__(dim, kernels, group_norm, 1e-5 if normalise else None, config.pooling, config.masking)
        self.extractor = network.feature_extractor
        self.projection = network.encoder.feature_projection
        self.transformer = network.encoder.transformer
        self.gradient_checkpointing = config.gradient_checkpointing

    def convolve(self, waveform_BS: Tensor) -> Tensor:
        return self.extractor(waveform_BS, None)[0]

    def project(self, conv_BTC: Tensor) -> Tensor:
        return self.projection(conv_BTC)

    def contextualise(self, projected_BTE: Tensor, valid_BT: Tensor) -> Tensor:
        """torchaudio's Transformer.forward without its layer drop, and with the mask that WavLM's attention takes."""
        from torchaudio.models.wav2vec2.wavlm_attention import WavLMSelfAttention

        size = projected_BTE.shape[1]
        keys_B1TT = valid_BT[:, None, None, :].expand(-1, 1, size, size)
        hidden, position_bias = self.transformer._preprocess(projected_BTE), None
        for layer in self.transformer.layers:
            wavlm = isinstance(layer.attention, WavLMSelfAttention)
            masks = (None, position_bias, ~valid_BT) if wavlm else (keys_B1TT, None, None)
            if self.gradient_checkpointing and self.training:
                hidden, position_bias = checkpoint(layer, hidden, *masks, use_reentrant=False)
            else:
                hidden, position_bias = layer(hidden, *masks)
        return hidden if self.transformer.layer_norm_first else self.transformer.layer_norm(hidden)


def build_bundle_encoder(name: str, config: TeacherConfig) -> BundleEncoder:
    """The encoder of torchaudio.pipelines.<name>.

    Raises:
        ValueError: no such bundle, not one of speech at 16 kHz, or its weights are not to be had.
    """
    import torchaudio

    bundle = getattr(torchaudio.pipelines, name, None)
    if not isinstance(bundle, torchaudio.pipelines.Wav2Vec2Bundle):
        known = [n for n in vars(torchaudio.pipelines) if n.startswith(("WAV2VEC2_", "HUBERT_", "WAVLM_"))]
        raise ValueError(f"teacher.encoder: torchaudio has no bundle '{name}'; it has {', '.join(sorted(known))}")
    if bundle.sample_rate != SAMPLE_RATE:
        raise ValueError(f"teacher.encoder: bundle {name} wants {bundle.sample_rate:g} Hz, not {SAMPLE_RATE} Hz")
    try:
        network = bundle.get_model()
    except OSError as error:
        raise ValueError(
            f"teacher.encoder: the weights of bundle {name} are not in {torch.hub.get_dir()}/checkpoints and could not "
            f"be downloaded ({error}); fetch '{bundle._path}' where there is a network and put it there"
        ) from None
    # get_model wraps the network only to normalise a whole batch at once, padding included; we do it by utterance.
    normalise = bundle._normalize_waveform
    return BundleEncoder(network.model if normalise else network, normalise, config)
