from __future__ import annotations

import math
import random
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrans.contracts import ContractError
from kdtrans.models import ngram
from kdtrans.models.ngram import Ngram
from kdtrans.models.ngram_estimate import BEGIN, UNK, NgramModel, estimate, read_arpa, write_arpa
from tests.unit.models.test_ngram_estimate import listed, query

PIECES = ["<blank>", "<unk>", "d", "a", "b", "c"]  # d is in no sentence
RANDOM = random.Random(1)
SENTENCES = [[RANDOM.choice("aabc") for _ in range(RANDOM.randint(0, 9))] for _ in range(40)]


def built(model: NgramModel, pieces: list[str]) -> Ngram:
    with tempfile.TemporaryDirectory() as folder:
        write_arpa(model, Path(folder) / "lm.arpa")
        return Ngram(Path(folder) / "lm.arpa", SimpleNamespace(pieces=pieces))


def expected_row(model: NgramModel, context: tuple[str, ...]) -> torch.Tensor:
    known = [piece if piece in model.words else UNK for piece in PIECES]
    row = torch.tensor([query(listed(model), context, piece) * math.log(10) for piece in known]).float()
    row[0] = 0.0
    return row


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.lists(st.lists(st.integers(1, 5), min_size=4, max_size=4), min_size=1, max_size=3))
def test_every_state_scores_as_the_query_by_hand(order: int, prefixes: list[list[int]]) -> None:
    model = estimate(SENTENCES, order)
    automaton = built(model, PIECES)
    state_B = automaton.start(len(prefixes))
    for u in range(5):
        for prefix, row in zip(prefixes, automaton.score(state_B), strict=True):
            context = (BEGIN, *(PIECES[i] if PIECES[i] in model.words else UNK for i in prefix[:u]))
            torch.testing.assert_close(row, expected_row(model, context), atol=1e-4, rtol=1e-4)
        if u < 4:
            state_B = automaton.advance(state_B, torch.tensor([prefix[u] for prefix in prefixes]))


def test_scores_with_sentence_end_sum_to_one() -> None:
    model = estimate(SENTENCES, 3)
    automaton = built(model, PIECES)
    state_B = automaton.advance(automaton.start(4), torch.tensor([2, 3, 4, 5]))
    rows = automaton._score_all(state_B)[:, [1, 3, 4, 5, 6]]  # unknown (d falls to it), a, b, c, </s>
    torch.testing.assert_close(rows.exp().sum(1), torch.ones(4))


def test_pruned_arpa_whose_suffixes_are_missing(tmp_path: Path) -> None:
    # <s> a b is listed, a b is not: after it, the longest known context is b.
    (tmp_path / "lm.arpa").write_text(
        "\\data\\\nngram 1=4\nngram 2=2\nngram 3=1\n\n\\1-grams:\n-99\t<s>\t-0.1\n-1\ta\t-0.2\n-1\tb\t-0.3\n"
        "-1\t</s>\n\n\\2-grams:\n-0.5\t<s> a\t-0.4\n-0.6\tb b\t-0.7\n\n\\3-grams:\n-0.05\t<s> a b\n\n\\end\\\n"
    )
    model = read_arpa(tmp_path / "lm.arpa")
    automaton = built(model, PIECES)
    state = automaton.advance(automaton.start(1), torch.tensor([3]))
    torch.testing.assert_close(automaton.score(state)[0, 4].item(), -0.05 * math.log(10))
    torch.testing.assert_close(automaton.score(state)[0, 3].item(), (-0.4 - 0.2 - 1) * math.log(10))
    state = automaton.advance(state, torch.tensor([4]))
    torch.testing.assert_close(automaton.score(state)[0, 4].item(), -0.6 * math.log(10))


def test_memory_goes_with_the_ngrams() -> None:
    model = estimate(SENTENCES, 4)
    pieces = PIECES + [f"p{i}" for i in range(10_000)]
    numbers = sum(tensor.numel() for tensor in built(model, pieces).buffers())
    assert numbers < 6 * sum(len(entry.word) for entry in model.orders) + 3 * len(pieces)


def test_a_model_laid_out_whole_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = estimate(SENTENCES, 3)
    whole = built(model, PIECES)
    monkeypatch.setattr(ngram, "TABLE", 0)
    sparse = built(model, PIECES)
    assert whole.next_table is not None
    assert sparse.next_table is None
    state_N = torch.arange(len(whole.fail)).repeat_interleave(len(PIECES))
    token_N = torch.arange(len(PIECES)).repeat(len(whole.fail))
    assert torch.equal(whole.advance(state_N, token_N), sparse.advance(state_N, token_N))
    assert torch.equal(whole.score(state_N), sparse.score(state_N))


def test_words_that_are_no_pieces_are_refused() -> None:
    with pytest.raises(ContractError, match="'dog' and 0 more"):
        built(estimate([["a", "dog"]], 2), PIECES)
