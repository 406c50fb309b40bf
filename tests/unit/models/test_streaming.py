"""The streaming encoder chunk by chunk against its pass over the whole utterance; causality; limits; refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdtrans.config import ConformerConfig, MaskingConfig, StreamingConfig
from kdtrans.models import conformer
from kdtrans.models.conformer import ConformerEncoder, algorithmic_latency_ms, chunk_mask
from kdtrans.models.features import log_mel
from kdtrans.models.streaming import FeatureStream, StreamingEncoder
from kdtrans.models.transducer import Encoder

STREAMING = StreamingConfig(chunk_ms=320, train_chunks_ms=[80, 200, 320], left_context_ms=240, tail_ms=320)
CHUNKS_MS = (40, 120, 320, 1280)


def make(layers: int = 2, kernel: int = 5, streaming: StreamingConfig | None = STREAMING) -> ConformerEncoder:
    torch.manual_seed(0)
    config = ConformerConfig(
        dim=16, layers=layers, heads=2, ffn_dim=32, conv_kernel=kernel, subsampling_channels=4, streaming=streaming
    )
    return ConformerEncoder(config, MaskingConfig()).eval()


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def whole(encoder: ConformerEncoder, waveform: Tensor) -> Tensor:
    features = encoder.extract(waveform)
    return encoder(features[None], torch.tensor([len(features)]))[0][0]


def streamed(encoder: ConformerEncoder, pieces: list[Tensor]) -> Tensor:
    stream = StreamingEncoder(encoder)
    chunks = [chunk for piece in pieces for chunk in stream.feed(piece)] + stream.finish()
    frames = (encoder.chunk_ms or 0) // 40
    assert all(chunk.shape[:2] == (1, frames) for chunk in chunks[:-1])
    assert 1 <= chunks[-1].shape[1] <= frames
    return torch.cat(chunks, 1)[0]


def cut_up(waveform: Tensor, sizes: list[int]) -> list[Tensor]:
    """Pieces of these sizes, again and again."""
    pieces, start = [], 0
    while start < len(waveform):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(waveform[start : start + size])
        start += size
    return pieces


# ------------------------------------------------------------------------------------- incremental equals whole
@pytest.mark.parametrize("kernel", [1, 5])
@pytest.mark.parametrize("chunk_ms", CHUNKS_MS)
def test_chunks_equal_the_masked_pass_on_the_same_weights(chunk_ms: int, kernel: int) -> None:
    encoder = make(kernel=kernel)
    encoder.chunk_ms = chunk_ms
    # Under a chunk, both sides of a chunk's end and of its last feature's, and many chunks.
    for samples in (160, 399, 5119, 5200, 5239, 5240, 30803):
        waveform = noise(samples)
        expected = whole(encoder, waveform)
        for sizes in ([samples], [16, 7000, 0, 333]):
            found = streamed(encoder, cut_up(waveform, sizes))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_samples_may_come_one_at_a_time() -> None:
    encoder, waveform = make(), noise(6000)
    found = streamed(encoder, list(waveform.split(1)))
    torch.testing.assert_close(found, whole(encoder, waveform), rtol=0, atol=1e-4)


@given(
    samples=st.integers(160, 4000),
    take=st.integers(1, 20),
    sizes=st.lists(st.integers(1, 1500), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=40)
def test_features_of_pieces_are_those_of_the_whole(samples: int, take: int, sizes: list[int]) -> None:
    waveform = noise(samples)
    stream = FeatureStream(lambda samples: log_mel(samples, 80))
    found = []
    for piece in cut_up(waveform, sizes):
        stream.feed(piece)
        while (features := stream.take(take)) is not None:
            found.append(features)
    rest = stream.finish()
    assert 1 <= len(rest) <= take + 1
    torch.testing.assert_close(torch.cat([*found, rest]), log_mel(waveform, 80), rtol=0, atol=1e-4)


def test_a_state_does_not_grow_with_the_utterance() -> None:
    encoder = make()
    state = encoder.start()
    for chunk in range(8):
        encoder.step(torch.randn(1, 32, 80), state)
        if chunk:
            assert [block.key.shape[2] for block in state.blocks] == [6, 6]
            assert [block.value.shape[2] for block in state.blocks] == [6, 6]
            assert [block.convolved.shape[2] for block in state.blocks] == [4, 4]


# ------------------------------------------------------------------------------------------- the tail
@pytest.mark.parametrize("tail_ms", [0, 40, 1000])
def test_a_tail_is_silence_behind_the_audio(tail_ms: int) -> None:
    encoder, waveform = make(streaming=STREAMING.model_copy(update={"tail_ms": tail_ms})), noise(16 * 333)
    silence = torch.zeros(16 * tail_ms)
    torch.testing.assert_close(encoder.extract(waveform), log_mel(torch.cat([waveform, silence]), 80))
    assert encoder.tail_frames == tail_ms // 40
    assert len(whole(encoder, waveform)) == 9 + tail_ms // 40
    found = streamed(encoder, cut_up(waveform, [777]))
    torch.testing.assert_close(found, whole(encoder, waveform), rtol=0, atol=1e-4)


def test_a_tail_makes_no_audio_of_too_little() -> None:
    encoder = make()
    with pytest.raises(ValueError, match="159 samples of audio"):
        encoder.extract(noise(159))
    stream = StreamingEncoder(encoder)
    with pytest.raises(ValueError, match="0 samples of audio"):
        stream.finish()


def test_only_streaming_encoders_have_a_tail() -> None:
    assert make(streaming=None).tail_frames == 0


# ------------------------------------------------------------------------------------------- what a frame sees
def test_the_mask_is_the_definition() -> None:
    for frames, chunk, left in ((1, 4, 1), (13, 4, 1), (13, 4, 6), (9, 1, 2), (9, 20, 3), (12, 3, 40)):
        found = chunk_mask(frames, chunk, left, torch.device("cpu"))
        for t in range(frames):
            start = chunk * (t // chunk)
            seen = [k for k in range(frames) if start - left <= k < start + chunk]
            assert found[t].nonzero().flatten().tolist() == seen


@pytest.mark.parametrize("chunk_ms", [40, 320, 640])
def test_a_chunk_sees_75_tenths_ms_beyond_its_end_and_no_more(chunk_ms: int) -> None:
    encoder = make()
    encoder.chunk_ms = chunk_ms
    latency_ms = algorithmic_latency_ms(encoder)
    assert latency_ms == chunk_ms + 7.5
    frames, end = chunk_ms // 40, int(16 * latency_ms)
    waveform = noise(24000)
    first = whole(encoder, waveform)[:frames]
    for changed, same in ((end, True), (end - 1, False)):
        other = waveform.clone()
        other[changed:] = noise(24000, seed=1)[changed:] + 0.5
        assert torch.equal(whole(encoder, other)[:frames], first) is same
    stream = StreamingEncoder(encoder)
    assert stream.feed(waveform[: end - 1]) == []
    assert len(stream.feed(waveform[end - 1 : end])) == 1
    # The second chunk comes a chunk later.
    assert stream.feed(waveform[end : end + 16 * chunk_ms - 1]) == []
    assert len(stream.feed(waveform[end + 16 * chunk_ms - 1 : end + 16 * chunk_ms])) == 1


def test_no_frame_sees_features_after_its_chunk_or_before_its_left_context() -> None:
    kernel, chunk, left = 3, 8, 6
    encoder = make(layers=1, kernel=kernel)
    features = torch.randn(1, 160, 80, requires_grad=True)
    output, _ = encoder(features, torch.tensor([160]))
    for t in (0, 7, 8, 17, 18, 23, 39):
        (gradient,) = torch.autograd.grad(output[0, t, 0], features, retain_graph=True)
        seen = gradient[0].abs().sum(1).nonzero().flatten().tolist()
        # The convolution sees kernel - 1 frames before t, each of which attended within its own chunk.
        oldest = max(0, (t - kernel + 1) // chunk * chunk - left)
        assert seen == list(range(max(0, 4 * oldest - 3), 4 * (t // chunk + 1) * chunk))


@pytest.mark.parametrize("chunk_ms", CHUNKS_MS)
def test_padding_never_changes_a_result(chunk_ms: int) -> None:
    encoder = make()
    encoder.chunk_ms = chunk_ms
    lengths = torch.tensor([161, 90, 9, 1])
    features = torch.randn(4, 161, 80)
    for b, length in enumerate(lengths):
        features[b, length:] = 100.0
    together, frames = encoder(features, lengths)
    for b, length in enumerate(lengths):
        alone, _ = encoder(features[b : b + 1, :length], lengths[b : b + 1])
        torch.testing.assert_close(together[b, : frames[b]], alone[0], rtol=1e-4, atol=1e-5)
        assert not together[b, frames[b] :].any()
    together.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


# --------------------------------------------------------------------------------------------- dynamic chunk training
@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Chunk sizes of the forward passes, frames."""
    sizes: list[int] = []

    def spy(frames: int, chunk: int, left: int, device: torch.device) -> Tensor:
        sizes.append(chunk)
        return chunk_mask(frames, chunk, left, device)

    monkeypatch.setattr(conformer, "chunk_mask", spy)
    return sizes


def test_training_draws_every_size_and_a_seed_repeats_it(drawn: list[int]) -> None:
    encoder = make().train()
    features, lengths = torch.randn(1, 40, 80), torch.tensor([40])
    torch.manual_seed(3)
    outputs = [encoder(features, lengths)[0] for _ in range(30)]
    assert set(drawn) == {2, 5, 8}
    assert len(drawn) == 30  # one mask a forward, not one a block
    torch.manual_seed(3)
    assert all(torch.equal(encoder(features, lengths)[0], output) for output in outputs)
    assert drawn[30:] == drawn[:30]


def test_evaluation_uses_chunk_ms_and_draws_nothing(drawn: list[int]) -> None:
    encoder = make()
    random = torch.get_rng_state()
    encoder(torch.randn(1, 40, 80, generator=torch.Generator()), torch.tensor([40]))
    encoder.chunk_ms = 120
    encoder(torch.randn(1, 40, 80, generator=torch.Generator()), torch.tensor([40]))
    assert drawn == [8, 3]
    assert torch.equal(torch.get_rng_state(), random)


def test_streaming_changes_no_parameter_and_null_means_the_whole_utterance(drawn: list[int]) -> None:
    streaming, full = make(), make(streaming=None)
    shapes = {name: value.shape for name, value in full.state_dict().items()}
    assert {name: value.shape for name, value in streaming.state_dict().items()} == shapes
    assert full.chunk_ms is None
    assert algorithmic_latency_ms(full) is None
    assert algorithmic_latency_ms(Encoder()) is None
    whole(full, noise(8000))
    assert drawn == []


# ----------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("chunk_ms", [0, -40, 50, 1])
def test_a_chunk_that_is_no_multiple_of_a_frame_is_refused(chunk_ms: int) -> None:
    encoder = make()
    with pytest.raises(ValueError, match=f"chunk_ms {chunk_ms} must be a positive multiple"):
        encoder.chunk_ms = chunk_ms
    assert encoder.chunk_ms == 320


def test_what_cannot_stream_is_refused() -> None:
    full = make(streaming=None)
    with pytest.raises(ValueError, match="chunk_ms 320 was set, but this encoder sees the whole utterance"):
        full.chunk_ms = 320
    with pytest.raises(ValueError, match="cannot run chunk by chunk"):
        StreamingEncoder(full)
    with pytest.raises(ValueError, match="call eval"):
        StreamingEncoder(make().train())
    stream = StreamingEncoder(make())
    with pytest.raises(ValueError, match=r"shape \(1, 400\)"):
        stream.feed(noise(400)[None])
    stream.feed(noise(400))
    stream.finish()
    with pytest.raises(ValueError, match="after the end"):
        stream.feed(noise(400))


@pytest.mark.parametrize("samples", [0, 159])
def test_under_10_ms_is_refused_as_for_the_whole_waveform(samples: int) -> None:
    stream = StreamingEncoder(make())
    stream.feed(noise(samples))
    with pytest.raises(ValueError, match=f"{samples} samples of audio"):
        stream.finish()
