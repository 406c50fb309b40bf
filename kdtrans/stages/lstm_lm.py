"""Stage lstm-lm: transcripts and texts -> LSTM language model over tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from kdtrans.config import LstmLmConfig
    from kdtrans.models.lstm_lm import LstmLm

Sentences = list[list[int]]


def main(
    config: Path, cuts: list[Path], dev: list[Path], tokenizer: Path, out: Path, texts: list[Path] | None = None
) -> None:
    """Train an LSTM over the tokenizer's pieces and keep the weights with the lowest dev perplexity.

    Args:
        config: YAML of the language models (LmConfig).
        cuts: manifests whose labelled transcripts are read, if the configuration says so.
        dev: manifests of the development set; unlabelled cuts are left out.
        tokenizer: sentencepiece model.
        out: model file to write.
        texts: text files, a sentence a line, besides those that the configuration names.
    """
    import torch

    from kdtrans import config as configuration
    from kdtrans.artifacts import run_record
    from kdtrans.data.tokenizer import Tokenizer
    from kdtrans.models.lstm_lm import LstmLm, write_lstm_lm
    from kdtrans.stages.lm import read_sentences

    settings = configuration.read(configuration.LmConfig, config)
    facts = settings.model_dump(mode="json", include={"lstm", "transcripts", "texts"})
    files = [*map(Path, settings.texts), *(texts or [])]
    with run_record(out, "lstm-lm", facts, [tokenizer, *cuts, *dev, *files]) as record:
        pieces = Tokenizer(tokenizer)
        sentences, unknown = read_sentences(cuts if settings.transcripts else [], files, pieces)
        dev_sentences, dev_unknown = read_sentences(dev, [], pieces)
        torch.manual_seed(settings.lstm.seed)
        model = LstmLm(pieces.vocab_size, settings.lstm)
        update, dev_perplexity = train(model, sentences, dev_sentences)
        write_lstm_lm(out, model, pieces.sha256, dev_perplexity)
        record |= {"sentences": len(sentences), "unknown": unknown, "dev_sentences": len(dev_sentences)}
        record |= {"dev_unknown": dev_unknown, "dev_perplexity": round(dev_perplexity, 3), "update": update}
    print(
        f"{out}: {len(sentences)} sentences, {sum(map(len, sentences))} pieces, dev perplexity {dev_perplexity:.2f} a "
        f"piece after {update} updates; left out {unknown} sentences with characters that the tokenizer lacks",
        flush=True,
    )


def train(model: LstmLm, sentences: Sentences, dev: Sentences) -> tuple[int, float]:
    """Minimise the mean negative log-probability of a token; the model ends with the best weights of ten evaluations.

    Args:
        model: with the configuration of its training.
        sentences: token ids.
        dev: token ids that it is evaluated on.

    Returns:
        The update with the lowest dev perplexity, and that perplexity a token, sentence ends among them.

    Raises:
        ValueError: when the dev perplexity is never finite.
    """
    import torch

    config = model.config
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=config.updates)
    best_update, best_perplexity = 0, float("inf")
    best_state: dict[str, Tensor] = {}
    for update, (tokens_NU, lengths_N) in enumerate(_stream(sentences, config), 1):
        model.train()
        loss = model.nll(tokens_NU, lengths_N).sum() / (lengths_N + 1).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if update % max(config.updates // 10, 1) == 0 or update == config.updates:
            found = perplexity(model, dev)
            print(f"update {update}: loss {float(loss.detach()):.3f}, dev perplexity {found:.2f} a piece", flush=True)
            if found < best_perplexity:
                best_update, best_perplexity = update, found
                best_state = {name: value.clone() for name, value in model.state_dict().items()}
    if not best_state:
        raise ValueError(f"the dev perplexity was never finite in {config.updates} updates: lower lm.lstm.lr")
    model.load_state_dict(best_state)
    return best_update, best_perplexity


def perplexity(model: LstmLm, sentences: Sentences) -> float:
    """Perplexity a token, sentence ends among them."""
    import torch

    model.eval()
    ordered = sorted(sentences, key=len)
    size = model.config.batch
    with torch.inference_mode():
        batches = [_padded(ordered[first : first + size]) for first in range(0, len(ordered), size)]
        nll = sum(float(model.nll(tokens_NU, lengths_N).double().sum()) for tokens_NU, lengths_N in batches)
    tokens = sum(len(sentence) + 1 for sentence in sentences)
    return float(torch.tensor(nll / tokens).exp())


def _stream(sentences: Sentences, config: LstmLmConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """As many batches as there are updates, of sentences of similar lengths, in a seeded order."""
    import numpy as np

    random = np.random.default_rng(config.seed)
    lengths = np.array([len(sentence) for sentence in sentences])
    left = config.updates
    while left > 0:
        # A little noise on the lengths, so that neighbours change from epoch to epoch.
        order = np.argsort((lengths + 1) * random.uniform(0.9, 1.1, len(lengths)))
        batches = [order[first : first + config.batch] for first in range(0, len(order), config.batch)]
        for i in random.permutation(len(batches))[:left]:
            yield _padded([sentences[j] for j in batches[i]])
        left -= len(batches)


def _padded(sentences: Sentences) -> tuple[Tensor, Tensor]:
    """(N, U) token ids and lengths (N,)."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tensors = [torch.tensor(sentence, dtype=torch.long) for sentence in sentences]
    return pad_sequence(tensors, batch_first=True), torch.tensor([len(sentence) for sentence in sentences])
