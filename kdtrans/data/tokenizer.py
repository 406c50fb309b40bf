"""Text pieces: a sentencepiece model whose id 0 is the transducer's blank and id 1 is unknown."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from kdtrans.artifacts import sha256_file, write_whole
from kdtrans.config import TokenizerConfig
from kdtrans.contracts import BLANK, UNKNOWN, ContractError

log = logging.getLogger(__name__)

SPACE = "\u2581"  # what sentencepiece writes for the space before a word
MOST_PIECES = 65536  # ids are stored as uint16


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        vocab_size: number of ids, blank and unknown among them.
        pieces: the piece of every id.
        sha256: hash of the model file; checkpoints and targets carry it.
    """

    def __init__(self, path: Path | str) -> None:
        """Read a model.

        Raises:
            ContractError: when the file is not a sentencepiece model, its ids 0 and 1 are not blank and unknown, or it
                has more pieces than fit into uint16.
        """
        if not Path(path).is_file():
            raise ContractError(f"{path} does not exist: run the stage `tokenizer`, or correct tokenizer.model")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except RuntimeError as error:
            raise ContractError(f"{path} is not a sentencepiece model ({error})") from None
        if not self._model.is_control(BLANK) or not self._model.is_unknown(UNKNOWN):
            raise ContractError(
                f"{path}: id {BLANK} is '{self._model.id_to_piece(BLANK)}' and id {UNKNOWN} is "
                f"'{self._model.id_to_piece(UNKNOWN)}', expected a control piece for blank and the unknown piece: "
                "train it with pad_id=0, unk_id=1, bos_id=-1, eos_id=-1"
            )
        self.vocab_size: int = self._model.get_piece_size()
        if self.vocab_size > MOST_PIECES:
            raise ContractError(
                f"{path} has {self.vocab_size} pieces, but ids are stored for at most {MOST_PIECES}: use another"
            )
        self.pieces: list[str] = [self._model.id_to_piece(i) for i in range(self.vocab_size)]
        self.sha256 = sha256_file(path)

    @property
    def starts_word(self) -> list[bool]:
        """Whether the piece of every id is the first of a word."""
        return [piece.startswith(SPACE) for piece in self.pieces]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; characters that the model lacks become UNKNOWN."""
        return self._model.encode(text)

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids; blanks are silent."""
        return self._model.decode(tokens)


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig, path: Path | str) -> None:
    """Train a sentencepiece model and write it whole; the same texts give the same file.

    A corpus too small to fill `config.vocab_size` gives fewer pieces, and a warning.

    Raises:
        ValueError: when there is no text, or (unigram) it has more characters than vocab_size.
    """
    sentences = [text for text in texts if text.strip()]
    if not sentences:
        raise ValueError("no labelled text to train the tokenizer on: check corpus.labelled, or give tokenizer.model")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=config.type,
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,
            use_all_vocab=config.type == "char",
            character_coverage=1.0,
            normalization_rule_name="identity",  # the corpus readers normalise; nothing changes unseen here
            pad_id=BLANK,
            pad_piece="<blank>",
            unk_id=UNKNOWN,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,  # the expectations' order of summation, and so the pieces, would depend on threads
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"sentencepiece cannot train {config.vocab_size} {config.type} pieces on {len(sentences)} sentences "
            f"({error}): raise tokenizer.vocab_size above the number of characters, or use type: char"
        ) from None
    with write_whole(path) as temporary:
        temporary.write_bytes(model.getvalue())
    found = Tokenizer(path).vocab_size
    if config.type == "unigram" and found < config.vocab_size:
        log.warning("the text fills only %d of %d pieces: %s has %d", found, config.vocab_size, path, found)
