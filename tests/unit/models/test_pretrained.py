"""Pre-trained encoders against the libraries' own forward passes, padding, frames, loading and refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdtrans.config import MaskingConfig, RandomEncoderConfig, TeacherConfig
from kdtrans.models.pretrained import build_teacher_encoder, read_architecture
from kdtrans.models.pretrained.common import PretrainedEncoder
from kdtrans.models.pretrained.wav2vec2 import Wav2Vec2Encoder, random_network
from kdtrans.models.pretrained.whisper import WhisperEncoder

MASKING = MaskingConfig()
BUNDLES = [("Wav2Vec2", "layer_norm"), ("Wav2Vec2", "group_norm"), ("WavLM", "layer_norm")]
NORMALISED = [  # family, norm, preprocessor, expected
    ("wav2vec2", "layer", None, True),
    ("hubert", "layer", None, True),
    ("wavlm", "layer", None, True),
    ("wav2vec2", "group", None, False),
    ("wav2vec2", "group", True, True),
]
LENGTHS = (16000, 11111, 5000, 800)
WAVEFORM_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
WHISPER_SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 48,
    "max_source_positions": 100,
    "vocab_size": 20,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def waveforms(lengths=LENGTHS, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(length, generator=generator) for length in lengths]


def padded(encoder: PretrainedEncoder, utterances: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    features = [encoder.extract(waveform) for waveform in utterances]
    return nn.utils.rnn.pad_sequence(features, batch_first=True), torch.tensor([len(f) for f in features])


def tiny_network(family: str, norm: str = "layer"):
    """An untrained network of transformers with the family's real strides."""
    torch.manual_seed(1)
    config_class, model_class = {
        "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
        "hubert": (transformers.HubertConfig, transformers.HubertModel),
        "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
    }[family]
    config = config_class(**WAVEFORM_SIZES, feat_extract_norm=norm, do_stable_layer_norm=norm == "layer")
    return model_class(config).eval()


def tiny_whisper() -> nn.Module:
    torch.manual_seed(1)
    config = transformers.WhisperConfig(**WHISPER_SIZES)
    return transformers.models.whisper.modeling_whisper.WhisperEncoder(config).eval()


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """Puts a tiny bundle's weights where torch.hub keeps downloads, so that the real loading code reads them."""

    def make(kind: str, norm: str) -> tuple[str, nn.Module]:
        large = getattr(torchaudio.pipelines, {"Wav2Vec2": "WAV2VEC2_LARGE_LV60K", "WavLM": "WAVLM_LARGE"}[kind])
        params = large._params | {
            "extractor_mode": norm,
            "extractor_conv_layer_config": [(16, kernel, stride) for _, kernel, stride in conv_layers()],
            "encoder_embed_dim": 32,
            "encoder_num_layers": 2,
            "encoder_num_heads": 2,
            "encoder_ff_interm_features": 48,
            "encoder_pos_conv_kernel": 16,
            "encoder_pos_conv_groups": 2,
        }
        torch.manual_seed(1)
        factory = {"Wav2Vec2": torchaudio.models.wav2vec2_model, "WavLM": torchaudio.models.wavlm_model}[kind]
        network = factory(**params).eval()
        (tmp_path / "hub/checkpoints").mkdir(parents=True)
        torch.save(network.state_dict(), tmp_path / "hub/checkpoints/tiny.pth")
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(torch.hub, "_hub_dir", None)
        tiny = torchaudio.pipelines.Wav2Vec2Bundle("tiny.pth", params, 16000, norm == "layer_norm", kind)
        monkeypatch.setattr(torchaudio.pipelines, "WAV2VEC2_TINY", tiny, raising=False)
        return "torchaudio:WAV2VEC2_TINY", network

    return make


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A tiny network of each family, saved by transformers."""
    networks = {family: tiny_network(family) for family in ("wav2vec2", "hubert", "wavlm")}
    networks["whisper"] = tiny_whisper()
    saved = {}
    for family, network in networks.items():
        saved[family] = tmp_path_factory.mktemp(family)
        network.save_pretrained(saved[family])
    return saved


@pytest.fixture(params=["whisper", "wav2vec2", "hubert", "wavlm", "bundle"])
def source(request, folders, bundle) -> str:
    """What `teacher.encoder` may name, one of each kind."""
    return bundle("Wav2Vec2", "layer_norm")[0] if request.param == "bundle" else str(folders[request.param])


def conv_layers() -> list[tuple[int, int, int]]:
    return [(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2


def assert_padding_is_harmless(encoder: PretrainedEncoder) -> None:
    encoder.eval()
    utterances = waveforms()
    features, lengths = padded(encoder, utterances)
    with torch.no_grad():
        together, frames = encoder(features, lengths)
        again, _ = encoder(features, lengths)
        assert torch.equal(together, again)
        for b, waveform in enumerate(utterances):
            alone, frames_alone = encoder(*padded(encoder, [waveform]))
            assert frames_alone.tolist() == [frames[b]] == [alone.shape[1]]
            torch.testing.assert_close(together[b, : frames[b]], alone[0], atol=2e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------- padding
@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_padding_never_changes_a_waveform_encoder(family, norm):
    encoder = Wav2Vec2Encoder(tiny_network(family, norm), norm == "layer", "average", MASKING)
    assert encoder.group_norm == (norm == "group")
    assert_padding_is_harmless(encoder)


@pytest.mark.parametrize(("kind", "norm"), BUNDLES)
def test_padding_never_changes_a_bundle(bundle, kind, norm):
    name, _ = bundle(kind, norm)
    assert_padding_is_harmless(build_teacher_encoder(TeacherConfig(encoder=name)))


@pytest.mark.parametrize("pooling", ["average", "concat"])
def test_padding_never_changes_whisper(pooling):
    assert_padding_is_harmless(WhisperEncoder(tiny_whisper(), pooling, MASKING))


# ------------------------------------------------------------------------------- the slow twins: the libraries' forward
def test_whisper_is_the_stock_encoder_on_a_full_length_input():
    stock = tiny_whisper()
    encoder = WhisperEncoder(tiny_whisper(), "average", MASKING).eval()
    features = torch.randn(2, 200, 80)
    with torch.no_grad():
        ours, lengths = encoder.encode_20ms(features, torch.tensor([200, 200]))
        theirs = stock(features.transpose(1, 2)).last_hidden_state
    assert lengths.tolist() == [100, 100]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bins", [80, 128])
def test_log_mel_is_whispers_own(bins):
    """Away from the end, where Whisper pads to 30 s with silence and we mirror the last 12.5 ms."""
    network = transformers.WhisperConfig(**WHISPER_SIZES | {"num_mel_bins": bins, "max_source_positions": 1500})
    stock = transformers.models.whisper.modeling_whisper.WhisperEncoder(network)
    encoder = WhisperEncoder(stock, "average", MASKING)
    waveform = waveforms([48123])[0] * torch.linspace(0, 1, 48123)
    theirs = (
        transformers.WhisperFeatureExtractor(feature_size=bins)(
            waveform.numpy(), sampling_rate=16000, return_tensors="np"
        )
        .input_features[0]
        .T
    )
    ours = encoder.extract(waveform).numpy()
    assert ours.shape == (300, bins)
    np.testing.assert_allclose(ours[:-2], theirs[:298], atol=2e-5)


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
def test_waveform_encoder_is_the_stock_model_with_attention_mask(family):
    stock = tiny_network(family)
    encoder = Wav2Vec2Encoder(tiny_network(family), True, "average", MASKING).eval()
    utterances = waveforms()
    preprocessor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    inputs = preprocessor([w.numpy() for w in utterances], sampling_rate=16000, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = stock(inputs.input_values, attention_mask=inputs.attention_mask).last_hidden_state
        ours, lengths = encoder.encode_20ms(*padded(encoder, utterances))
    for b, length in enumerate(lengths):
        torch.testing.assert_close(ours[b, :length], theirs[b, :length], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "norm"), BUNDLES)
def test_bundle_is_torchaudios_own_model(bundle, kind, norm):
    name, network = bundle(kind, norm)
    encoder = build_teacher_encoder(TeacherConfig(encoder=name)).eval()
    for waveform in waveforms():
        features, length = padded(encoder, [waveform])
        stock_input = nn.functional.layer_norm(waveform, waveform.shape) if norm == "layer_norm" else waveform
        with torch.no_grad():
            ours, _ = encoder.encode_20ms(features, length)
            theirs, _ = network(stock_input[None])
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


# -------------------------------------------------------------------------------------------------------------- frames
def student_frames(samples):
    """Log-mel at 10 ms without edge snipping, then two halvings that round up."""
    return ((samples + 80) // 160 + 3) // 4


RANDOM = TeacherConfig(encoder="random", random=RandomEncoderConfig(dim=16, layers=1, heads=1, ffn_dim=16, conv_dim=2))


@pytest.fixture(scope="module")
def smallest() -> tuple[PretrainedEncoder, PretrainedEncoder]:
    """A Whisper encoder that reaches 20 s and a wav2vec 2.0 encoder."""
    sizes = WHISPER_SIZES | {"d_model": 8, "encoder_layers": 1, "max_source_positions": 1000}
    network = transformers.models.whisper.modeling_whisper.WhisperEncoder(transformers.WhisperConfig(**sizes))
    return WhisperEncoder(network, "average", MASKING).eval(), build_teacher_encoder(RANDOM).eval()


@settings(deadline=None, max_examples=15)
@given(samples=st.integers(4800, 320000))
def test_teacher_and_student_frames_agree_within_one(smallest, samples):
    waveform = torch.zeros(samples)
    expected = (samples // 160 + 1) // 2, (samples - 400) // 320 + 1
    for encoder, frames_20ms in zip(smallest, expected, strict=True):
        features, length = padded(encoder, [waveform])
        with torch.no_grad():
            enc, frames = encoder(features, length)
        assert frames.tolist() == [enc.shape[1]] == [frames_20ms // 2]
        assert abs(int(frames) - student_frames(samples)) <= 1


def test_frame_formulas_agree_within_one_for_every_length():
    """The same, for each number of samples from 0.3 to 20 s, by the formulas that the test above holds true."""
    samples = np.arange(4800, 320001)
    student = student_frames(samples)
    whisper = (samples // 160 + 1) // 2 // 2
    wav2vec2 = ((samples - 400) // 320 + 1) // 2
    assert set(np.unique(whisper - student)) <= {-1, 0}
    assert set(np.unique(wav2vec2 - student)) <= {-1, 0}


# --------------------------------------------------------------------------------------------------- training behaviour
@pytest.mark.parametrize("kind", ["whisper", "wav2vec2"])
def test_training_masks_by_the_seed_and_evaluation_does_not(kind):
    none = MaskingConfig(time_masks=0, channel_masks=0)
    outputs = {}
    for name, masking in (("masked", MASKING), ("plain", none)):
        if kind == "whisper":
            encoder = WhisperEncoder(tiny_whisper(), "average", masking)
        else:
            network = tiny_network("wav2vec2")
            network.config.layerdrop = 0.0
            encoder = Wav2Vec2Encoder(network, True, "average", masking)
        for module in encoder.modules():  # dropout off: only the masks may differ
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for attribute in ("dropout", "activation_dropout"):
                if isinstance(getattr(module, attribute, None), float):
                    setattr(module, attribute, 0.0)
        features, lengths = padded(encoder, waveforms())
        for mode in (True, False):
            encoder.train(mode)
            torch.manual_seed(0)
            outputs[name, mode] = encoder(features, lengths)[0].detach()
            torch.manual_seed(0)
            assert torch.equal(encoder(features, lengths)[0], outputs[name, mode])
    torch.testing.assert_close(outputs["plain", True], outputs["plain", False], atol=1e-5, rtol=1e-4)
    assert torch.equal(outputs["masked", False], outputs["plain", False])
    assert not torch.allclose(outputs["masked", True], outputs["masked", False], atol=1e-3)


def test_parameters_divide_and_every_one_gets_a_gradient(source):
    encoder = build_teacher_encoder(TeacherConfig(encoder=source, pooling="concat")).train()
    everything = {id(p) for p in encoder.parameters()}
    pretrained = {id(p) for p in encoder.pretrained_parameters()}
    extractor = {id(p) for p in encoder.extractor_parameters()}
    assert extractor < pretrained < everything
    assert everything - pretrained == {id(p) for p in encoder.pooling.parameters()}

    features, lengths = padded(encoder, waveforms())
    encoder(features, lengths)[0].square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []

    encoder.zero_grad()
    for p in encoder.extractor_parameters():
        p.requires_grad_(False)
    encoder(features, lengths)[0].square().sum().backward()
    assert {id(p) for p in encoder.parameters() if p.grad is not None} == everything - extractor


def test_gradient_checkpointing_gives_the_same_gradients(source):
    encoders = [build_teacher_encoder(TeacherConfig(encoder=source, gradient_checkpointing=on)) for on in (True, False)]
    features, lengths = padded(encoders[0], waveforms())
    for frozen in (True, False):
        gradients = []
        for encoder in encoders:
            encoder.train().zero_grad()
            for p in encoder.extractor_parameters():
                p.requires_grad_(not frozen)
            torch.manual_seed(0)
            encoder(features, lengths)[0].square().sum().backward()
            gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_concat_pooling_starts_as_the_average():
    features = torch.randn(2, 200, 80)
    lengths = torch.tensor([200, 151])
    with torch.no_grad():
        average, concat = (
            WhisperEncoder(tiny_whisper(), kind, MASKING).eval()(features, lengths) for kind in ("average", "concat")
        )
    assert average[1].tolist() == concat[1].tolist() == [50, 38]
    torch.testing.assert_close(average[0], concat[0])


# ------------------------------------------------------------------------------------------------- loading and refusals
@pytest.mark.parametrize("whole", [True, False])
def test_whisper_loads_with_or_without_its_decoder_and_in_fp32(whole, tmp_path):
    torch.manual_seed(1)
    config = transformers.WhisperConfig(**WHISPER_SIZES)
    model = transformers.WhisperForConditionalGeneration(config).half()
    (model if whole else model.model.encoder).save_pretrained(tmp_path)
    encoder = build_teacher_encoder(TeacherConfig(encoder=str(tmp_path)))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    torch.testing.assert_close(encoder.network.conv1.weight, model.model.encoder.conv1.weight.float())


@pytest.mark.parametrize(("family", "norm", "preprocessor", "expected"), NORMALISED)
def test_folder_says_whether_waveforms_are_normalised(family, norm, preprocessor, expected, tmp_path):
    network = tiny_network(family, norm)
    network.save_pretrained(tmp_path)
    if preprocessor is not None:
        transformers.Wav2Vec2FeatureExtractor(do_normalize=preprocessor).save_pretrained(tmp_path)
    encoder = build_teacher_encoder(TeacherConfig(encoder=str(tmp_path)))
    features = encoder.extract(3 + waveforms()[0])
    assert features.shape == (16000, 1)
    assert (features.mean().abs() < 1e-3) == expected
    for ours, theirs in zip(encoder.transformer.parameters(), network.encoder.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert encoder.transformer.config.layerdrop == 0


@pytest.mark.parametrize("family", ["whisper", "wav2vec2", "hubert", "wavlm"])
def test_a_trained_encoder_needs_no_folder(family, folders, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(folders[family], folder)
    config = TeacherConfig(encoder=str(folder), pooling="concat")
    trained = build_teacher_encoder(config).eval()
    torch.save(read_architecture(config.encoder), tmp_path / "architecture.pt")
    shutil.rmtree(folder)
    again = build_teacher_encoder(config, torch.load(tmp_path / "architecture.pt", weights_only=True)).eval()
    again.load_state_dict(trained.state_dict())
    features, lengths = padded(again, waveforms())
    torch.testing.assert_close(features, padded(trained, waveforms())[0])
    with torch.no_grad():
        for ours, theirs in zip(again(features, lengths), trained(features, lengths), strict=True):
            assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="is no folder"):
        build_teacher_encoder(config)


def test_the_default_teacher_loads_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = build_teacher_encoder(TeacherConfig()).eval()
    assert encoder.dim == 384
    features, lengths = padded(encoder, waveforms([32000, 24000]))
    with torch.no_grad():
        enc, frames = encoder(features, lengths)
    assert enc.shape == (2, 50, 384)
    assert frames.tolist() == [50, 37]
    assert enc.isfinite().all()


def test_a_lacking_weight_is_refused(tmp_path):
    network = tiny_network("wav2vec2")
    kept = {name: p for name, p in network.state_dict().items() if "encoder.layers.1." not in name}
    network.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(ValueError, match=r"lacks 16 weights of Wav2Vec2Model, such as 'encoder.layers.1"):
        build_teacher_encoder(TeacherConfig(encoder=str(tmp_path)))


def test_names_that_cannot_be_loaded_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"'no-such/encoder' is no folder .* as a hub name it could not be loaded .*hf download"
    ):
        build_teacher_encoder(TeacherConfig(encoder="no-such/encoder"))
    with pytest.raises(ValueError, match="holds no model that transformers can read"):
        build_teacher_encoder(TeacherConfig(encoder=str(tmp_path)))
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'bert' model; known are whisper, wav2vec2"):
        build_teacher_encoder(TeacherConfig(encoder=str(tmp_path)))
    with pytest.raises(ValueError, match=r"no bundle 'NONE'; it has HUBERT_ASR_LARGE.*WAV2VEC2_LARGE_LV60K"):
        build_teacher_encoder(TeacherConfig(encoder="torchaudio:NONE"))


def test_a_bundle_that_cannot_be_fetched_is_refused(bundle, tmp_path, monkeypatch):
    name, _ = bundle("Wav2Vec2", "layer_norm")
    (tmp_path / "hub/checkpoints/tiny.pth").unlink()

    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(ValueError, match=r"weights of bundle WAV2VEC2_TINY are not in .*no network.*tiny\.pth"):
        build_teacher_encoder(TeacherConfig(encoder=name))


def test_audio_of_a_wrong_length_is_refused():
    whisper = WhisperEncoder(tiny_whisper(), "average", MASKING)
    with pytest.raises(ValueError, match=r"2\.00 s of audio, but this Whisper encoder reaches 2 s"):
        whisper.extract(torch.zeros(32001))
    assert whisper.extract(torch.zeros(32000)).shape == (200, 80)
    for encoder in (whisper, Wav2Vec2Encoder(random_network(RandomEncoderConfig()), True, "average", MASKING)):
        with pytest.raises(ValueError, match=r"at least 800 samples"):
            encoder.extract(torch.zeros(799))
        assert encoder(*padded(encoder, [torch.zeros(800)]))[1].tolist() == [1]
