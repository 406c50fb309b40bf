"""Token n-gram models: modified Kneser-Ney estimation, and ARPA files.

An n-gram of order m is stored as the place of its context among the n-grams of order m - 1 and its last word; all are
NumPy arrays, sorted by (context, word), so that millions of n-grams are counted by sorting.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdtrans.artifacts import write_whole
from kdtrans.contracts import ContractError

log = logging.getLogger(__name__)

BEGIN, END, UNK = "<s>", "</s>", "<unk>"
NEVER = -99.0
"""log10 probability that ARPA files give to what is never predicted, such as <s>."""
SLACK, MOST = 1.0e-3, 1.0e4
"""log10 of a probability in an ARPA file may be rounded to a little above 0; what is larger than MOST is damage."""
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""Where a corpus is too small for Chen and Goodman's estimate (KenLM's values)."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NgramOrder:
    """The n-grams of one order, sorted by (context, word).

    Attributes:
        context: place of each n-gram's first m - 1 words in the order below; zeros for unigrams.
        word: id of the last word.
        logp: log10 probability of the word after the context.
        backoff: log10 back-off weight of the n-gram as a context.
    """

    context: Ints
    word: Ints
    logp: Floats
    backoff: Floats


@dataclass(frozen=True)
class NgramModel:
    """A back-off model: the words, and the n-grams of orders 1, 2, ...; unigram i is word i."""

    words: list[str]
    orders: list[NgramOrder]


def estimate(sentences: Iterable[list[str]], order: int) -> NgramModel:
    """Interpolated modified Kneser-Ney (Chen and Goodman 1998, section 3; as KenLM: Heafield et al. 2013).

    The vocabulary is what the sentences hold, </s> and <unk>; unigrams are interpolated with the uniform distribution
    over it, which is all that <unk> gets. Lower orders count distinct words to the left, except that n-grams that begin
    with <s> have none and keep their own counts.

    Args:
        sentences: each a list of pieces, without <s> and </s>.
        order: longest n-gram.

    Raises:
        ValueError: when there is no sentence.
    """
    words, stream, position = _number(sentences)
    counted = _count(stream, position, order, len(words))
    orders: list[NgramOrder] = []
    probability: Floats = np.full(1, 1.0 / (len(words) - 1))  # order 0: uniform over all words but <s>
    for m, grams in enumerate(counted, start=1):
        count = _adjusted(counted, m)
        discounts = np.array([0.0, *_discounts(count, m)])[np.minimum(count, 3)]
        contexts = len(orders[-1].word) if orders else 1
        extended = np.bincount(grams.context, count, contexts)
        gamma = np.bincount(grams.context, discounts, contexts) / np.maximum(extended, 1)
        if orders:
            orders[-1].backoff[:] = np.log10(np.where(extended > 0, gamma, 1.0))
        own = (count - discounts) / extended[grams.context]
        probability = own + gamma[grams.context] * probability[grams.suffix]
        orders.append(NgramOrder(grams.context, grams.word, np.log10(probability), np.zeros(len(count))))
    orders[0].logp[words.index(BEGIN)] = NEVER
    return NgramModel(words, orders)


@dataclass(frozen=True)
class _Counted:
    """The n-grams of one order as they occur; suffix is the place of the last m - 1 words in the order below."""

    context: Ints
    word: Ints
    suffix: Ints
    count: Ints
    begins: NDArray[np.bool_]  # whether the first word is <s>


def _number(sentences: Iterable[list[str]]) -> tuple[list[str], Ints, Ints]:
    """Words, and for every token of `<s> ... </s> <s> ... </s>` its word's id and its place in its sentence."""
    ids = {BEGIN: 0, END: 1, UNK: 2}
    stream: list[int] = []
    lengths: list[int] = []
    for sentence in sentences:
        stream += [0, *(ids.setdefault(word, len(ids)) for word in sentence), 1]
        lengths.append(len(sentence) + 2)
    if not stream:
        raise ValueError("no sentence to estimate the language model on: set lm.transcripts or give lm.texts")
    starts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    return list(ids), np.array(stream, dtype=np.int64), np.arange(len(stream)) - starts


def _count(stream: Ints, position: Ints, order: int, vocab: int) -> list[_Counted]:
    """Count the n-grams of orders 1 .. order that lie within sentences."""
    zeros = np.zeros(vocab, dtype=np.int64)
    counted = [_Counted(zeros, np.arange(vocab), zeros, np.bincount(stream, minlength=vocab), np.arange(vocab) == 0)]
    place = stream  # of the n-gram that ends at each token, among those of the present order
    for m in range(2, order + 1):
        ends = np.flatnonzero(position >= m - 1)
        keys, first, inverse, count = np.unique(
            place[ends - 1] * vocab + stream[ends], return_index=True, return_inverse=True, return_counts=True
        )
        context = keys // vocab
        counted.append(_Counted(context, keys % vocab, place[ends[first]], count, counted[-1].begins[context]))
        place = np.full_like(stream, -1)
        place[ends] = inverse
    return counted


def _adjusted(counted: list[_Counted], m: int) -> Ints:
    """What Kneser-Ney counts: occurrences in the highest order, distinct words to the left in the others."""
    grams = counted[m - 1]
    if m == len(counted):
        count = grams.count
    else:
        count = np.where(grams.begins, grams.count, np.bincount(counted[m].suffix, minlength=len(grams.word)))
    return np.where(grams.begins, 0, count) if m == 1 else count  # <s> itself is never predicted


def _discounts(count: Ints, m: int) -> tuple[float, float, float]:
    """Discounts of counts 1, 2, and 3 or more (Chen and Goodman 1998, eq. 26); fixed ones where they do not exist."""
    n1, n2, n3, n4 = (int((count == k).sum()) for k in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) > 0:
        y = n1 / (n1 + 2 * n2)
        discounts = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if all(0 < discount <= k for k, discount in enumerate(discounts, start=1)):
            return discounts
    log.warning(
        "%d-grams: too few counts (%d, %d, %d, %d) for discounts, using %s", m, n1, n2, n3, n4, FALLBACK_DISCOUNTS
    )
    return FALLBACK_DISCOUNTS


# ---------------------------------------------------------------------------------------------------------------- ARPA
def write_arpa(model: NgramModel, path: Path | str) -> None:
    """Write a whole ARPA file."""
    with write_whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("\\data\\\n")
        for m, entry in enumerate(model.orders, start=1):
            file.write(f"ngram {m}={len(entry.word)}\n")
        texts = [""]
        for m, entry in enumerate(model.orders, start=1):
            file.write(f"\n\\{m}-grams:\n")
            texts = [f"{texts[c]} {model.words[w]}".lstrip(" ") for c, w in zip(entry.context, entry.word, strict=True)]
            for text, logp, backoff in zip(texts, entry.logp, entry.backoff, strict=True):
                weight = f"\t{backoff:.7g}" if m < len(model.orders) else ""
                file.write(f"{logp:.7g}\t{text}{weight}\n")
        file.write("\n\\end\\\n")


def read_arpa(path: Path | str) -> NgramModel:
    """Read an ARPA file, whose n-grams may come in any order.

    Raises:
        ContractError: naming the file and the line, when it is not ARPA, is cut short, or lacks a context.
    """
    sizes: list[int] = []
    words: dict[str, int] = {}
    orders: list[NgramOrder] = []
    places: list[dict[tuple[int, int], int]] = []  # of each order's (context, word)
    rows: list[tuple[int, int, float, float]] = []
    m, ended = 0, False
    with open(path, encoding="utf-8-sig", errors="replace") as file:  # a binary file is refused below, by name
        for number, line in enumerate(file, start=1):
            line = line.strip(" \r\n")
            if header := re.fullmatch(rf"ngram {len(sizes) + 1} *= *([0-9]{{1,12}})", line):
                sizes.append(int(header[1]))
            elif line in ("\\end\\", f"\\{m + 1}-grams:") and m <= len(sizes):
                if m:
                    _close(orders, places, rows, sizes[m - 1], f"{path}, {m}-grams")
                ended, m, rows = line == "\\end\\", m + 1, []
                if ended:
                    break
            elif line and m:
                try:
                    logp, *gram, backoff = _fields(line, m)
                    if m == 1:
                        rows.append((0, words.setdefault(gram[0], len(words)), float(logp), float(backoff)))
                    else:
                        context = words[gram[0]]
                        for place, word in zip(places[1:], gram[1:-1], strict=False):
                            context = place[context, words[word]]
                        rows.append((context, words[gram[-1]], float(logp), float(backoff)))
                except (ValueError, KeyError, IndexError):
                    raise ContractError(
                        f"{path}, line {number}: '{line}' is not a {m}-gram whose words and context are listed above it"
                    ) from None
    if not ended or not orders or len(orders) != len(sizes):
        raise ContractError(f"{path}: {len(orders)} of {len(sizes)} orders are there: not an ARPA file, or cut short")
    return NgramModel(list(words), orders)


def _fields(line: str, m: int) -> list[str]:
    """Probability, m words, and the back-off weight, 0 where it is left out."""
    fields = re.split(r"[\t ]+", line)
    if len(fields) == m + 1:
        fields.append("0")
    if len(fields) != m + 2:
        raise ValueError(line)
    return fields


def _close(
    orders: list[NgramOrder],
    places: list[dict[tuple[int, int], int]],
    rows: list[tuple[int, int, float, float]],
    size: int,
    where: str,
) -> None:
    """Sort the rows of an order, and append them to `orders` and their places to `places`."""
    rows.sort()
    if len(rows) != size:
        raise ContractError(f"{where}: found {len(rows)}, the header says {size}")
    places.append({(c, w): i for i, (c, w, *_) in enumerate(rows)})
    if len(places[-1]) != size:
        raise ContractError(f"{where}: {size - len(places[-1])} of them occur twice")
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    context, word = (np.array(column, dtype=np.int64) for column in columns[:2])
    logp, backoff = (np.array(column, dtype=np.float64) for column in columns[2:])
    if not (np.isfinite(logp).all() and np.isfinite(backoff).all()):
        raise ContractError(f"{where}: a probability or back-off weight is not finite; write {NEVER:g} for never")
    largest = max(np.abs(logp).max(initial=0), np.abs(backoff).max(initial=0))
    if logp.max(initial=NEVER) > SLACK or largest > MOST:
        raise ContractError(
            f"{where}: a log10 probability is above 0, or a number beyond {MOST:g}; write {NEVER:g} for never"
        )
    orders.append(NgramOrder(context, word, logp, backoff))
