"""Stage transcribe: a trained model and audio files -> text; a streaming model reads them as they would arrive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lhotse import MonoCut
    from torch import Tensor

    from kdtrans.config import SearchConfig
    from kdtrans.data.tokenizer import Tokenizer
    from kdtrans.models.lm import LanguageModel
    from kdtrans.models.transducer import Transducer
    from kdtrans.search.streaming import StreamingSearch

PIECE_MS = 10  # a streaming model is fed the audio in such pieces, as a microphone would


def main(
    model: Path,
    tokenizer: Path,
    audio: list[Path],
    chunk_ms: int | None = None,
    beam: int | None = None,
    lm: Path | None = None,
    lm_weight: float | None = None,
) -> None:
    """Print `FILE<TAB>text` for each audio file, by greedy search or, with --beam, by beam search.

    A streaming model decodes the audio as it would arrive: each chunk's best text so far goes to stderr, with the
    seconds of audio read by then; at the end stderr has the algorithmic latency and the time that computing a chunk
    takes.

    Args:
        model: model.pt of a teacher or student.
        tokenizer: sentencepiece model.
        audio: audio files of one channel; any format of libsndfile, resampled to 16 kHz.
        chunk_ms: chunk of a streaming model, a multiple of 40; its own if left out.
        beam: hypotheses kept; greedy search if left out.
        lm: token ARPA file for shallow fusion, as the workflow's lm/lm.arpa; needs a beam.
        lm_weight: its weight.
    """
    from kdtrans.config import SearchConfig
    from kdtrans.data.batches import load_waveform
    from kdtrans.data.tokenizer import Tokenizer
    from kdtrans.models.conformer import ConformerEncoder, algorithmic_latency_ms
    from kdtrans.models.lm import load_lm
    from kdtrans.search.streaming import start_stream
    from kdtrans.training.checkpoint import ready_model

    if (lm is None) != (lm_weight is None) or (lm is not None and beam is None):
        raise ValueError("a language model needs all of --lm, --lm-weight and --beam: give them, or leave it out")
    settings = {"type": "beam", "beam": beam, "lm": "ngram" if lm else None} if beam is not None else {}
    config = SearchConfig.model_validate(settings)
    pieces = Tokenizer(tokenizer)
    system, device = ready_model(model, pieces)
    fusion = (load_lm("ngram", lm, pieces).to(device), lm_weight or 0.0) if lm else (None, 0.0)
    if chunk_ms is not None:
        if not isinstance(system.encoder, ConformerEncoder) or system.encoder.streaming is None:
            raise ValueError(f"{model} is no streaming model, it has no chunks: leave out --chunk-ms")
        system.encoder.chunk_ms = chunk_ms
    latency_ms = algorithmic_latency_ms(system.encoder)
    cuts = [open_mono(path) for path in audio]  # all of them before any is decoded: errors come early
    compute_ms: list[float] = []
    if latency_ms is not None:
        warm_up(start_stream(system, config, *fusion), latency_ms)
    for path, cut in zip(audio, cuts, strict=True):
        waveform_S = load_waveform(cut)
        try:
            if latency_ms is None:
                tokens = decode_whole(system, waveform_S, config, *fusion)
            else:
                tokens = decode_stream(start_stream(system, config, *fusion), waveform_S, pieces, compute_ms)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        print(f"{path}\t{pieces.decode(tokens)}", flush=True)
    if latency_ms is not None:
        print_speed(latency_ms, compute_ms)


def open_mono(path: Path) -> MonoCut:
    """An audio file as a cut at 16 kHz; raises ValueError naming one that is unreadable, empty or not mono."""
    from kdtrans.data.corpora.audio import open_cut
    from kdtrans.data.corpora.utterance import Utterance

    cut = open_cut(Utterance(id=path.name, audio=path, speaker="", text=None))
    assert cut.recording is not None
    if cut.recording.num_channels > 1:
        raise ValueError(f"{path} has {cut.recording.num_channels} channels, transcribe reads one: mix or split them")
    return cut


def decode_whole(
    model: Transducer, waveform_S: Tensor, config: SearchConfig, lm: LanguageModel | None, lm_weight: float
) -> list[int]:
    """Tokens of a waveform that is seen at once."""
    import torch

    from kdtrans.search.search import search

    device = next(model.parameters()).device
    features_FC = model.encoder.extract(waveform_S)
    with torch.inference_mode():
        enc_BTE, lengths_B = model.encode(features_FC[None].to(device), torch.tensor([len(features_FC)], device=device))
    return search(model, enc_BTE, lengths_B, config, lm, lm_weight)[0][0].tokens


def decode_stream(
    stream: StreamingSearch, waveform_S: Tensor, tokenizer: Tokenizer, compute_ms: list[float]
) -> list[int]:
    """Tokens of a waveform that arrives in pieces; prints the text so far and appends each chunk's compute time."""
    import sys
    import time

    from kdtrans.contracts import SAMPLE_RATE

    samples = 0
    for piece_S in [*waveform_S.split(SAMPLE_RATE * PIECE_MS // 1000), None]:
        started = time.perf_counter()
        chunks = stream.finish() if piece_S is None else stream.feed(piece_S)
        elapsed_ms = 1000 * (time.perf_counter() - started)
        samples += 0 if piece_S is None else len(piece_S)
        if chunks:
            compute_ms += [elapsed_ms / chunks] * chunks
            text = tokenizer.decode(stream.hypothesis.tokens)
            print(f"{samples / SAMPLE_RATE:8.2f} s  {text}", file=sys.stderr, flush=True)
    return stream.hypothesis.tokens


def warm_up(stream: StreamingSearch, latency_ms: float) -> None:
    """Decode a chunk of silence: what is set up at the first use is no part of a chunk's compute time."""
    import torch

    from kdtrans.contracts import SAMPLE_RATE

    stream.feed(torch.zeros(int(SAMPLE_RATE * latency_ms / 1000)))


def print_speed(latency_ms: float, compute_ms: list[float]) -> None:
    """Print on stderr how long text has to wait: for the audio that it needs, and for the computer."""
    import sys

    import numpy as np

    print(
        f"algorithmic latency {latency_ms:g} ms; compute per chunk: mean {np.mean(compute_ms):.1f} ms, "
        f"p90 {np.percentile(compute_ms, 90):.1f} ms ({len(compute_ms)} chunks)",
        file=sys.stderr,
    )
