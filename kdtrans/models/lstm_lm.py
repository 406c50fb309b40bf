"""An LSTM language model over token ids, for shallow fusion.

Blank is no word, so its id stands for the sentence boundary here: the start as an input, the end as an output. No
probability is lost on it, and every distribution has V classes: the end and all token ids but blank.

Shapes: N sentences or hypotheses, U tokens, V token ids, L layers, D width. A state is hidden and cell, (N, 2, L, D);
the hidden vector of the last layer is all that the next distribution needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtrans.artifacts import write_whole
from kdtrans.config import LstmLmConfig, validate
from kdtrans.contracts import BLANK, ContractError
from kdtrans.models.saved import load_plain

BOUNDARY = BLANK
KEYS = {"lm", "config", "vocab_size", "tokenizer_sha256", "dev_perplexity", "state_dict"}


class LstmLm(nn.Module):
    """Embedding, LSTM, and the embedding again as output weights (Press and Wolf 2017, arXiv 1608.05859)."""

    def __init__(self, vocab_size: int, config: LstmLmConfig) -> None:
        super().__init__()
        self.vocab_size, self.config = vocab_size, config
        self.embedding = nn.Embedding(vocab_size, config.dim)
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)  # so that the first logits are of order 1
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.dropout = nn.Dropout(config.dropout)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(config.dim, config.dim, config.layers, batch_first=True, dropout=between)

    def forward(self, tokens_NU: Tensor) -> Tensor:
        """Log-probabilities (N, U + 1, V) after every prefix of (N, U) token ids; BOUNDARY's column: sentence end."""
        output_NUD, _ = self.lstm(self.dropout(self.embedding(F.pad(tokens_NU, (1, 0), value=BOUNDARY))))
        return self._classify(self.dropout(output_NUD))

    def nll(self, tokens_NU: Tensor, lengths_N: Tensor) -> Tensor:
        """Negative log-probability of whole sentences, their end included: padded (N, U), lengths -> (N,) nats."""
        places_U = torch.arange(tokens_NU.shape[1] + 1, device=tokens_NU.device)
        next_NU = F.pad(tokens_NU, (0, 1)).masked_fill(places_U >= lengths_N[:, None], BOUNDARY)
        logp_NU = self(tokens_NU).gather(2, next_NU[..., None])[..., 0]
        return -logp_NU.masked_fill(places_U > lengths_N[:, None], 0.0).sum(1)

    def start(self, batch: int) -> Tensor:
        """States (batch, 2, L, D) at the start of a sentence."""
        device = self.bias.device
        state = torch.zeros(batch, 2, self.config.layers, self.config.dim, device=device)
        return self.advance(state, torch.full((batch,), BOUNDARY, device=device))

    def score(self, state: Tensor) -> Tensor:
        """Natural log-probability of every token id after each state, (N, V); 0 for blank, which is no word."""
        score_NV = self._classify(state[:, 0, -1])
        score_NV[:, BLANK] = 0.0
        return score_NV

    def advance(self, state: Tensor, token_N: Tensor) -> Tensor:
        """States (N, 2, L, D) after one more token each."""
        hidden, cell = state.transpose(0, 1).transpose(1, 2).contiguous().unbind(0)
        _, (hidden, cell) = self.lstm(self.embedding(token_N)[:, None], (hidden, cell))
        return torch.stack([hidden, cell]).transpose(1, 2).transpose(0, 1)

    def _classify(self, output_D: Tensor) -> Tensor:
        return F.linear(output_D, self.embedding.weight, self.bias).float().log_softmax(-1)


def write_lstm_lm(path: Path, model: LstmLm, tokenizer_sha256: str, dev_perplexity: float) -> None:
    """Write a whole file with weights, configuration and the tokenizer's identity."""
    content = {
        "lm": "lstm",
        "config": model.config.model_dump(mode="json"),
        "vocab_size": model.vocab_size,
        "tokenizer_sha256": tokenizer_sha256,
        "dev_perplexity": dev_perplexity,
        "state_dict": model.state_dict(),
    }
    with write_whole(path) as temporary:
        torch.save(content, temporary)


def read_lstm_lm(path: Path, tokenizer_sha256: str) -> LstmLm:
    """A trained model in eval mode.

    Raises:
        ContractError: naming the file, when it is no whole LSTM language model or was trained with another tokenizer.
    """
    try:
        content: dict[str, Any] = load_plain(path)
    except FileNotFoundError:
        raise ContractError(f"{path} does not exist: run the stage `lstm-lm`") from None
    except ValueError as error:
        raise ContractError(f"{path} is no LSTM language model ({error}): run the stage `lstm-lm` again") from None
    if not isinstance(content, dict) or set(content) != KEYS:
        raise ContractError(f"{path} is no LSTM language model: give the file that the stage `lstm-lm` wrote")
    if content["tokenizer_sha256"] != tokenizer_sha256:
        raise ContractError(
            f"{path} was trained with tokenizer {str(content['tokenizer_sha256'])[:12]}, this run uses "
            f"{tokenizer_sha256[:12]}: train it again or give its tokenizer"
        )
    config = validate(LstmLmConfig, content["config"], str(path))
    try:
        model = LstmLm(content["vocab_size"], config)
        model.load_state_dict(content["state_dict"])
    except (TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ContractError(f"{path}: configuration and weights do not fit each other ({reason})") from None
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise ContractError(f"{path} has weights that are no numbers: run the stage `lstm-lm` again")
    return model.eval()
