"""From the name in `teacher.encoder` to an encoder with its weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kdtrans.config import TeacherConfig
from kdtrans.models.pretrained.common import PretrainedEncoder
from kdtrans.models.pretrained.wav2vec2 import Wav2Vec2Encoder, random_network
from kdtrans.models.pretrained.whisper import WhisperEncoder

REPOSITORY = Path(__file__).parents[3]
BUNDLE_PREFIX = "torchaudio:"
WAVEFORM_FAMILIES = ("wav2vec2", "hubert", "wavlm")


def build_teacher_encoder(config: TeacherConfig, architecture: dict[str, Any] | None = None) -> PretrainedEncoder:
    """The encoder that `config.encoder` names, in fp32, with its weights or ready for those of a trained teacher.

    Args:
        config: the teacher; `encoder` is a folder or hub name for transformers, `torchaudio:BUNDLE`, or `random`.
        architecture: what `read_architecture` has found: the encoder gets random weights, and no file of it is read.

    Raises:
        ValueError: the name is neither a folder nor on the hub, its family is not known, or weights are missing.
    """
    name = config.encoder
    if name == "random":
        return Wav2Vec2Encoder(random_network(config.random), True, config.pooling, config.masking)
    if name.startswith(BUNDLE_PREFIX):
        from kdtrans.models.pretrained.bundle import build_bundle_encoder

        return build_bundle_encoder(name.removeprefix(BUNDLE_PREFIX), config)
    if architecture is not None:
        return _from_transformers(name, config, architecture, loads_weights=False)
    return _from_transformers(name, config, _architecture_of(name), loads_weights=True)


def read_architecture(name: str) -> dict[str, Any] | None:
    """What builds an encoder of transformers again without its folder; None for others, which need no folder.

    Returns:
        `network`: transformers' configuration; `normalises`: whether waveforms get zero mean and unit variance.

    Raises:
        ValueError: the name is neither a folder nor on the hub.
    """
    return None if name == "random" or name.startswith(BUNDLE_PREFIX) else _architecture_of(name)


def _architecture_of(name: str) -> dict[str, Any]:
    import transformers

    source = _folder_or_hub_name(name)
    try:
        network = transformers.AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(_not_loadable(name, source, error)) from None
    normalises = network.model_type in WAVEFORM_FAMILIES and _normalises(source, network)
    return {"network": json.loads(network.to_json_string(use_diff=False)), "normalises": normalises}


def _from_transformers(
    name: str, config: TeacherConfig, architecture: dict[str, Any], loads_weights: bool
) -> PretrainedEncoder:
    import transformers

    source, network_config = _folder_or_hub_name(name), transformers.AutoConfig.for_model(**architecture["network"])
    family = network_config.model_type
    if family == "whisper":
        whisper = transformers.models.whisper.modeling_whisper
        if not loads_weights:
            network = whisper.WhisperEncoder(network_config)
        elif network_config.architectures == ["WhisperEncoder"]:
            network = _load(whisper.WhisperEncoder, source, network_config)
        else:
            network = _load(whisper.WhisperModel, source, network_config).encoder
        _checkpoint_gradients(network, config)
        return WhisperEncoder(network, config.pooling, config.masking)
    if family in WAVEFORM_FAMILIES:
        # We mask ourselves; skipped layers would make a training step depend on more than its masks. With probability
        # zero transformers leaves out its mask embedding, a parameter that would never get a gradient.
        network_config.mask_time_prob = network_config.mask_feature_prob = network_config.layerdrop = 0.0
        if loads_weights:
            network = _load(transformers.AutoModel, source, network_config)
        else:
            network = transformers.AutoModel.from_config(network_config, dtype=torch.float32)
        _checkpoint_gradients(network, config)
        return Wav2Vec2Encoder(network, architecture["normalises"], config.pooling, config.masking)
    raise ValueError(
        f"teacher.encoder: '{name}' is a '{family}' model; known are whisper, {', '.join(WAVEFORM_FAMILIES)}"
    )


def _folder_or_hub_name(name: str) -> str:
    """The folder relative to the working directory or else to the repository; the name itself if there is none."""
    for folder in (Path(name), REPOSITORY / name):
        if folder.is_dir():
            return str(folder)
    return name


def _not_loadable(name: str, source: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    if Path(source).is_dir():
        return f"teacher.encoder: the folder '{source}' holds no model that transformers can read ({reason})"
    return (
        f"teacher.encoder: '{name}' is no folder (tried from {Path.cwd()} and from {REPOSITORY}), and as a hub name it "
        f"could not be loaded ({reason}). Where there is a network, run `hf download {name} --local-dir FOLDER`, "
        "then set teacher.encoder: FOLDER"
    )


def _load(model_class: Any, source: str, network_config: Any) -> Any:
    """The model in fp32, whatever precision its file has; refuses a file that lacks weights (they would be random)."""
    try:
        with _no_progress_bars():
            network, report = model_class.from_pretrained(
                source, config=network_config, dtype=torch.float32, output_loading_info=True
            )
    except OSError as error:
        raise ValueError(f"teacher.encoder: {source}: {str(error).strip().splitlines()[0]}") from None
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"teacher.encoder: {source} lacks {len(missing)} weights of {type(network).__name__}, such as "
            f"'{missing[0]}': the files are incomplete or of another model; fetch them again"
        )
    return network


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep the bar of transformers' loader out of the stages' logs."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _checkpoint_gradients(network: Any, config: TeacherConfig) -> None:
    if config.gradient_checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _normalises(source: str, network_config: Any) -> bool:
    """Whether the model was trained on waveforms of zero mean and unit variance; its preprocessor knows."""
    import transformers

    try:
        preprocessor, _ = transformers.FeatureExtractionMixin.get_feature_extractor_dict(source)
    except OSError:
        return network_config.feat_extract_norm == "layer"
    return bool(preprocessor.get("do_normalize", network_config.feat_extract_norm == "layer"))
