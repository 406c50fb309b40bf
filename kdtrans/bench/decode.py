"""Decoding: our searches beside each other and beside torchaudio's, and what streaming costs: `kdtrans bench decode`.

CPU time of one thread, taking turns, so that other programs on the machine count little. All searches are given the
same encoder output. torchaudio's takes one utterance at a time and has no language model; it is given some of the
utterances, and its time is scaled by their audio.

Shapes: B utterances, F feature frames, C channels, T encoder frames, J joiner width, V vocabulary.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdtrans.bench.measure import cpu_seconds
from kdtrans.bench.peaky import Material, from_results, synthetic
from kdtrans.bench.table import Bench, Conditions, Measurement
from kdtrans.config import ConformerConfig, PredictorConfig, SearchConfig, StreamingConfig, StudentConfig
from kdtrans.contracts import SAMPLE_RATE
from kdtrans.models.build import build_student
from kdtrans.models.conformer import MEL_CHANNELS, ConformerEncoder, algorithmic_latency_ms
from kdtrans.models.transducer import Transducer
from kdtrans.scoring.wer import word_error_rate
from kdtrans.search.beam import beam
from kdtrans.search.greedy import greedy
from kdtrans.search.streaming import start_stream

SEARCH = SearchConfig(type="beam")  # with its defaults
BEAM, MAX_SYMBOLS, THRESHOLD = SEARCH.beam, SEARCH.max_symbols, SEARCH.threshold or math.inf
LM_WEIGHT, REPEATS = 0.2, 5
LIMITS = {
    "beam_vs_torchaudio_speed": ">= 5, search alone",
    "beam_vs_greedy_time": "<= 2.5, encoder included",
    "beam_vs_greedy_search_time": "search alone",
    "greedy_x_realtime": "encoder included",
}
SIZES = {  # sizes of workflow/configs/student-10m.yaml and student-30m.yaml, and one below
    "2 M": ({"dim": 144, "layers": 5, "heads": 4, "ffn_dim": 432, "subsampling_channels": 16}, 144),
    "10 M": ({"dim": 256, "layers": 8, "heads": 4, "ffn_dim": 640, "subsampling_channels": 64}, 256),
    "30 M": ({"dim": 384, "layers": 10, "heads": 6, "ffn_dim": 1024, "subsampling_channels": 96}, 512),
}


def bench_decode(quick: bool, results: Path | None) -> Bench:
    """Run all parts.

    Args:
        quick: end within a minute on two idle cores.
        results: a results folder whose test set, students and n-gram are measured; None: a network that is made for it.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        material = synthetic(Path(folder), 40 if quick else 120) if results is None else from_results(results)
    rows, ratios = measure_searches(material, peer_utterances=2 if quick else 10)
    rows += [measure_encoder(size, repeats=2 if quick else REPEATS) for size in SIZES]
    rows += measure_streaming(material)
    return Bench("decode", rows, ratios, LIMITS)


# ------------------------------------------------------------------------------------------------------------ searches
def measure_searches(
    material: Material, peer_utterances: int, repeats: int = REPEATS
) -> tuple[list[Measurement], dict[str, float]]:
    """Time and error rate of every search on the same encoder output."""
    model, enc_BTE, lengths_B = material.model, material.enc_BTE, material.lengths_B
    best: dict[str, list[list[int]]] = {}

    def decode(lm_weight: float) -> list[list[int]]:
        found = beam(model, enc_BTE, lengths_B, BEAM, MAX_SYMBOLS, material.lm, lm_weight, threshold=THRESHOLD)
        return [nbest[0].tokens for nbest in found]

    peer = torch.linspace(0, len(lengths_B) - 1, peer_utterances).long()  # of all lengths
    share = float(lengths_B[peer].sum() / lengths_B.sum())
    works: dict[str, Callable[[], list[list[int]]]] = {
        "greedy": lambda: [one.tokens for one in greedy(model, enc_BTE, lengths_B, MAX_SYMBOLS)],
        "beam": lambda: decode(0.0),
        "beam + n-gram": lambda: decode(LM_WEIGHT),
        "torchaudio beam": lambda: torchaudio_beam(model, enc_BTE[peer], lengths_B[peer]),
    }
    if material.lm is None:
        del works["beam + n-gram"]

    def run(name: str) -> None:
        best[name] = works[name]()

    for name in ("greedy", "beam"):
        run(name)  # memory is allocated before the clock runs
    seconds: dict[str, list[float]] = {name: [] for name in works}
    encoder = []
    for _ in range(repeats):
        encoder.append(cpu_seconds(material.encode))
        for name in works:
            seconds[name].append(cpu_seconds(partial(run, name)) / (share if "torchaudio" in name else 1.0))
    conditions: Conditions = {
        "network": material.name,
        "utterances": len(lengths_B),
        "audio s": round(material.seconds),
        "V": model.vocab_size,
        "threads": 1,
    }
    rows = [Measurement("encoder", "CPU s", encoder, conditions | {"weights": material.encoder_name})]
    for name in works:
        own: Conditions = {} if name == "greedy" else {"beam": BEAM}
        own |= {"LM weight": LM_WEIGHT} if "n-gram" in name else {}
        own |= {"measured on utterances": peer_utterances} if "torchaudio" in name else {"batch": len(lengths_B)}
        rows.append(Measurement(f"{name}, search alone", "CPU s", seconds[name], own | conditions))
        texts = [material.references[b] for b in peer] if "torchaudio" in name else material.references
        errors = word_error_rate(texts, [material.text(tokens) for tokens in best[name]])
        rows.append(Measurement(f"{name}, WER", "%", [errors], own | conditions))
    same = [material.text(best["beam"][b]) for b in peer]
    same_errors = word_error_rate([material.references[b] for b in peer], same)
    rows.append(Measurement("beam, WER on torchaudio's utterances", "%", [same_errors], {"beam": BEAM} | conditions))
    time = {row.name.removesuffix(", search alone"): row.median for row in rows if row.unit == "CPU s"}
    fused, once = time.get("beam + n-gram", time["beam"]), time["encoder"]
    ratios = {
        "beam_vs_torchaudio_speed": time["torchaudio beam"] / fused,
        "beam_vs_torchaudio_speed_encoder_included": (once + time["torchaudio beam"]) / (once + fused),
        "beam_vs_greedy_time": (once + fused) / (once + time["greedy"]),
        "beam_vs_greedy_search_time": fused / time["greedy"],
        "greedy_x_realtime": material.seconds / (once + time["greedy"]),
        "beam_x_realtime": material.seconds / (once + fused),
    }
    return rows, ratios


class _Rnnt(torch.nn.Module):
    """A transducer as torchaudio's search asks it: projected encoder output, blank last, states in lists."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.ours = model

    def predict(
        self, tokens_BU: Tensor, lengths_B: Tensor, state: list[list[Tensor]] | None
    ) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        """One token each; without a state, the start."""
        predictor = self.ours.predictor
        if state is None:
            output, own = predictor.start(len(tokens_BU))
        else:
            output, own = predictor.step(tokens_BU[:, 0] + 1, state[0][0])
        return self.ours.project_predictor(output)[:, None], lengths_B, [[own]]

    def join(
        self, enc_BTJ: Tensor, frames_B: Tensor, pred_BUJ: Tensor, lengths_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, T, U, V) with the blank last."""
        logits = self.ours.joiner(enc_BTJ[:, :, None], pred_BUJ[:, None])
        return logits.roll(-1, dims=-1), frames_B, lengths_B


@torch.inference_mode()
def torchaudio_beam(model: Transducer, enc_BTE: Tensor, lengths_B: Tensor) -> list[list[int]]:
    """The best tokens of torchaudio's beam search, which ranks by the score as ours does, not by length."""
    from torchaudio.models import RNNTBeamSearch

    search = RNNTBeamSearch(
        _Rnnt(model), model.vocab_size - 1, hypo_sort_key=lambda hypothesis: hypothesis[3], step_max_tokens=MAX_SYMBOLS
    )
    enc_BTJ = model.project_encoder(enc_BTE)
    found = [search._search(enc_BTJ[b : b + 1, :frames], None, BEAM) for b, frames in enumerate(lengths_B.tolist())]
    return [[token + 1 for token in nbest[0][0][1:]] for nbest in found]


# ------------------------------------------------------------------------------------------------- encoders, streaming
def student(size: str, streaming: StreamingConfig | None = None) -> Transducer:
    """An untrained student: it takes the time of a trained one."""
    encoder, width = SIZES[size]
    config = StudentConfig(
        encoder=ConformerConfig.model_validate({**encoder, "conv_kernel": 15, "streaming": streaming}),
        predictor=PredictorConfig(type="lstm", dim=width),
        joiner_dim=width,
    )
    torch.manual_seed(0)
    return build_student(config, 256).eval()


@torch.inference_mode()
def measure_encoder(size: str, repeats: int) -> Measurement:
    """How much faster than real time a student's encoder is, without weights of any worth."""
    model, batch, seconds = student(size), 8, 6
    features_BFC = torch.randn(batch, 100 * seconds, MEL_CHANNELS)
    lengths_B = torch.full((batch,), 100 * seconds)
    model.encode(features_BFC, lengths_B)
    values = [batch * seconds / cpu_seconds(lambda: model.encode(features_BFC, lengths_B)) for _ in range(repeats)]
    conditions: Conditions = {
        "parameters M": round(model.num_parameters / 1e6, 1),
        "utterances": batch,
        "audio s": batch * seconds,
        "weights": "random",
        "threads": 1,
    }
    return Measurement(f"encoder of {size}", "x real time", values, conditions)


def measure_streaming(material: Material) -> list[Measurement]:
    """CPU time of each chunk of a stream, from samples to labels."""
    model, name = material.streaming, material.streaming_name
    if model is None:
        model, name = student("2 M", StreamingConfig(chunk_ms=640, left_context_ms=2560)), "2 M, random weights"
    encoder = model.encoder
    assert isinstance(encoder, ConformerEncoder)
    waveforms = material.waveforms or [0.1 * torch.randn(SAMPLE_RATE * 10)]
    rows = []
    greedy_search = SearchConfig(max_symbols=MAX_SYMBOLS)
    for search in (greedy_search, SearchConfig(type="beam", beam=BEAM, threshold=THRESHOLD, max_symbols=MAX_SYMBOLS)):
        start_stream(model, search).feed(torch.zeros(2 * SAMPLE_RATE))
        chunk_ms = []
        for waveform_S in waveforms:
            stream = start_stream(model, search)
            for piece_S in waveform_S.split(SAMPLE_RATE // 100):
                before = stream.num_frames
                seconds = cpu_seconds(partial(stream.feed, piece_S))
                if stream.num_frames > before:
                    chunk_ms.append(1000 * seconds)
        conditions: Conditions = {
            "model": name,
            "chunk ms": encoder.chunk_ms or 0,
            "algorithmic latency ms": round(algorithmic_latency_ms(encoder) or 0),
            "chunks": len(chunk_ms),
            "threads": 1,
        }
        rows += [
            Measurement(
                f"streaming, {search.type}, a chunk, p{p}", "CPU ms", [float(np.percentile(chunk_ms, p))], conditions
            )
            for p in (50, 90)
        ]
    return rows
