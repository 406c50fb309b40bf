"""Stage rescore: n-best hypotheses and another language model -> hypotheses, without audio or acoustic model."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def main(
    config: Path,
    search: str,
    nbest: Path,
    dev: Path,
    dev_cuts: list[Path],
    tokenizer: Path,
    lm: list[Path],
    out: Path,
) -> None:
    """Rank a search's hypotheses anew by am_score + weight * lm_score, with the weight that is best on dev.

    Args:
        config: YAML of decoding (DecodeConfig).
        search: name of a search in it that has rescore.
        nbest: Parquet file of hypotheses, of the search that is rescored.
        dev: the same of the development set, for the weight; may be the same file.
        dev_cuts: manifests of the development set; unlabelled cuts are left out.
        tokenizer: sentencepiece model.
        lm: the language model that the search names: ARPA file, or model of lstm-lm; with density_ratio the n-gram of
            the transcripts behind it.
        out: Parquet file of hypotheses to write.
    """
    import time

    import pyarrow as pa

    from kdtrans import config as configuration
    from kdtrans.artifacts import run_record
    from kdtrans.contracts import HYPOTHESES, ContractError, footer_number, read_footer, write_table
    from kdtrans.data.manifest import read_cuts, text_of
    from kdtrans.data.tokenizer import Tokenizer
    from kdtrans.models.lm import load_fusion
    from kdtrans.stages.decode import search_named

    settings = configuration.read(configuration.DecodeConfig, config)
    chosen = search_named(settings, search, config)
    if not chosen.rescore or not chosen.lm or not settings.lm_weights:
        raise ValueError(f"{config}: rescoring needs rescore and lm in the search '{search}', and one of lm_weights")
    facts = {"search": search, **chosen.model_dump(mode="json"), "lm_weights": settings.lm_weights}
    with run_record(out, "rescore", facts, [nbest, dev, *dev_cuts, tokenizer, *lm]) as record:
        pieces = Tokenizer(tokenizer)
        footer = read_footer(nbest)
        for path in (nbest, dev):
            of, sha256 = read_footer(path).get("search"), read_footer(path).get("tokenizer_sha256", "")
            if of != chosen.rescore:
                raise ContractError(f"{path} is of the search '{of}', and '{search}' rescores '{chosen.rescore}'")
            if sha256 != pieces.sha256:
                raise ContractError(f"{path} has tokenizer {sha256[:12]}, {tokenizer} is {pieces.sha256[:12]}")
        model = load_fusion(chosen, lm, pieces)
        texts = {cut.id: text_of(cut) for cut in read_cuts(dev_cuts)}
        tried = tune(scored(read_hypotheses(dev, pieces.vocab_size), model), texts, settings.lm_weights)
        if not tried:
            raise ValueError(f"{dev}: no hypothesis of a labelled utterance to choose the weight on")
        weight = min(tried, key=lambda weight: (tried[weight], weight))
        print(f"{search}: LM weight {weight:g}: {tried[weight]:.2f} % WER on dev", flush=True)
        started = time.monotonic()
        rows = ranked(scored(read_hypotheses(nbest, pieces.vocab_size), model), weight)
        seconds = footer_number(footer, "decode_seconds", nbest) + time.monotonic() - started
        footer |= {"search": search, "lm_weight": str(weight), "decode_seconds": str(round(seconds, 3))}
        write_table(pa.Table.from_pylist(rows, schema=HYPOTHESES), out, footer)
        record |= {"hypotheses": len(rows), "tried": {str(one): wer for one, wer in tried.items()}, **footer}


def read_hypotheses(path: Path, vocab_size: int) -> list[dict[str, Any]]:
    """Rows of contracts.HYPOTHESES; raises ContractError naming the file, also for a token outside the vocabulary."""
    from kdtrans.contracts import HYPOTHESES, ContractError, read_table

    rows: list[dict[str, Any]] = read_table(path, HYPOTHESES).to_pylist()
    for row in rows:
        if max(row["tokens"], default=0) >= vocab_size:
            raise ContractError(
                f"{path}: utterance '{row['utt_id']}' has token {max(row['tokens'])}, of {vocab_size}: decode again"
            )
    return rows


def scored(rows: list[dict[str, Any]], model: Any, batch: int = 512) -> list[dict[str, Any]]:
    """Rows of contracts.HYPOTHESES with the lm_score of another language model."""
    from kdtrans.models.lm import score_labels

    # Of like length together, for shorter ones run along to the end of the longest.
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]["tokens"]))
    scores: dict[int, float] = {}
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        scores |= zip(some, score_labels(model, [rows[row]["tokens"] for row in some]), strict=True)
    return [values | {"lm_score": scores[row]} for row, values in enumerate(rows)]


def ranked(rows: list[dict[str, Any]], weight: float) -> list[dict[str, Any]]:
    """Rows with score and rank of a weight: utterances in their order, each one's hypotheses best first."""
    nbest: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        nbest.setdefault(row["utt_id"], []).append(row | {"score": row["am_score"] + weight * row["lm_score"]})
    return [
        row | {"rank": rank}
        for found in nbest.values()
        for rank, row in enumerate(sorted(found, key=lambda row: -row["score"]))
    ]


def tune(rows: list[dict[str, Any]], texts: dict[str, str | None], weights: list[float]) -> dict[float, float]:
    """WER in % of the labelled utterances for every weight; empty where none is labelled."""
    from kdtrans.scoring.wer import word_error_rate

    rows = [row for row in rows if texts.get(row["utt_id"])]
    tried = {}
    for weight in sorted(set(weights)) if rows else []:
        best = [row for row in ranked(rows, weight) if row["rank"] == 0]
        references = [texts[row["utt_id"]] or "" for row in best]
        tried[weight] = round(word_error_rate(references, [row["text"] for row in best]), 4)
    return tried
