"""Diagnostics: how good the pseudo text is, and where the best student errs most."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from kdtrans.artifacts import read_json
from kdtrans.contracts import SCORES, ContractError, read_table
from kdtrans.report.results import Row, errors_of
from kdtrans.scoring.bootstrap import wer_interval
from kdtrans.scoring.wer import aligned_words, word_errors


@dataclass(frozen=True)
class PseudoLabels:
    """The teacher's text of unlabelled audio against the text that training never saw. Rates in %."""

    utterances: int
    words: int
    wer: float
    wer_low: float
    wer_high: float
    exact: float  # utterances without an error, %


def pseudo_labels(hidden_text: Path, targets: list[Path]) -> PseudoLabels | None:
    """Compare the pseudo text of target shards with the corpus's own text of its unlabelled part.

    Args:
        hidden_text: JSON lines of `utt_id` and `text`, set apart by prepare.
        targets: target shards; only rows of rank 0 that a search made (origin other than viterbi) count.

    Returns:
        None when no utterance has both, as in a corpus whose unlabelled part has no text.
    """
    truth = _read_text(hidden_text)
    references, hypotheses = [], []
    for path in targets:
        # Only four of the columns: the distributions are thousands of times larger.
        table = pq.read_table(path, columns=["utt_id", "rank", "origin", "text"])
        for row in table.to_pylist():
            if row["rank"] == 0 and row["origin"] != "viterbi" and truth.get(row["utt_id"]):
                references.append(truth[row["utt_id"]])
                hypotheses.append(row["text"] or "")
    if not references:
        return None
    counts = word_errors(references, hypotheses)
    low, high = wer_interval(counts.words, counts.errors)
    exact = 100 * float((counts.errors == 0).mean())
    return PseudoLabels(len(references), int(counts.words.sum()), counts.rate, low, high, exact)


def worst_utterances(row: Row, most: int = 6) -> str:
    """HTML: the utterances with the most errors of a row's first run, word above word."""
    table = read_table(row.counts[0], SCORES)
    errors = errors_of(table)
    order = np.argsort(-errors, kind="stable")[:most]
    blocks = []
    for index in order[errors[order] > 0].tolist():
        utterance = table.slice(index, 1).to_pylist()[0]
        pairs = aligned_words(utterance["reference"], utterance["hypothesis"])
        title = f"{escape(utterance['utt_id'])}, {errors[index]} errors in {utterance['words']} words"
        blocks.append(f'<p class="utterance">{title}</p><p class="pairs">{"".join(map(_pair, pairs))}</p>')
    return "\n".join(blocks)


def _pair(pair: tuple[str, str]) -> str:
    reference, hypothesis = pair
    if reference == hypothesis:
        return f"<span>{escape(reference)}<b>&nbsp;</b></span> "
    return f'<span class="wrong">{escape(reference) or "∗"}<b>{escape(hypothesis) or "∗"}</b></span> '


def shards_of(index: Path) -> list[Path]:
    """The target shards that an index.json names; they lie beside it."""
    return [index.parent / Path(shard["path"]).name for shard in read_json(index).get("shards", [])]


def _read_text(path: Path) -> dict[str, str]:
    text = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            text[row["utt_id"]] = row["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ContractError(f"{path}:{number}: not a JSON line with utt_id and text ({error!r})") from None
    return text
