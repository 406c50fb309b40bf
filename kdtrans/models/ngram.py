"""A token n-gram as a back-off automaton on tensors, for shallow fusion: a models.lm.LanguageModel.

A state is a context: the empty one (state 0) or an n-gram below the highest order. An arc leads from a context over a
token for every n-gram of two or more words; what has no arc backs off. Memory goes with the number of n-grams.
Shapes: B hypotheses, V token ids, S states, A arcs, W token ids with </s> and <s>.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kdtrans.contracts import BLANK, UNKNOWN, ContractError
from kdtrans.models.ngram_estimate import BEGIN, END, NEVER, UNK, NgramModel, read_arpa

LN10 = math.log(10.0)
TABLE = 2**19
"""Most pairs of state and token id of a model that is laid out whole, so that a step is one look-up: 6 MB."""


class Vocabulary(Protocol):
    """What is asked of a tokenizer: the piece of every id, <unk> at id 1."""

    pieces: list[str]


class Ngram(nn.Module):
    """Back-off automaton over token ids; `to(device)` moves it."""

    backoff: Tensor  # (S,) log back-off weight
    fail: Tensor  # (S,) next shorter state
    first: Tensor  # (S + 1,) place of each state's first arc
    key: Tensor  # (A,) state * W + token, sorted
    logp: Tensor  # (A,)
    next: Tensor  # (A,) state that the arc leads to
    unigram: Tensor  # (W,) log-probability
    unigram_next: Tensor  # (W,) state after the token alone
    score_table: Tensor | None  # (S, V): what score() says of each state; None: the model is too large
    next_table: Tensor | None  # (S, V): what advance() says

    def __init__(self, path: Path | str, tokenizer: Vocabulary) -> None:
        """Read an ARPA file over the tokenizer's pieces; ids that it lacks get the probability of its <unk>.

        Raises:
            ContractError: naming the file, when it is not ARPA or a word of it is not a piece.
        """
        super().__init__()
        model, pieces = read_arpa(path), tokenizer.pieces
        self.vocab_size, self.order = len(pieces), len(model.orders)
        self._width = self.vocab_size + 2  # ids, then </s> and <s>
        column = {piece: i for i, piece in enumerate(pieces)} | {END: self.vocab_size, BEGIN: self.vocab_size + 1}
        foreign = [word for word in model.words if word not in column and word != UNK]
        if foreign:
            raise ContractError(
                f"{path}: '{foreign[0]}' and {len(foreign) - 1} more of its {len(model.words)} words are not pieces of "
                "the tokenizer: estimate it over text that this tokenizer has cut into pieces"
            )
        unk = next((i for i, word in enumerate(model.words) if word == UNK), None)
        tokens = np.array([column.get(word, UNKNOWN) for word in model.words])

        unigrams, *higher = model.orders
        unigram = np.full(self._width, NEVER if unk is None else unigrams.logp[unk])
        unigram[self.vocab_size :] = NEVER
        unigram[tokens] = unigrams.logp
        unigram_next = np.zeros(self._width, dtype=np.int64)
        if higher:
            unigram_next[tokens] = 1 + np.arange(len(tokens))
        self._buffer("unigram", unigram * LN10)
        self._buffer("unigram_next", unigram_next)
        self.register_buffer("score_table", None, persistent=False)
        self.register_buffer("next_table", None, persistent=False)
        self._build_arcs(model, tokens)
        if len(self.fail) * self.vocab_size <= TABLE:
            self._build_tables()

    @property
    def num_states(self) -> int:
        """S: states are the numbers below it."""
        return len(self.fail)

    def start(self, batch: int) -> Tensor:
        """States (batch,) at the start of a sentence."""
        return self.unigram_next[self._width - 1].expand(batch)

    def score(self, state_B: Tensor) -> Tensor:
        """Natural log-probability of every token id in each state, (B, V); 0 for blank, which is no word."""
        if self.score_table is not None:
            return self.score_table.index_select(0, state_B)
        score_BV = self._score_all(state_B)[:, : self.vocab_size]
        score_BV[:, BLANK] = 0.0
        return score_BV

    def advance(self, state_B: Tensor, token_B: Tensor) -> Tensor:
        """States (B,) after one more token each: the longest context that the model knows."""
        if self.next_table is not None:
            return self.next_table[state_B, token_B]
        next_B = self.unigram_next[token_B]
        pending_B = torch.ones_like(token_B, dtype=torch.bool)
        for _ in range(self.order - 1):
            key_B = state_B * self._width + token_B
            arc_B = torch.searchsorted(self.key, key_B)
            found_B = pending_B & (self.key[arc_B] == key_B)
            next_B = torch.where(found_B, self.next[arc_B], next_B)
            pending_B = pending_B & ~found_B
            state_B = self.fail[state_B]
        return next_B

    def _score_all(self, state_B: Tensor) -> Tensor:
        """(B, W): the token ids, </s> and <s>."""
        chain = [state_B]
        for _ in range(self.order - 2):
            chain.append(self.fail[chain[-1]])
        score_BW = self.unigram.repeat(len(state_B), 1)
        rows_B = torch.arange(len(state_B), device=state_B.device)
        # From the shortest context up: what the longer one knows overwrites the backed-off rest. State 0 knows nothing.
        for context_B in reversed(chain):
            score_BW += self.backoff[context_B][:, None]
            first_B = self.first[context_B]
            count_B = self.first[context_B + 1] - first_B
            rows_N = rows_B.repeat_interleave(count_B)
            offset_B = first_B - (count_B.cumsum(0) - count_B)
            arcs_N = torch.arange(len(rows_N), device=state_B.device) + offset_B[rows_N]
            score_BW[rows_N, self.key[arcs_N] % self._width] = self.logp[arcs_N]
        return score_BW

    def _build_arcs(self, model: NgramModel, tokens: np.ndarray) -> None:
        """Add one order of n-grams after the other; the arcs so far say where the next order's contexts back off to."""
        below = model.orders[0]
        backoff = [np.zeros(1), below.backoff]
        first_state, next_state = 1, 1 + len(below.word)  # of the order below; of this one
        self._buffer("fail", torch.zeros(next_state, dtype=torch.long))
        no_arcs = torch.zeros(0, dtype=torch.long)
        arcs = [(no_arcs, no_arcs, torch.zeros(0))]
        self._sort_arcs(arcs)
        for m, grams in enumerate(model.orders[1:], start=2):
            source_A, token_A = torch.from_numpy(first_state + grams.context), torch.from_numpy(tokens[grams.word])
            fail_A = self.advance(self.fail[source_A], token_A)
            if m < self.order:
                next_A = torch.arange(next_state, next_state + len(grams.word))
                backoff.append(grams.backoff)
                self._buffer("fail", torch.cat([self.fail, fail_A]))
            else:
                next_A = fail_A
            arcs.append((source_A * self._width + token_A, next_A, torch.from_numpy(grams.logp * LN10).float()))
            self._sort_arcs(arcs)
            first_state, next_state = next_state, next_state + len(grams.word)
        self._buffer("backoff", np.concatenate(backoff) * LN10)
        self._buffer("first", torch.searchsorted(self.key, torch.arange(len(self.fail) + 1) * self._width))

    def _build_tables(self) -> None:
        state_S, token_V = torch.arange(len(self.fail)), torch.arange(self.vocab_size)
        next_N = self.advance(state_S.repeat_interleave(len(token_V)), token_V.repeat(len(state_S)))
        score_SV = self.score(state_S)
        self._buffer("next_table", next_N.view(len(state_S), -1))
        self._buffer("score_table", score_SV)

    def _sort_arcs(self, arcs: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        key_A, next_A, logp_A = (torch.cat(column) for column in zip(*arcs, strict=True))
        key_A, order_A = key_A.sort()
        # A key that nothing matches ends the list, so that a search past the last arc needs no check.
        self._buffer("key", torch.cat([key_A, torch.tensor([torch.iinfo(torch.long).max])]))
        self._buffer("next", torch.cat([next_A[order_A], torch.zeros(1, dtype=torch.long)]))
        self._buffer("logp", torch.cat([logp_A[order_A], torch.zeros(1)]))

    def _buffer(self, name: str, values: Tensor | np.ndarray) -> None:
        tensor = torch.as_tensor(values)
        self.register_buffer(name, tensor.float() if tensor.is_floating_point() else tensor, persistent=False)
