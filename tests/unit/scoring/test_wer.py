"""Counts against a plain edit-distance table, and what must hold of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrans.scoring.wer import aligned_words, character_errors, normalise, word_error_rate, word_errors

texts = st.lists(st.sampled_from(["a", "b", "cd"]), max_size=6).map(" ".join)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=5)


def edit_distance(reference: list[str], hypothesis: list[str]) -> int:
    """The table of Wagner and Fischer, cell by cell."""
    table = np.zeros((len(reference) + 1, len(hypothesis) + 1), dtype=int)
    table[:, 0], table[0] = range(len(reference) + 1), range(len(hypothesis) + 1)
    for i, left in enumerate(reference, 1):
        for j, right in enumerate(hypothesis, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (left != right))
    return int(table[-1, -1])


@settings(deadline=None, max_examples=60)
@given(pairs)
def test_counts_match_the_edit_distance(texts: list[tuple[str, str]]) -> None:
    references, hypotheses = map(list, zip(*texts, strict=True))
    words, characters = word_errors(references, hypotheses), character_errors(references, hypotheses)
    for row, (reference, hypothesis) in enumerate(texts):
        ref, hyp = reference.split(), hypothesis.split()
        assert words.errors[row] == edit_distance(ref, hyp)
        assert characters.errors[row] == edit_distance(list(reference), list(hypothesis))
        assert words.words[row] == len(ref)
        assert len(ref) - words.dele[row] + words.ins[row] == len(hyp)
        assert len(reference) - characters.dele[row] + characters.ins[row] == len(hypothesis)


@settings(deadline=None, max_examples=40)
@given(texts, texts)
def test_alignment_spells_both_texts(reference: str, hypothesis: str) -> None:
    aligned = aligned_words(reference, hypothesis)
    assert [left for left, _ in aligned if left] == reference.split()
    assert [right for _, right in aligned if right] == hypothesis.split()
    assert sum(left != right for left, right in aligned) == word_errors([reference], [hypothesis]).errors[0]


def test_empty_reference_counts_insertions() -> None:
    counts = word_errors(["", "a b"], ["x y", "a b"])
    assert counts.ins.tolist() == [2, 0]
    assert counts.rate == 100.0


def test_white_space_is_collapsed_and_case_is_not() -> None:
    assert normalise("  a\tB \n c ") == "a B c"
    assert word_error_rate([" a  b"], ["a b "]) == 0.0
    assert word_error_rate(["a b"], ["A b"]) == 50.0


def test_refusals() -> None:
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        word_errors(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="all references are empty"):
        word_error_rate([""], ["a"])
    with pytest.raises(ValueError, match="no utterance to score"):
        word_errors([], [])
