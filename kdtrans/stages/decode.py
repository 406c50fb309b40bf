"""Stage decode: a model and a test set -> hypotheses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lhotse import MonoCut
    from torch import Tensor

    from kdtrans.config import DecodeConfig, SearchConfig
    from kdtrans.data.tokenizer import Tokenizer
    from kdtrans.models.transducer import Encoder, Transducer
    from kdtrans.search.hypothesis import Hypothesis


def main(
    config: Path,
    search: str,
    model: Path,
    cuts: list[Path],
    tokenizer: Path,
    out: Path,
    lm: list[Path] | None = None,
    lm_weight: Path | None = None,
) -> None:
    """Decode one test set with one system and one search.

    Args:
        config: YAML of decoding (DecodeConfig).
        search: name of a search in it.
        model: model.pt of the system.
        cuts: manifests of the test set.
        tokenizer: sentencepiece model.
        out: Parquet file of hypotheses to write.
        lm: the language model that the search names, if it names one: ARPA file, or model of lstm-lm; with
            density_ratio the n-gram of the transcripts behind it.
        lm_weight: JSON of tune-lm; needed with lm.
    """
    import time

    import pyarrow as pa

    from kdtrans import config as configuration
    from kdtrans.artifacts import run_record
    from kdtrans.contracts import HYPOTHESES, write_table
    from kdtrans.data.manifest import read_cuts
    from kdtrans.data.tokenizer import Tokenizer
    from kdtrans.models.conformer import algorithmic_latency_ms
    from kdtrans.models.lm import load_fusion
    from kdtrans.search.batches import gathered
    from kdtrans.search.search import search as decode
    from kdtrans.training.checkpoint import ready_model

    settings = configuration.read(configuration.DecodeConfig, config)
    chosen = search_named(settings, search, config)
    if chosen.lm and (not lm or lm_weight is None):
        raise ValueError(f"{config}: the search '{search}' has lm: {chosen.lm}: give --lm and --lm-weight")
    inputs = [model, *cuts, tokenizer, *(lm or []), *([lm_weight] if lm_weight else [])]
    check_installed(chosen)
    given = {"search": search, **chosen.model_dump(mode="json"), "max_duration_s": settings.max_duration_s}
    with run_record(out, "decode", given, inputs) as record:
        pieces = Tokenizer(tokenizer)
        system, device = ready_model(model, pieces)
        set_chunk(system.encoder, chosen, search, model)
        check_predictor(system, chosen, search, model)
        fusion = load_fusion(chosen, lm, pieces).to(device) if chosen.lm and lm else None
        weight = read_lm_weight(lm_weight) if chosen.lm and lm_weight else 0.0
        utterances = read_cuts(cuts)
        if not utterances:
            raise ValueError(f"{', '.join(map(str, cuts))}: no utterance to decode")
        audio_seconds = sum(cut.duration for cut in utterances)
        rows: dict[str, list[dict[str, Any]]] = {}
        told, started = 0, time.monotonic()
        for batch, enc_BTE, lengths_B in gathered(encoded_batches(system, utterances, settings.max_duration_s)):
            found = decode(system, enc_BTE, lengths_B, chosen, fusion, weight)
            for cut, num_frames, nbest in zip(batch, lengths_B.tolist(), found, strict=True):
                rows[cut.id] = [_row(cut, num_frames, rank, best, pieces) for rank, best in enumerate(nbest)]
            tenths = 10 * len(rows) // len(utterances)
            if tenths > told:
                told = tenths
                print(f"{len(rows)} of {len(utterances)} utterances, {time.monotonic() - started:.0f} s", flush=True)
        decode_seconds = time.monotonic() - started
        latency_ms = algorithmic_latency_ms(system.encoder)
        facts = {
            "search": search,
            "lm_weight": weight,
            "model_fingerprint": system.fingerprint,
            "tokenizer_sha256": pieces.sha256,
            "parameters": system.num_parameters,
            "decode_seconds": round(decode_seconds, 3),  # audio, features, encoder and search
            "audio_seconds": round(audio_seconds, 3),
            "vocab_size": pieces.vocab_size,
            "latency_ms": "" if latency_ms is None else round(latency_ms),
        }
        # In the manifest's order: batches are an accident of durations.
        table = pa.Table.from_pylist([row for cut in utterances for row in rows[cut.id]], schema=HYPOTHESES)
        write_table(table, out, {name: str(value) for name, value in facts.items()})
        record |= {"utterances": len(utterances), **facts}
    print(f"{out}: {len(utterances)} utterances, {audio_seconds / decode_seconds:.0f}x real time", flush=True)


def search_named(settings: DecodeConfig, name: str, source: Path) -> SearchConfig:
    """A search of the configuration; raises ValueError naming those that there are."""
    if name not in settings.searches:
        raise ValueError(f"{source}: no search '{name}'; the searches are {', '.join(settings.searches)}")
    return settings.searches[name]


def set_chunk(encoder: Encoder, config: SearchConfig, search: str, model: Path) -> None:
    """Give a streaming encoder the chunk size that the search names, if it names one.

    Raises:
        ValueError: naming the model, when it does not stream.
    """
    from kdtrans.models.conformer import ConformerEncoder, algorithmic_latency_ms

    if config.chunk_ms is None:
        return
    if not isinstance(encoder, ConformerEncoder) or algorithmic_latency_ms(encoder) is None:
        raise ValueError(
            f"{model}: the search '{search}' has chunk_ms: {config.chunk_ms}, but this model does not stream: "
            "decode it with a search without chunk_ms"
        )
    encoder.chunk_ms = config.chunk_ms


def check_installed(config: SearchConfig) -> None:
    """Raise ValueError, which says how to install it, when the search needs a library that is not there."""
    if config.type == "fsa":
        from kdtrans.losses.backends import imported

        imported("k2")


def check_predictor(system: Transducer, config: SearchConfig, search: str, model: Path) -> None:
    """Raise ValueError, which names search and model, when the search cannot be done with the model's predictor."""
    if config.type == "fsa":
        from kdtrans.search.fsa import context_of

        try:
            context_of(system)
        except ValueError as error:
            raise ValueError(f"{model}, search '{search}': {error}") from None


def read_lm_weight(path: Path) -> float:
    """The weight that tune-lm chose.

    Raises:
        ContractError: naming the file, when it is not what tune-lm writes.
    """
    from kdtrans.artifacts import read_json
    from kdtrans.contracts import ContractError

    content = read_json(path)
    weight = content.get("lm_weight") if isinstance(content, dict) else None
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight < float("inf"):
        raise ContractError(f"{path} has lm_weight {weight!r}, expected a number from 0 up: give the file of tune-lm")
    return float(weight)


def encoded_batches(
    model: Transducer, cuts: list[MonoCut], max_duration_s: float
) -> Iterator[tuple[list[MonoCut], Tensor, Tensor]]:
    """Cuts in batches with encoder output (B, T, E) and lengths (B,), on the model's device."""
    import torch

    from kdtrans.data.batches import inference_batches

    device = next(model.parameters()).device
    for batch, features_BFC, lengths_B in inference_batches(cuts, model.encoder.extract, max_duration_s):
        with torch.inference_mode():
            enc_BTE, frames_B = model.encode(features_BFC.to(device), lengths_B.to(device))
        yield batch, enc_BTE, frames_B


def _row(cut: MonoCut, num_frames: int, rank: int, hypothesis: Hypothesis, tokenizer: Tokenizer) -> dict[str, Any]:
    """One row of contracts.HYPOTHESES."""
    return {
        "utt_id": cut.id,
        "rank": rank,
        "text": tokenizer.decode(hypothesis.tokens),
        "tokens": hypothesis.tokens,
        "token_frames": hypothesis.frames,
        "token_logp": hypothesis.logps,
        "score": hypothesis.score,
        "am_score": hypothesis.am_score,
        "lm_score": hypothesis.lm_score,
        "num_frames": num_frames,
        "seconds": cut.duration,
    }
