from __future__ import annotations

import logging
from pathlib import Path

import pytest
import sentencepiece

from kdtrans.config import TokenizerConfig
from kdtrans.contracts import BLANK, ContractError
from kdtrans.data.tokenizer import Tokenizer, train_tokenizer

TEXTS = ["the cat sat on the mat", "a dog ran over the hill", "cats and dogs", "it's a cat"] * 3


@pytest.mark.parametrize("kind", ["unigram", "char"])
def test_round_trip(tmp_path: Path, kind: str) -> None:
    train_tokenizer(TEXTS, TokenizerConfig.model_validate({"type": kind, "vocab_size": 40}), tmp_path / "t.model")
    tokenizer = Tokenizer(tmp_path / "t.model")
    for text in TEXTS:
        tokens = tokenizer.encode(text)
        assert BLANK not in tokens
        assert max(tokens) < tokenizer.vocab_size == len(tokenizer.pieces)
        assert tokenizer.decode(tokens) == text
        assert sum(tokenizer.starts_word[token] for token in tokens) == len(text.split())
    assert 1 in tokenizer.encode("the zebra")
    assert tokenizer.decode([0, *tokenizer.encode("cat"), 0]) == "cat"


def test_training_is_deterministic(tmp_path: Path) -> None:
    for name in ("a.model", "b.model"):
        train_tokenizer(iter(TEXTS), TokenizerConfig(type="unigram", vocab_size=30), tmp_path / name)
    assert Tokenizer(tmp_path / "a.model").sha256 == Tokenizer(tmp_path / "b.model").sha256


def test_small_corpus_gives_fewer_pieces_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train_tokenizer(TEXTS, TokenizerConfig(type="unigram", vocab_size=256), tmp_path / "t.model")
    assert Tokenizer(tmp_path / "t.model").vocab_size < 256
    assert "of 256 pieces" in caplog.text


def test_too_few_pieces_for_the_characters(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.vocab_size"):
        train_tokenizer(TEXTS, TokenizerConfig(type="unigram", vocab_size=5), tmp_path / "t.model")


def test_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no labelled text"):
        train_tokenizer(["", " "], TokenizerConfig(), tmp_path / "t.model")


def test_foreign_models_are_refused(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(tmp_path / "foreign"), vocab_size=20, minloglevel=2
    )
    with pytest.raises(ContractError, match="id 0 is '<unk>'"):
        Tokenizer(tmp_path / "foreign.model")
    (tmp_path / "text.model").write_text("no model")
    with pytest.raises(ContractError, match="not a sentencepiece model"):
        Tokenizer(tmp_path / "text.model")
    with pytest.raises(ContractError, match="does not exist"):
        Tokenizer(tmp_path / "none.model")


def test_ids_fit_into_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_tokenizer(TEXTS, TokenizerConfig(), tmp_path / "t.model")
    monkeypatch.setattr("kdtrans.data.tokenizer.MOST_PIECES", 10)
    with pytest.raises(ContractError, match=r"t\.model has \d\d pieces, .* at most 10"):
        Tokenizer(tmp_path / "t.model")
