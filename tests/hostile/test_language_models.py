"""Broken language models: ARPA files of others, and the LSTM's file."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kdtrans.__main__ import main
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.models.lm import load_lm, score_labels
from tests.hostile.judge import BYTES, TEXT, Argument, Judge, examples, replaced
from tests.tiny import Workspace

KIND = "language models"


def command(work: Workspace, folder: Path, kind: str, lm: Path) -> list[Argument]:
    """`kdtrans dump` fused with a language model."""
    config = folder / f"fused-{kind}.yaml"
    search = {"type": "beam", "lm": kind, "beam": 2, "max_symbols": 1}
    config.write_text(yaml.safe_dump({"top_k": 4, "search": search, "lm_weight": 0.3, "max_duration_s": 4.0}))
    files = ["--cuts", work.train, "--model", work.teacher, "--tokenizer", work.tokenizer]
    return ["dump", "--config", config, *files, "--lm", lm, "--out", folder / f"fused-{kind}.parquet"]


def import_arpa(work: Workspace, folder: Path, arpa: Path) -> list[Argument]:
    """`kdtrans lm` of a file that the configuration names."""
    config = folder / "lm.yaml"
    config.write_text(yaml.safe_dump({"arpa": str(arpa)}))
    return [
        "lm",
        "--config",
        config,
        "--cuts",
        work.train,
        "--tokenizer",
        work.tokenizer,
        "--out",
        folder / "copy.arpa",
    ]


@pytest.fixture(scope="module")
def arpa(work: Workspace, folder: Path) -> Path:
    (folder / "estimate.yaml").write_text("order: 3\n")
    files = ["--cuts", str(work.train), "--tokenizer", str(work.tokenizer)]
    assert main(["lm", "--config", str(folder / "estimate.yaml"), *files, "--out", str(folder / "lm.arpa")]) == 0
    return folder / "lm.arpa"


@pytest.fixture(scope="module")
def lstm(work: Workspace, folder: Path) -> Path:
    (folder / "lstm.yaml").write_text("lstm: {dim: 4, updates: 2}\n")
    files = ["--cuts", str(work.train), "--dev", str(work.dev), "--tokenizer", str(work.tokenizer)]
    assert main(["lstm-lm", "--config", str(folder / "lstm.yaml"), *files, "--out", str(folder / "lstm.pt")]) == 0
    return folder / "lstm.pt"


def is_sound(kind: Any, path: Path, work: Workspace) -> bool:
    """Whether a model gives finite scores that are log-probabilities."""
    scores = score_labels(load_lm(kind, path, Tokenizer(work.tokenizer)), [[2, 3, 4], [5], []])
    return all(-1e5 < score <= 1e-3 for score in scores)


@examples(50)
@given(st.sampled_from(TEXT), st.integers(0, 2**32))
def test_damaged_arpa(
    judge: Judge, work: Workspace, folder: Path, arpa: Path, damage: Callable[[bytes, random.Random], bytes], seed: int
) -> None:
    broken = folder / "broken.arpa"
    broken.write_bytes(damage(arpa.read_bytes(), random.Random(seed)))
    judge.judged(KIND, import_arpa(work, folder, broken), str(broken), lambda done: is_sound("ngram", broken, work))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\\data\\\n\\end\\\n",
        "\\end\\\n",
        "\\1-grams:\n-1 a\n\\2-grams:\n-1 a a\n\\end\\\n",
        "\\data\\\nngram 1=1\n\\2-grams:\n-1 a a\n\\end\\\n",
        "\\data\\\nngram 1=1\nngram 1=1\n\\1-grams:\n-1 one\n\\end\\\n",
        "\\data\\\nngram 2=1\n\\1-grams:\n-1 one\n\\end\\\n",
        "\\data\\\nngram 1=2\n\\1-grams:\n-1 o\n\\end\\\n",
        f"\\data\\\nngram 1={'9' * 5000}\n\\1-grams:\n-1 o\n\\end\\\n",
        "\\data\\\nngram 1=99999999999\n\\1-grams:\n-1 o\n\\end\\\n",
        "\\data\\\nngram 1=2\n\\1-grams:\n-1 o\n-1 o\n\\end\\\n",
        "\\data\\\nngram 1=1\n\\1-grams:\n-1 foreign\n\\end\\\n",
        "\\data\\\nngram 1=1\n\\1-grams:\nnan o\n\\end\\\n",
        "\\data\\\nngram 1=1\n\\1-grams:\ninf o\n\\end\\\n",
        "\\data\\\nngram 1=1\n\\1-grams:\n-1e999 o\n\\end\\\n",
        "\\data\\\nngram 1=1\n\\1-grams:\n-1e308 o\n\\end\\\n",
        "\\data\\\nngram 1=1\n\\1-grams:\n5 o\n\\end\\\n",
        "\\data\\\nngram 1=1\n\\1-grams:\n-1 o 1e300\n\\end\\\n",
        "\\data\\\nngram 1=1\n\\1-grams:\n-1 o o o\n\\end\\\n",
        "\\data\\\nngram 1=1\n\\1-grams:\n-1\n\\end\\\n",
        "\\data\\\nngram 1=1\nngram 2=1\n\\1-grams:\n-1 o 0\n\\2-grams:\n-1 o n\n\\end\\\n",
        "\\data\\\nngram 1=1\nngram 2=2\n\\1-grams:\n-1 o 0\n\\2-grams:\n-1 o o\n-2 o o\n\\end\\\n",
        "\\data\\\nngram 1=1\n\\1-grams:\n-1 o\n",
        "\\data\\\nngram 1=1\n\\1-grams:\n-1 " + "x" * 100_000 + "\n\\end\\\n",
        "<html>404</html>\n" * 1000,
    ],
)
def test_arpa_that_lies(judge: Judge, work: Workspace, folder: Path, text: str) -> None:
    path = folder / "lying.arpa"
    path.write_text(text)
    judge.refused(KIND, import_arpa(work, folder, path), str(path))


def test_arpa_of_others(judge: Judge, work: Workspace, folder: Path, arpa: Path) -> None:
    """Other line ends, a byte order mark, a preface and what stands behind the end change nothing."""
    whole = arpa.read_bytes()
    for content in (
        whole.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + whole,
        b"made by hand\n\n" + whole,
        whole + b"and so on\n",
        whole.replace(b"\t", b" "),
    ):
        with replaced(arpa, content):
            judge.handled(KIND, command(work, folder, "ngram", arpa))
            assert is_sound("ngram", arpa, work)


def test_arpa_that_is_no_file(judge: Judge, work: Workspace, folder: Path, arpa: Path) -> None:
    for content in (None, b"\x00" * 1000, b"\x7fELF" + bytes(range(256)) * 100):
        with replaced(arpa, content):
            judge.refused(KIND, command(work, folder, "ngram", arpa), str(arpa))
    judge.refused(KIND, command(work, folder, "ngram", folder / "nowhere.arpa"), "nowhere.arpa")
    judge.refused(KIND, command(work, folder, "ngram", work.teacher), str(work.teacher))


@examples(15)
@given(st.sampled_from(BYTES), st.integers(0, 2**32))
def test_damaged_lstm(
    judge: Judge, work: Workspace, folder: Path, lstm: Path, damage: Callable[[bytes, random.Random], bytes], seed: int
) -> None:
    with replaced(lstm, damage(lstm.read_bytes(), random.Random(seed))):
        judge.judged(KIND, command(work, folder, "lstm", lstm), str(lstm), lambda done: is_sound("lstm", lstm, work))


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no dictionary": lambda content: [1, 2],
    "a number": lambda content: 7,
    "a tensor": lambda content: torch.zeros(3),
    "another kind": lambda content: content | {"lm": "gpt", "more": 1},
    "no weights": lambda content: content | {"state_dict": {}},
    "weights that are none": lambda content: content | {"state_dict": [1]},
    "a weight that is none": lambda content: content | {"state_dict": dict.fromkeys(content["state_dict"], 1)},
    "nan": lambda content: (
        content | {"state_dict": {name: value * float("nan") for name, value in content["state_dict"].items()}}
    ),
    "wider": lambda content: content | {"config": content["config"] | {"dim": 8}},
    "far too wide": lambda content: content | {"config": content["config"] | {"dim": 10**12}},
    "no config": lambda content: content | {"config": None},
    "config of another": lambda content: content | {"config": {"type": "unigram"}},
    "more words": lambda content: content | {"vocab_size": content["vocab_size"] + 1},
    "no words": lambda content: content | {"vocab_size": "many"},
    "minus words": lambda content: content | {"vocab_size": -5},
    "another tokenizer": lambda content: content | {"tokenizer_sha256": "0" * 64},
    "no tokenizer": lambda content: content | {"tokenizer_sha256": None},
}


@pytest.mark.parametrize("change", CHANGES)
def test_lstm_that_lies(judge: Judge, work: Workspace, folder: Path, lstm: Path, change: str) -> None:
    path = folder / "lying.pt"
    torch.save(CHANGES[change](torch.load(lstm, weights_only=True)), path)
    judge.refused(KIND, command(work, folder, "lstm", path), str(path))
    (folder / "decode.yaml").write_text("searches: {s: {type: beam, lm: lstm}}\n")
    files = ["--model", work.teacher, "--cuts", work.dev, "--tokenizer", work.tokenizer, "--lm", path]
    tune = ["tune-lm", "--config", folder / "decode.yaml", "--search", "s", *files, "--out", folder / "weight.json"]
    judge.refused(KIND, tune, str(path))


@pytest.mark.parametrize("weight", ["NaN", "Infinity", "-1", "true", "null", '"0.2"', "[]", "1e999"])
def test_weight_that_is_none(judge: Judge, work: Workspace, folder: Path, arpa: Path, weight: str) -> None:
    path = folder / "lm_weight.json"
    (folder / "decode.yaml").write_text("searches: {s: {type: beam, lm: ngram}}\n")
    files = ["--model", work.teacher, "--cuts", work.dev, "--tokenizer", work.tokenizer, "--lm", arpa]
    decode = ["decode", "--config", folder / "decode.yaml", "--search", "s", *files, "--out", folder / "d.parquet"]
    for content in (f'{{"lm_weight": {weight}}}', weight, "{", ""):
        path.write_text(content)
        judge.refused(KIND, [*decode, "--lm-weight", path], str(path))
