"""`kdtrans score` from hypotheses and a manifest to counts and summary."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

from kdtrans import contracts
from kdtrans.__main__ import main
from kdtrans.artifacts import read_json
from kdtrans.contracts import ScoreSummary

FOOTER = {"parameters": "1000", "decode_seconds": "0.5", "audio_seconds": "4.0", "lm_weight": "0.3"}


def files(folder: Path, hypotheses: dict[str, str], footer: dict[str, str]) -> list[str]:
    """Write hypotheses and a manifest of two utterances; the arguments of the stage."""
    texts = {"u1": "turn on the light", "u2": "stop"}
    with gzip.open(folder / "cuts.jsonl.gz", "wt") as file:
        for utt_id, text in texts.items():
            supervision = {"id": utt_id, "text": text, "speaker": f"s-{utt_id}"}
            file.write(json.dumps({"id": utt_id, "duration": 2.0, "supervisions": [supervision]}) + "\n")
    empty = dict.fromkeys(contracts.HYPOTHESES.names)
    rows = [empty | {"utt_id": utt_id, "rank": 0, "text": text} for utt_id, text in hypotheses.items()]
    table = pa.Table.from_pylist(rows, schema=contracts.HYPOTHESES)
    contracts.write_table(table, folder / "test.parquet", footer)
    names = ["--run", "kd-seed2", "--system", "kd", "--search", "greedy", "--testset", "test"]
    names += ["--out", str(folder / "test.score.json")]
    return ["score", "--hypotheses", str(folder / "test.parquet"), "--cuts", str(folder / "cuts.jsonl.gz"), *names]


def test_counts_and_summary(tmp_path: Path) -> None:
    assert main(files(tmp_path, {"u2": "", "u1": "turn off the the light"}, FOOTER)) == 0
    values = read_json(tmp_path / "test.score.json")
    summary = ScoreSummary.from_json(values)
    assert (summary.sub, summary.dele, summary.ins, summary.words) == (1, 1, 1, 5)
    assert summary.wer == pytest.approx(60.0)
    assert summary.wer_low <= summary.wer <= summary.wer_high
    assert (summary.parameters, summary.lm_weight, summary.utterances) == (1000, 0.3, 2)
    assert (summary.run, summary.system, summary.latency_ms) == ("kd-seed2", "kd", None)
    assert values["normaliser"] == "whitespace-v1"
    assert values["jiwer"]
    rows = contracts.read_table(tmp_path / "test.score.parquet", contracts.SCORES).to_pylist()
    assert [(row["utt_id"], row["speaker"], row["sub"], row["del"], row["ins"]) for row in rows] == [
        ("u1", "s-u1", 1, 0, 1),
        ("u2", "s-u2", 0, 1, 0),
    ]
    assert (tmp_path / "test.score.json.run.json").exists()


@pytest.mark.parametrize(("written", "read"), [("640", 640), ("640.0", 640), ("", None)])
def test_latency_of_streaming_systems(tmp_path: Path, written: str, read: int | None) -> None:
    assert main(files(tmp_path, {"u1": "a", "u2": "b"}, FOOTER | {"latency_ms": written})) == 0
    assert ScoreSummary.from_json(read_json(tmp_path / "test.score.json")).latency_ms == read


def test_refusals_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(files(tmp_path, {"u1": "a"}, FOOTER)) == 1
    assert "1 utterances have no hypothesis (u2)" in capsys.readouterr().err
    del_lm = {key: value for key, value in FOOTER.items() if key != "lm_weight"}
    assert main(files(tmp_path, {"u1": "a", "u2": "b"}, del_lm)) == 1
    assert "the footer lacks lm_weight" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.score.*"))
