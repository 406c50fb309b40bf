"""What `kdtrans bench decode` decodes: a results folder's test set, or a network as sure of itself as a trained one.

Shapes: B utterances, T encoder frames, E encoder width, J joiner width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch
from lhotse import MonoCut
from torch import Tensor

from kdtrans.config import ConformerConfig, PredictorConfig, StudentConfig
from kdtrans.contracts import BLANK, FRAME_SHIFT_MS
from kdtrans.data.batches import inference_batches, load_waveform
from kdtrans.data.manifest import read_cuts, text_of
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.models.build import build_student
from kdtrans.models.conformer import MEL_CHANNELS, ConformerEncoder
from kdtrans.models.ngram import Ngram
from kdtrans.models.ngram_estimate import estimate, write_arpa
from kdtrans.models.predictor import StatelessPredictor
from kdtrans.models.transducer import Transducer
from kdtrans.search.batches import gathered
from kdtrans.training.checkpoint import load_model

FRAME_S = FRAME_SHIFT_MS / 1000
V, J = 256, 256
LABEL_FRAMES = 8  # on average from one label to the next: three labels a second


@dataclass(frozen=True)
class Material:
    """Encoder output of a test set, in one batch, and what decodes it."""

    name: str
    model: Transducer
    lm: Ngram | None
    enc_BTE: Tensor
    lengths_B: Tensor
    references: list[str]
    text: Callable[[list[int]], str]  # of tokens
    seconds: float  # of audio
    encode: Callable[[], object]  # what the encoder does for it
    encoder_name: str
    streaming: Transducer | None = None
    streaming_name: str = ""
    waveforms: list[Tensor] = field(default_factory=list)


def synthetic(folder: Path, utterances: int) -> Material:
    """A network set by hand, utterances that it understands, and an n-gram of what they say.

    Its encoder is a random one, whose output is not used: only its time is.
    """
    generator = torch.Generator().manual_seed(0)
    model, signs_VJ = network(V, generator)
    lengths_B = torch.randint(50, 200, (utterances,), generator=generator).sort(descending=True).values
    enc_BTE, said = speech(signs_VJ, lengths_B, LABEL_FRAMES, generator)
    pieces = ["<blank>", "<unk>", *(f"w{i}" for i in range(2, V))]
    write_arpa(estimate([[pieces[token] for token in tokens] for tokens in said], 3), folder / "lm.arpa")
    lm = Ngram(folder / "lm.arpa", SimpleNamespace(pieces=pieces))

    def text(tokens: list[int]) -> str:
        return " ".join(pieces[token] for token in tokens)

    features_BFC = torch.randn(utterances, 4 * int(lengths_B[0]), MEL_CHANNELS)

    @torch.inference_mode()
    def encode() -> list[Tensor]:
        return [
            model.encode(features_BFC[rows, : 4 * int(lengths_B[rows[0]])], 4 * lengths_B[rows])[0]
            for rows in torch.arange(utterances).split(20)
        ]

    seconds = float(lengths_B.sum()) * FRAME_S
    references = [text(tokens) for tokens in said]
    return Material("set by hand", model, lm, enc_BTE, lengths_B, references, text, seconds, encode, "random, on noise")


def network(vocab_size: int, generator: torch.Generator) -> tuple[Transducer, Tensor]:
    """A transducer whose weights are set by hand, so that it emits what a frame says, with some doubt.

    A frame holds a label's signs, which the output weights know; the predictor takes the last label away, so that it is
    emitted once. Encoder and joiner are J wide.

    Returns:
        The network in eval mode, and the labels' signs (V, J).
    """
    torch.manual_seed(0)
    config = StudentConfig(
        encoder=ConformerConfig(dim=J, layers=3, heads=4, ffn_dim=384, conv_kernel=15, subsampling_channels=16),
        predictor=PredictorConfig(type="stateless", dim=vocab_size, context=2),
        joiner_dim=J,
    )
    model = build_student(config, vocab_size).eval()
    signs_VJ = torch.randn(vocab_size, J, generator=generator).sign()
    assert isinstance(model.predictor, StatelessPredictor)
    with torch.no_grad():
        model.predictor.embedding.weight.copy_(torch.eye(vocab_size))
        model.predictor.conv.weight.copy_(torch.tensor([0.0, 1.0]).expand(vocab_size, 1, 2))  # the last label alone
        assert model.predictor.conv.bias is not None
        model.predictor.conv.bias.zero_()
        taken_JV = -signs_VJ.T.clone()
        taken_JV[:, BLANK] = 0.0
        model.joiner.predictor_projection.weight.copy_(taken_JV)
        model.joiner.encoder_projection.weight.copy_(torch.eye(J))
        model.joiner.encoder_projection.bias.zero_()
        model.joiner.output.weight.copy_(signs_VJ * 40.0 / J)
        model.joiner.output.bias.zero_()
        model.joiner.output.bias[BLANK] = 11.0
    return model, signs_VJ


def speech(
    signs_VJ: Tensor, lengths_B: Tensor, label_frames: float, generator: torch.Generator
) -> tuple[Tensor, list[list[int]]]:
    """Encoder output (B, T, J) that such a network understands, a label every `label_frames` frames, and the labels."""
    vocab_size, said = len(signs_VJ), list[list[int]]()
    enc_BTJ = 0.6 * torch.randn(len(lengths_B), int(lengths_B.max()), J, generator=generator)
    for b, frames in enumerate(lengths_B.tolist()):
        said.append([])
        for t in range(2, frames - 2):
            if torch.rand((), generator=generator) < 1 / label_frames:
                # Some labels often follow others, so that an n-gram has something to say.
                last = said[b][-1] if said[b] else 0
                token = 2 + (7 * last + int(torch.randint(20, (), generator=generator))) % (vocab_size - 2)
                if token != last:
                    said[b].append(token)
                    enc_BTJ[b, t] += signs_VJ[token]
    return enc_BTJ, said


def from_results(results: Path, testset: str = "test") -> Material:
    """The first student of a results folder that does not stream, and the first that does, on its test set.

    Raises:
        ValueError: when there is no trained student that does not stream.
    """
    tokenizer = Tokenizer(results / "tokenizer" / "tokenizer.model")
    paths = {path.parent.name: path for path in sorted((results / "systems").glob("*/model.pt"))}
    models = {name: load_model(path, tokenizer).eval() for name, path in paths.items()}
    streams = {name: _streams(model) for name, model in models.items()}
    name = next((name for name in models if not streams[name]), None)
    if name is None:
        raise ValueError(f"{results}/systems: no trained student that does not stream; there are: {', '.join(paths)}")
    streaming = next((name for name in models if streams[name]), None)
    model, arpa = models[name], results / "lm" / "lm.arpa"
    cuts = [cut for cut in read_cuts([results / "data" / testset / "cuts.00000.jsonl.gz"]) if text_of(cut)]
    batches = list(inference_batches(cuts, model.encoder.extract, 120.0))

    @torch.inference_mode()
    def encode_batches() -> list[tuple[list[MonoCut], Tensor, Tensor]]:
        return [(some, *model.encode(features_BFC, lengths_B)) for some, features_BFC, lengths_B in batches]

    ((found, enc_BTE, lengths_B),) = gathered(encode_batches(), max_frames=2**62)
    return Material(
        name=f"{name} of {results}",
        model=model,
        lm=Ngram(arpa, tokenizer) if arpa.is_file() else None,
        enc_BTE=enc_BTE,
        lengths_B=lengths_B,
        references=[text_of(cut) or "" for cut in found],
        text=tokenizer.decode,
        seconds=sum(cut.duration for cut in cuts),
        encode=encode_batches,
        encoder_name="its own; features are given",
        streaming=models[streaming] if streaming else None,
        streaming_name=streaming or "",
        waveforms=[load_waveform(cut) for cut in cuts[:10]] if streaming else [],
    )


def _streams(model: Transducer) -> bool:
    return isinstance(model.encoder, ConformerEncoder) and model.encoder.streaming is not None
