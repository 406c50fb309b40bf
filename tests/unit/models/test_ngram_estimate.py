from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrans.contracts import ContractError
from kdtrans.models.ngram_estimate import BEGIN, END, UNK, NgramModel, estimate, read_arpa, write_arpa

SENTENCES = st.lists(st.lists(st.sampled_from("abcd"), max_size=8), min_size=1, max_size=30)
Gram = tuple[str, ...]


def listed(model: NgramModel) -> list[dict[Gram, tuple[float, float]]]:
    """n-gram -> (log10 probability, log10 back-off), by order."""
    tables: list[dict[Gram, tuple[float, float]]] = []
    grams: list[Gram] = [()]
    for entry in model.orders:
        grams = [(*grams[c], model.words[w]) for c, w in zip(entry.context, entry.word, strict=True)]
        tables.append(dict(zip(grams, zip(entry.logp, entry.backoff, strict=True), strict=True)))
    return tables


def query(tables: list[dict[Gram, tuple[float, float]]], context: Gram, word: str) -> float:
    """The textbook back-off query, log10."""
    context = context[max(0, len(context) - len(tables) + 1) :]
    if (found := tables[len(context)].get((*context, word))) is not None:
        return found[0]
    backoff = tables[len(context) - 1].get(context, (0.0, 0.0))[1]
    return backoff + query(tables, context[1:], word)


def slow_probability(sentences: list[list[str]], order: int, context: Gram, word: str) -> float:
    """Interpolated modified Kneser-Ney, straight from the definition."""
    padded = [[BEGIN, *sentence, END] for sentence in sentences]
    raw = [Counter(tuple(s[i : i + m]) for s in padded for i in range(len(s) - m + 1)) for m in range(1, order + 1)]
    vocabulary = {w for s in padded for w in s} - {BEGIN} | {UNK}

    def adjusted(m: int) -> dict[Gram, int]:
        if m == order:
            counts = dict(raw[m - 1])
        else:
            left: dict[Gram, set[str]] = {}
            for gram in raw[m]:
                left.setdefault(gram[1:], set()).add(gram[0])
            counts = {g: c if g[0] == BEGIN else len(left[g]) for g, c in raw[m - 1].items()}
        counts.pop((BEGIN,), None)
        return counts

    def discounts(counts: dict[Gram, int]) -> tuple[float, ...]:
        n = [0, *(sum(c == k for c in counts.values()) for k in (1, 2, 3, 4))]
        if all(n[1:]):
            y = n[1] / (n[1] + 2 * n[2])
            found = tuple(k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))
            if all(0 < d <= k for k, d in enumerate(found, 1)):
                return (0.0, *found)
        return (0.0, 0.5, 1.0, 1.5)

    def p(m: int, context: Gram) -> float:
        if m == 0:
            return 1 / len(vocabulary)
        counts = adjusted(m)
        d = discounts(counts)
        following = {g: c for g, c in counts.items() if g[:-1] == context}
        if not following:
            return p(m - 1, context[1:])
        total = sum(following.values())
        gamma = sum(d[min(c, 3)] for c in following.values()) / total
        count = following.get((*context, word), 0)
        return (count - d[min(count, 3)]) / total + gamma * p(m - 1, context[1:])

    context = context[max(0, len(context) - order + 1) :]
    return p(len(context) + 1, context)


@settings(deadline=None, max_examples=40)
@given(SENTENCES, st.integers(1, 4), st.lists(st.sampled_from("abcd"), max_size=4))
def test_probabilities_are_the_definition_and_sum_to_1(sentences: list[list[str]], order: int, tail: list[str]) -> None:
    model = estimate(sentences, order)
    tables = listed(model)
    words = [word for word in model.words if word != BEGIN]
    for context in ((), (BEGIN,), (BEGIN, *tail), tuple(tail)):
        values = {word: 10 ** query(tables, context, word) for word in words}
        assert sum(values.values()) == pytest.approx(1.0)
        for word in words:
            assert values[word] == pytest.approx(slow_probability(sentences, order, context, word))


def test_hand_computed_bigram() -> None:
    # Sentences "a a b" and "b": too small for estimated discounts, so 0.5, 1, 1.5.
    # Bigrams: <s>a 1, aa 1, ab 1, b</s> 2, <s>b 1. Left contexts: a {<s>, a} 2, b {a, <s>} 2, </s> {b} 1; total 5.
    # Unigrams: gamma = (1 + 1 + .5) / 5 = .5 over 4 words (a, b, </s>, <unk>).
    tables = listed(estimate([["a", "a", "b"], ["b"]], 2))
    unigram = {"a": 1 / 5 + 0.125, "b": 1 / 5 + 0.125, END: 0.5 / 5 + 0.125, UNK: 0.125}
    for word, probability in unigram.items():
        assert 10 ** query(tables, (), word) == pytest.approx(probability)
    # After a: a 1, b 1: gamma = (.5 + .5) / 2. After b: </s> 2: gamma = 1 / 2.
    assert 10 ** query(tables, ("a",), "b") == pytest.approx(0.5 / 2 + 0.5 * unigram["b"])
    assert 10 ** query(tables, ("a",), END) == pytest.approx(0.5 * unigram[END])
    assert 10 ** query(tables, ("b",), END) == pytest.approx(1 / 2 + 0.5 * unigram[END])
    assert 10 ** tables[0][("b",)][1] == pytest.approx(0.5)


def test_estimated_discounts_are_used() -> None:
    # 20 words once, 10 twice, 5 three times, 2 four times: Y = 20 / 40, D1 = 1 - 2 * .5 * 10 / 20 = .5.
    counts = [1] * 20 + [2] * 10 + [3] * 5 + [4] * 2
    sentences = [[f"w{i}" for i, c in enumerate(counts) for _ in range(c)]]
    tables = listed(estimate(sentences, 1))
    total, floor = sum(counts) + 1, 10 ** tables[0][(UNK,)][0]  # </s> occurs once too: n1 = 21
    y = 21 / 41
    assert 10 ** tables[0][("w0",)][0] == pytest.approx((1 - (1 - 2 * y * 10 / 21)) / total + floor)
    assert 10 ** tables[0][("w36",)][0] == pytest.approx((4 - (3 - 4 * y * 2 / 5)) / total + floor)


def test_no_sentence_is_refused() -> None:
    with pytest.raises(ValueError, match="no sentence"):
        estimate([], 3)


@settings(deadline=None, max_examples=15)
@given(SENTENCES, st.integers(1, 4))
def test_arpa_round_trip(tmp_path_factory: pytest.TempPathFactory, sentences: list[list[str]], order: int) -> None:
    path = tmp_path_factory.mktemp("arpa") / "lm.arpa"
    model = estimate(sentences, order)
    write_arpa(model, path)
    again = listed(read_arpa(path))
    for table, expected in zip(again, listed(model), strict=True):
        assert table.keys() == expected.keys()
        for gram, values in expected.items():
            assert table[gram] == pytest.approx(values, abs=1e-5)


ARPA = """\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-1.0\t<s>\t-0.3
-0.5\tb
-0.4\ta\t-0.2
-0.9\t</s>

\\2-grams:
-0.1\t<s> b
-0.2 a b

\\end\\
"""


def test_arpa_in_any_order_is_read(tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(ARPA)
    tables = listed(read_arpa(tmp_path / "lm.arpa"))
    assert query(tables, ("a",), "b") == pytest.approx(-0.2)
    assert query(tables, ("a",), "a") == pytest.approx(-0.6)
    assert math.isclose(query(tables, ("b",), "a"), -0.4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\end\\", "", "cut short"),
        ("ngram 2=2", "ngram 2=3", "header says 3"),
        ("-0.2 a b", "-0.2 c b", "line 13"),
        ("-0.2 a b", "-0.2 <s> b", "occur twice"),
        ("-0.2 a b", "zero a b", "line 13"),
        ("-0.2 a b", "-inf a b", "not finite"),
    ],
)
def test_bad_arpa_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "lm.arpa").write_text(ARPA.replace(old, new))
    with pytest.raises(ContractError, match=message):
        read_arpa(tmp_path / "lm.arpa")
