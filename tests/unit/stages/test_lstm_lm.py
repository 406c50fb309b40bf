"""Training the LSTM language model on a toy language: it learns, by its seed, and the stage refuses what it must."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
import yaml

from kdtrans.artifacts import read_json
from kdtrans.config import LstmLmConfig
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.models.lm import load_lm
from kdtrans.models.lstm_lm import LstmLm
from kdtrans.stages.lstm_lm import main, perplexity, train
from tests.tiny import WORDS, Workspace


def counting(random_: random.Random) -> list[int]:
    """2, 3, 4, 5, 2, ... from anywhere, for 3 to 8 tokens: only the start and the length are uncertain."""
    start = random_.randrange(4)
    return [2 + (start + i) % 4 for i in range(random_.randint(3, 8))]


def test_training_reaches_the_entropy_of_a_toy_language() -> None:
    random_ = random.Random(1)
    sentences = [counting(random_) for _ in range(300)]
    torch.manual_seed(1)
    model = LstmLm(6, LstmLmConfig(dim=16, dropout=0.0, updates=100, batch=16, lr=0.02))
    before = perplexity(model, sentences)
    update, after = train(model, sentences, sentences)
    ideal = math.exp((math.log(4) + math.log(6)) / 6.5)  # start and length, over 5.5 tokens and the end
    assert before > 5
    assert update % 10 == 0
    assert ideal * 0.95 < after < ideal * 1.1
    assert perplexity(model, sentences) == pytest.approx(after)


def test_perplexity_does_not_depend_on_batches() -> None:
    random_ = random.Random(2)
    sentences = [counting(random_) for _ in range(20)]
    torch.manual_seed(0)
    one = LstmLm(6, LstmLmConfig(dim=8, batch=1))
    many = LstmLm(6, LstmLmConfig(dim=8, batch=7))
    many.load_state_dict(one.state_dict())
    assert perplexity(one, sentences) == pytest.approx(perplexity(many, sentences), rel=1e-5)


def run(work: Workspace, out: Path, texts: Path | None = None, **settings: object) -> None:
    config = work.folder / f"{out.name}.yaml"
    values = {"dim": 8, "updates": 4, "batch": 4, **settings}
    config.write_text(yaml.safe_dump({"lstm": values, "transcripts": texts is None}))
    main(config, [work.train], [work.dev], work.tokenizer, out, [texts] if texts else None)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("lstm_lm"), utterances=6)


def test_the_seed_decides(work: Workspace) -> None:
    paths = {name: work.folder / f"{name}.pt" for name in ("one", "same", "other")}
    for name, path in paths.items():
        run(work, path, seed=2 if name == "other" else 1)
    pieces = Tokenizer(work.tokenizer)
    one, same, other = (load_lm("lstm", path, pieces).state_dict() for path in paths.values())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    record = read_json(f"{paths['one']}.run.json")
    assert (record["sentences"], record["unknown"]) == (4, 0)  # two of the six are unlabelled
    assert 1 < record["dev_perplexity"] < pieces.vocab_size * 1.5


def test_texts_are_read_and_what_cannot_be_trained_is_refused(work: Workspace) -> None:
    text = work.folder / "lm.txt"
    text.write_text(" ".join(WORDS) + "\n\nzebras quack\n")
    out = work.folder / "texts.pt"
    run(work, out, text)
    record = read_json(f"{out}.run.json")
    assert (record["sentences"], record["unknown"]) == (1, 1)
    text.write_text("zebras quack\n")
    refused = work.folder / "refused.pt"
    with pytest.raises(ValueError, match="1 sentences, none that the tokenizer can spell"):
        run(work, refused, text)
    with pytest.raises(ValueError, match="never finite in 4 updates"):
        run(work, refused, lr=1e30)
    assert not refused.exists()
