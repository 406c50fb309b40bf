"""Language models over token ids, as searches use them.

Shapes: N hypotheses, V token ids. A search state is one tensor with the batch first, so that a search reorders
hypotheses by indexing it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kdtrans.models.lstm_lm import LstmLm, read_lstm_lm
from kdtrans.models.ngram import Ngram


class LanguageModel(Protocol):
    """What a search asks of a language model; Ngram and LstmLm are such."""

    def start(self, batch: int) -> Tensor:
        """States (batch, ...) at the start of a sentence."""
        ...

    def score(self, state: Tensor) -> Tensor:
        """Natural log-probability of every token id after each state, (N, V); 0 for blank, which is no word."""
        ...

    def advance(self, state: Tensor, token_N: Tensor) -> Tensor:
        """States (N, ...) after one more token each."""
        ...


class Tokens(Protocol):
    """What is asked of a tokenizer: the piece of every id, and its identity."""

    pieces: list[str]
    sha256: str


def load_lm(kind: Literal["ngram", "lstm"], path: Path, tokenizer: Tokens) -> Ngram | LstmLm:
    """Read a language model in eval mode: a LanguageModel that `to(device)` moves.

    Raises:
        ContractError: naming the file, when it is no such model or belongs to another tokenizer.
    """
    return Ngram(path, tokenizer).eval() if kind == "ngram" else read_lstm_lm(path, tokenizer.sha256)


@torch.inference_mode()
def score_labels(lm: LanguageModel, tokens: list[list[int]]) -> list[float]:
    """Natural log-probability of each label sequence, sentence end excluded, as shallow fusion adds it up."""
    if not tokens:
        return []
    state = lm.start(len(tokens))
    padded_NU = pad_sequence([torch.tensor(labels, dtype=torch.long) for labels in tokens], batch_first=True)
    total_N = torch.zeros(len(tokens), dtype=torch.float64, device=state.device)
    # Behind its end a sequence has blanks, which score 0 and lead anywhere.
    for token_N in padded_NU.to(state.device).unbind(1):
        total_N += lm.score(state).gather(1, token_N[:, None])[:, 0]
        state = lm.advance(state, token_N)
    return total_N.tolist()
