"""Language models over token ids, as searches use them.

Shapes: N hypotheses, V token ids. A search state is one tensor with the batch first, so that a search reorders
hypotheses by indexing it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from kdtrans.config import SearchConfig
from kdtrans.models.lstm_lm import LstmLm, read_lstm_lm
from kdtrans.models.ngram import Ngram


class LanguageModel(Protocol):
    """What a search asks of a language model; Ngram, LstmLm and DensityRatio are such."""

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


class DensityRatio(nn.Module):
    """A language model less a share of another one: log P(label) - ratio * log P_source(label).

    The source is an n-gram of the transcripts that the transducer was trained on, in place of what it has learnt of
    their language itself (McDermott et al. 2019, arXiv 2002.11268). A score, not a distribution. A state is both
    models': a row of the language model's, flat, and the source's number behind it, which 32 bits hold exactly up to
    2^24.
    """

    def __init__(self, lm: Ngram | LstmLm, source: Ngram, ratio: float) -> None:
        """Join two models over the same tokens.

        Args:
            lm: the language model.
            source: that of the transcripts.
            ratio: not negative.

        Raises:
            ValueError: when the source has more states than a state can number.
        """
        super().__init__()
        if source.num_states > 2**24:
            raise ValueError(f"an n-gram of {source.num_states:,} states is too large a source: lower lm.order")
        self.lm, self.source, self.ratio = lm, source, ratio
        self._shape = lm.start(1).shape[1:]

    def start(self, batch: int) -> Tensor:
        """States (batch, S) at the start of a sentence."""
        return self._join(self.lm.start(batch), self.source.start(batch))

    def score(self, state: Tensor) -> Tensor:
        """Scores (N, V) of every token id after each state; 0 for blank, which is no word."""
        lm_state, source_N = self._apart(state)
        return self.lm.score(lm_state) - self.ratio * self.source.score(source_N)

    def advance(self, state: Tensor, token_N: Tensor) -> Tensor:
        """States (N, S) after one more token each."""
        lm_state, source_N = self._apart(state)
        return self._join(self.lm.advance(lm_state, token_N), self.source.advance(source_N, token_N))

    def _join(self, lm_state: Tensor, source_N: Tensor) -> Tensor:
        return torch.cat([lm_state.reshape(len(lm_state), -1), source_N[:, None].to(lm_state.dtype)], 1)

    def _apart(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return state[:, :-1].reshape(-1, *self._shape), state[:, -1].long()


def load_fusion(search: SearchConfig, paths: list[Path], tokenizer: Tokens) -> Ngram | LstmLm | DensityRatio:
    """Read the language model of a search, in eval mode.

    Args:
        search: a search with lm.
        paths: its file; with density_ratio the n-gram of the transcripts behind it.
        tokenizer: of the system that is decoded.

    Raises:
        ValueError: when there are other than as many files.
        ContractError: naming the file, when it is no such model or belongs to another tokenizer.
    """
    asked = 2 if search.density_ratio else 1
    if search.lm is None or len(paths) != asked:
        raise ValueError(
            f"lm: {search.lm} with density_ratio: {search.density_ratio:g} is of {asked} files, but --lm names "
            f"{len(paths)}: give the language model, and with density_ratio the n-gram of the transcripts behind it"
        )
    lm = load_lm(search.lm, paths[0], tokenizer)
    return DensityRatio(lm, Ngram(paths[1], tokenizer), search.density_ratio).eval() if asked == 2 else lm


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
