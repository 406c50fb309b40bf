"""Word and character errors by minimum edit distance (jiwer), counted utterance by utterance.

Shapes: N utterances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
from numpy.typing import NDArray

NORMALISER = "whitespace-v1"
"""Runs of white space are one space, none at the ends; letters, case and punctuation stay as they are."""


@dataclass(frozen=True)
class Counts:
    """Edit operations that turn references into hypotheses, (N,) each, in words or in characters."""

    words: NDArray[np.int64]  # length of the reference
    sub: NDArray[np.int64]
    dele: NDArray[np.int64]
    ins: NDArray[np.int64]

    @property
    def errors(self) -> NDArray[np.int64]:
        """Errors of each utterance, (N,)."""
        return self.sub + self.dele + self.ins

    @property
    def rate(self) -> float:
        """Errors over reference length, %, of all utterances together.

        Raises:
            ValueError: when all references are empty, which leaves nothing to divide by.
        """
        if not self.words.sum():
            raise ValueError("all references are empty: an error rate needs at least one word of reference")
        return 100.0 * float(self.errors.sum() / self.words.sum())


def normalise(text: str) -> str:
    """The text as it is compared: see NORMALISER."""
    return " ".join(text.split())


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> Counts:
    """Count substituted, deleted and inserted words.

    Args:
        references: N texts; an empty one is allowed, every word of its hypothesis is then an insertion.
        hypotheses: N texts, in the same order.

    Raises:
        ValueError: when the two differ in number, or there is none.
    """
    return _counts(jiwer.process_words(*_normalised(references, hypotheses)))


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> Counts:
    """Count substituted, deleted and inserted characters, spaces between words included; see `word_errors`."""
    return _counts(jiwer.process_characters(*_normalised(references, hypotheses)))


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """WER in % of N hypotheses against N references; raises ValueError as `word_errors` and `Counts.rate` do."""
    return word_errors(references, hypotheses).rate


def aligned_words(reference: str, hypothesis: str) -> list[tuple[str, str]]:
    """Pairs (reference word, hypothesis word) of a minimum-edit alignment; "" stands where a side has no word."""
    output = jiwer.process_words(normalise(reference), normalise(hypothesis))
    ref, hyp = output.references[0], output.hypotheses[0]
    pairs: list[tuple[str, str]] = []
    for chunk in output.alignments[0]:
        left, right = ref[chunk.ref_start_idx : chunk.ref_end_idx], hyp[chunk.hyp_start_idx : chunk.hyp_end_idx]
        blanks = [""] * max(len(left), len(right))
        pairs += zip(left or blanks, right or blanks, strict=True)
    return pairs


def _normalised(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[list[str], list[str]]:
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses: give one for each")
    if not references:
        raise ValueError("no utterance to score: the manifest is empty")
    return [normalise(text) for text in references], [normalise(text) for text in hypotheses]


def _counts(output: jiwer.WordOutput | jiwer.CharacterOutput) -> Counts:
    totals = {kind: np.zeros(len(output.references), dtype=np.int64) for kind in ("substitute", "delete", "insert")}
    for row, chunks in enumerate(output.alignments):
        for chunk in chunks:
            if chunk.type != "equal":
                width = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
                totals[chunk.type][row] += width
    words = np.array([len(reference) for reference in output.references], dtype=np.int64)
    return Counts(words, totals["substitute"], totals["delete"], totals["insert"])
