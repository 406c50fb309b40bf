"""`kdtrans inspect` of every kind of file, of a directory, and of what it does not know."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from kdtrans import __main__ as command_line
from kdtrans import contracts
from kdtrans.contracts import MODEL_KEYS
from kdtrans.report.describe import emissions, tail_mass
from kdtrans.stages.inspect import main


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
    torch.save({"optimizers": [], "step": 9, "best": [5, 33.0], "average": state}, tmp_path / "last.pt")
    content = {"lm": "lstm", "config": {"dim": 8}, "vocab_size": 5, "tokenizer_sha256": "abc", "dev_perplexity": 3.25}
    torch.save({**content, "state_dict": {}}, tmp_path / "lstm.pt")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cuts.00000.jsonl.gz", ["2 (1 labelled, 1 unlabelled)", "1.000", "turn [on]", "(unlabelled)"]),
        ("part-00000.parquet", ["1 greedy", "median 0.25", "teacher_sha256", "0.04:5"]),
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


def test_emissions_and_tail() -> None:
    assert emissions([0, 0, 7, 8, 0, 7], 40) == "0.08:7 0.08:8 0.12:7"
    assert emissions([1, 2], 40, pieces=["", "a", "b"], most=1) == "0.00:a ... (2 tokens)"
    logp = pa.array([[np.float16(np.log(0.5)), np.float16(np.log(0.3))]], pa.list_(pa.float16()))
    assert tail_mass(pa.table({"topk_logp": logp}), 2) == pytest.approx([0.2], abs=1e-3)
