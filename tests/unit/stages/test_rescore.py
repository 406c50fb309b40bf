"""Rescoring: n-best of one search ranked by another language model, without an acoustic model."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml
from lhotse import MonoCut, SupervisionSegment

from kdtrans.artifacts import read_json
from kdtrans.config import ConfigError, DecodeConfig, LstmLmConfig, TokenizerConfig, validate
from kdtrans.contracts import HYPOTHESES, ContractError, read_footer, read_table, write_table
from kdtrans.data.manifest import write_cuts
from kdtrans.data.tokenizer import Tokenizer, train_tokenizer
from kdtrans.models.lstm_lm import LstmLm, write_lstm_lm
from kdtrans.stages.rescore import main, ranked, scored

NBEST = {"u0": ["a cat", "the cat", "the cat sat"], "u1": ["dog ran", "a dog ran"], "u2": [""]}
TEXTS = {"u0": "the cat", "u1": "a dog ran", "u2": None}
SEARCHES = {"beam": {"type": "beam"}, "again": {"type": "beam", "lm": "lstm", "rescore": "beam"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hypotheses (nbest.parquet), their manifest, a tokenizer and an untrained language model."""
    folder = tmp_path_factory.mktemp("rescore")
    train_tokenizer(["the cat sat", "a dog ran"], TokenizerConfig(type="char"), folder / "tokenizer.model")
    tokenizer = Tokenizer(folder / "tokenizer.model")
    rows = []
    for utt_id, texts in NBEST.items():
        for rank, text in enumerate(texts):
            tokens = tokenizer.encode(text) if text else []
            row = {"utt_id": utt_id, "rank": rank, "text": text, "tokens": tokens, "token_frames": tokens}
            row |= {"token_logp": [-0.1] * len(tokens), "score": -1.0 - rank, "am_score": -1.0 - 0.1 * rank}
            rows.append(row | {"lm_score": 0.0, "num_frames": 99, "seconds": 4.0})
    footer = {"search": "beam", "tokenizer_sha256": tokenizer.sha256, "decode_seconds": "2.0", "lm_weight": "0.0"}
    write_table(pa.Table.from_pylist(rows, schema=HYPOTHESES), folder / "nbest.parquet", footer)
    write_table(pa.Table.from_pylist(rows, schema=HYPOTHESES), folder / "other.parquet", footer | {"search": "beam_lm"})
    cuts = [
        MonoCut(utt_id, 0.0, 4.0, 0, [SupervisionSegment(utt_id, utt_id, 0.0, 4.0, text=text)])
        for utt_id, text in TEXTS.items()
    ]
    write_cuts(cuts, folder / "cuts.jsonl.gz")
    torch.manual_seed(0)
    model = LstmLm(tokenizer.vocab_size, LstmLmConfig(dim=8))
    write_lstm_lm(folder / "lstm.pt", model, tokenizer.sha256, 9.0)
    (folder / "decode.yaml").write_text(yaml.safe_dump({"searches": SEARCHES, "lm_weights": [0.0, 0.5]}))
    return folder


def rescore(folder: Path, nbest: str = "nbest.parquet", search: str = "again") -> None:
    main(
        config=folder / "decode.yaml",
        search=search,
        nbest=folder / nbest,
        dev=folder / "nbest.parquet",
        dev_cuts=[folder / "cuts.jsonl.gz"],
        tokenizer=folder / "tokenizer.model",
        lm=[folder / "lstm.pt"],
        out=folder / "again.parquet",
    )


@torch.no_grad()
def test_hypotheses_are_ranked_by_the_new_sum(folder: Path) -> None:
    rescore(folder)
    before = read_table(folder / "nbest.parquet", HYPOTHESES).to_pylist()
    rows = read_table(folder / "again.parquet", HYPOTHESES).to_pylist()
    footer = read_footer(folder / "again.parquet")
    weight = float(footer["lm_weight"])
    assert weight in (0.0, 0.5)
    assert footer["search"] == "again"
    assert float(footer["decode_seconds"]) >= 2.0
    tried = read_json(folder / "again.parquet.run.json")["tried"]
    assert tried[str(weight)] == min(tried.values())
    assert list(dict.fromkeys(row["utt_id"] for row in rows)) == ["u0", "u1", "u2"]
    assert sorted((row["utt_id"], row["text"]) for row in rows) == sorted(
        (row["utt_id"], row["text"]) for row in before
    )
    content = torch.load(folder / "lstm.pt", weights_only=True)
    model = LstmLm(content["vocab_size"], LstmLmConfig(dim=8)).eval()
    model.load_state_dict(content["state_dict"])
    for row in rows:
        whole = model(torch.tensor([row["tokens"]], dtype=torch.long))[0]  # the sentence at once
        expected = sum(float(whole[u, token]) for u, token in enumerate(row["tokens"]))
        assert row["lm_score"] == pytest.approx(expected, abs=1e-4)
        assert row["score"] == pytest.approx(row["am_score"] + weight * row["lm_score"], abs=1e-4)
    for utt_id in NBEST:
        mine = [row for row in rows if row["utt_id"] == utt_id]
        assert [row["rank"] for row in mine] == list(range(len(mine)))
        assert [row["score"] for row in mine] == sorted((row["score"] for row in mine), reverse=True)


def test_weight_zero_ranks_by_the_acoustics_and_batches_do_not_matter(folder: Path) -> None:
    rows = read_table(folder / "nbest.parquet", HYPOTHESES).to_pylist()
    model = LstmLm(Tokenizer(folder / "tokenizer.model").vocab_size, LstmLmConfig(dim=8)).eval()
    one, several = scored(rows, model, batch=1), scored(rows, model)
    for mine, theirs in zip(one, several, strict=True):
        assert mine["lm_score"] == pytest.approx(theirs["lm_score"], abs=1e-5)
    assert [row["text"] for row in ranked(several, 0.0)] == [text for texts in NBEST.values() for text in texts]


def test_refusals(folder: Path) -> None:
    with pytest.raises(ContractError, match=r"other.parquet is of the search 'beam_lm', and 'again' rescores 'beam'"):
        rescore(folder, nbest="other.parquet")
    with pytest.raises(ValueError, match="needs rescore and lm in the search 'beam'"):
        rescore(folder, search="beam")


@pytest.mark.parametrize(
    ("searches", "message"),
    [
        ({"again": {"type": "beam", "lm": "lstm", "rescore": "beam"}}, "'beam' is no search of type beam"),
        ({"beam": {}, "again": {"type": "beam", "lm": "lstm", "rescore": "beam"}}, "'beam' is no search of type beam"),
        (
            {"beam": {"type": "beam"}, "again": {"type": "beam", "lm": "lstm", "rescore": "beam", "chunk_ms": 320}},
            "has another chunk_ms",
        ),
    ],
)
def test_a_search_that_is_rescored_has_to_be_there(searches: dict[str, dict[str, str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(DecodeConfig, {"searches": searches}, "test")
