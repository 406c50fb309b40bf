"""`kdtrans inspect` of every kind of file, of a directory, and of what it does not know."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from lhotse import MonoCut, Recording, SupervisionSegment

from kdtrans import __main__ as command_line
from kdtrans import contracts
from kdtrans.config import TokenizerConfig
from kdtrans.contracts import MODEL_KEYS
from kdtrans.data.manifest import write_cuts
from kdtrans.data.tokenizer import Tokenizer, train_tokenizer
from kdtrans.stages.inspect import main
from tests.unit.report.shards import target as target_row
from tests.unit.report.shards import write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One file of each kind."""
    with gzip.open(tmp_path / "cuts.00000.jsonl.gz", "wt") as file:
        for utt_id, text in {"u1": "turn [on]", "u2": None}.items():
            supervision = {"id": utt_id, "speaker": "s1", "text": text}
            file.write(json.dumps({"id": utt_id, "duration": 1800.0, "supervisions": [supervision]}) + "\n")
    target = dict.fromkeys(contracts.TARGETS.names) | {"utt_id": "u1", "rank": 0, "origin": "greedy"}
    target |= {"num_frames": 2, "path": [0, 5, 0], "topk_ids": [5, 0] * 3, "topk_logp": np.log([0.5, 0.25] * 3)}
    target |= {"confidence": 0.75, "text": "turn on", "weight": 1.0}
    table = pa.Table.from_pylist([target], schema=contracts.TARGETS)
    contracts.write_table(table, tmp_path / "part-00000.parquet", {"top_k": "2", "teacher_sha256": "abc"})
    row = dict.fromkeys(contracts.HYPOTHESES.names) | {"utt_id": "u1", "text": "turn off", "rank": 0}
    row |= {"score": -1.0, "am_score": -1.0, "lm_score": 0.0}
    hypotheses = pa.Table.from_pylist([row], schema=contracts.HYPOTHESES)
    contracts.write_table(hypotheses, tmp_path / "test.parquet", {"lm_weight": "0.3"})
    aligned = {"utt_id": "u1", "tokens": [5, 6], "token_frames": [1, 3], "num_frames": 5, "path_logp": -2.5}
    contracts.write_table(pa.Table.from_pylist([aligned], schema=contracts.ALIGNMENTS), tmp_path / "align.parquet")
    state = {"encoder.layer.weight": torch.zeros(30, 10), "ctc.weight": torch.zeros(100)}
    facts = {"kind": "student", "step": 7, "dev_wer": 12.5, "config": {"joiner_dim": 8}, "state_dict": state}
    torch.save({**dict.fromkeys(MODEL_KEYS), **facts}, tmp_path / "model.pt")
    best = {"step": 5, "dev_wer": 33.0, "average": state}
    torch.save({"optimizers": [], "step": 9, "best": best, "average": state}, tmp_path / "last.pt")
    content = {"lm": "lstm", "config": {"dim": 8}, "vocab_size": 5, "tokenizer_sha256": "abc", "dev_perplexity": 3.25}
    torch.save({**content, "state_dict": {}}, tmp_path / "lstm.pt")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cuts.00000.jsonl.gz", ["2 (1 labelled, 1 unlabelled)", "1.000", "turn [on]", "(unlabelled)"]),
        (
            "part-00000.parquet",
            ["1 greedy", "mean 0.25", "0.6 - 0.9    █", "12.50 a second", "teacher_sha256", "0.04:5"],
        ),
        ("test.parquet", ["turn off", "lm_weight", "0.3"]),
        ("align.parquet", ["alignments", "-2.50", "0.04:5 0.12:6"]),
        ("model.pt", ["student", "12.50 %", "400, of which decoding uses 300", "75.0 %"]),
        ("lstm.pt", ["language model", "3.25 a piece", '"dim": 8']),
        ("last.pt", ["training state", "33.00 % at step 5"]),
    ],
)
def test_kinds(folder: Path, name: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(folder / name)
    output = capsys.readouterr().out
    assert [text for text in expected if text not in output] == []
    assert "\x1b" not in output


def test_the_command_line_takes_the_file_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["inspect", str(folder / "test.parquet")]) == 0
    assert "turn off" in capsys.readouterr().out
    assert command_line.main(["inspect", str(folder / "none")]) == 1
    assert capsys.readouterr().err == f"kdtrans inspect: error: {folder / 'none'} does not exist\n"


def test_directory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "notes.txt").write_text("")
    (folder / "broken.parquet").write_bytes(b"PAR1")
    main(folder)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted({path.name for path in folder.iterdir()} - {"notes.txt"})
    assert [line.split()[1] for line in lines if "broken" in line] == ["broken"]


def test_refuses_the_unknown(folder: Path) -> None:
    (folder / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"notes.txt is not recognised; inspect reads manifests"):
        main(folder / "notes.txt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        main(folder / "none")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="no file in it is recognised"):
        main(folder / "empty")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of two shards made with tokenizer.model, and manifests with audio of one of their utterances."""
    train_tokenizer(["abc cab"], TokenizerConfig(type="char"), tmp_path / "tokenizer.model")
    made_with = {"tokenizer_sha256": Tokenizer(tmp_path / "tokenizer.model").sha256}
    (tmp_path / "targets").mkdir()
    for number in range(2):
        rows = [target_row(f"u{number}{letter}", confidence=0.05) for letter in "ab"]
        write(tmp_path / "targets" / f"part-0000{number}.parquet", rows, made_with)
    soundfile.write(tmp_path / "u0a.flac", np.full(2560, 0.1), 16000)
    supervision = SupervisionSegment("u0a", "u0a", 0.0, 0.16, text="one", speaker="s")
    recording = Recording.from_file(tmp_path / "u0a.flac")
    (tmp_path / "data").mkdir()
    write_cuts(
        [MonoCut("u0a", 0.0, 0.16, 0, [supervision], recording=recording)], tmp_path / "data/cuts.00000.jsonl.gz"
    )
    return tmp_path / "targets"


def test_a_folder_of_shards_is_summarised_as_a_whole(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(shards)
    output = capsys.readouterr().out
    expected = ["target shards", "4 (4 paths)", "part-00001 ", "have not been verified", "0.03 - 0.1    █"]
    assert [text for text in expected if text not in output] == []


def test_one_utterance(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(shards, utt="u1b", tokenizer=shards.parent / "tokenizer.model")
    output = capsys.readouterr().out
    piece = Tokenizer(shards.parent / "tokenizer.model").pieces[3]
    assert "path of rank 0" in output
    assert ["0.12", piece, "0.75", "blank", "0.2"] in [line.split()[:5] for line in output.splitlines()]
    assert command_line.main(["inspect", str(shards / "part-00000.parquet"), "--utt", "u1b"]) == 1
    assert "'u1b' is not in" in (error := capsys.readouterr().err)
    assert "nearest ids are 'u0b'" in error


def test_one_utterance_through_the_index(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kdtrans.targets.index import utterance_key

    row = dict.fromkeys(contracts.TARGETS_INDEX.names, 0) | {"key": utterance_key("u1a"), "shard": 1}
    table = pa.Table.from_pylist([row], schema=contracts.TARGETS_INDEX)
    with pa.ipc.new_file(str(shards / "index.arrow"), contracts.TARGETS_INDEX) as writer:
        writer.write_table(table)
    (shards / "index.json").write_text(json.dumps({"shards": [{"path": "x"}, {"path": "part-00001.parquet"}]}))
    (shards / "part-00000.parquet").write_bytes(b"PAR1")  # not opened
    main(shards, utt="u1a")
    assert "u1a" in capsys.readouterr().out


def test_a_page(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html = tmp_path / "pages" / "shard.html"
    main(shards / "part-00000.parquet", html=html, cuts=[shards.parent / "data"])
    assert "2 utterances, 2 with pictures, 1 with sound" in capsys.readouterr().out
    assert '"wav":"UklGR' in html.read_text(encoding="utf-8")
    main(shards / "part-00000.parquet", html=html, most=1)
    assert "2 utterances, 1 with pictures, 0 with sound" in capsys.readouterr().out
    main(shards, html=html, utt="u1a")
    assert "1 utterances, 1 with pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"html": "x.html"}, "a page is of one shard: give one of its 2, or --utt"),
        ({"cuts": ["data"]}, "give --html OUT.html too"),
        ({"utt": "u1a", "html": "x.html", "most": -1}, "--most is -1"),
        ({"utt": "u1a", "html": "x.html", "cuts": ["data"]}, "data does not have 'u1a' or any other utterance"),
        ({"utt": "u1a", "tokenizer": "other.model"}, "other.model is [0-9a-f]{12}: give its own"),
    ],
)
def test_refusals_of_paths(shards: Path, options: dict[str, Any], message: str) -> None:
    train_tokenizer(["xyz"], TokenizerConfig(type="char"), shards.parent / "other.model")
    given = {name: shards.parent / value if name in ("html", "tokenizer") else value for name, value in options.items()}
    if "cuts" in given:
        given["cuts"] = [shards.parent / "data"]
    with pytest.raises(ValueError, match=message):
        main(shards, **given)
    assert not (shards.parent / "x.html").exists()


def test_paths_are_of_targets(folder: Path) -> None:
    for name in ("test.parquet", "model.pt", ""):
        with pytest.raises(ValueError, match="--utt and --html are for target shards"):
            main(folder / name, utt="u1")
