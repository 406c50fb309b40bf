"""`kdtrans study`: several summaries side by side."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kdtrans.contracts import ContractError
from kdtrans.report.study import read_rows
from kdtrans.stages import report, study

KEYS = {
    "split",
    "name",
    "streaming",
    "wer",
    "wer_low",
    "wer_high",
    "delay_ms_p50",
    "params",
    "seeds",
    "search",
    "testset",
}
KEYS |= {f"werr_{name}{end}" for name in ("baseline", "hard") for end in ("", "_low", "_high")} | {"x_realtime"}
KEYS |= {f"x_teacher{end}" for end in ("", "_low", "_high")}


def test_collects_what_is_finished(
    tmp_path: Path, made_run: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    report.main(**made_run)
    summary = made_run["out_dir"] / "summary.json"
    named = [f"main={summary}", f"low={tmp_path}/not-yet.json", f"again={summary}"]
    study.main(named, tmp_path / "docs" / "study", machine="one CPU", date="2026-11-22")
    assert "low: " in capsys.readouterr().out
    found = json.loads((tmp_path / "docs" / "study.json").read_text())
    assert (found["date"], found["machine"]) == ("2026-11-22", "one CPU")
    assert found["command"].startswith("kdtrans study --summaries main=")
    rows = found["rows"]
    assert len(rows) == 2 * 7 * 2, "two finished splits, seven systems, two searches of the test set; dev is left out"
    assert {row["split"] for row in rows} == {"main", "again"}
    assert all(row.keys() >= KEYS for row in rows)
    kd = next(row for row in rows if (row["name"], row["search"]) == ("kd_unlabelled", "greedy"))
    source = next(
        row
        for row in json.loads(summary.read_text())["rows"]
        if (row["system"], row["search"], row["testset"]) == ("kd_unlabelled", "greedy", "test")
    )
    assert kd["werr_hard_low"] == source["against_control"]["werr_low"]
    teacher = next(row for row in rows if (row["name"], row["search"]) == ("teacher", "greedy"))
    assert kd["x_teacher"] == pytest.approx(kd["wer"] / teacher["wer"])
    assert kd["x_teacher_low"] < kd["x_teacher"] < kd["x_teacher_high"]
    assert teacher["x_teacher"] is None
    assert (kd["seeds"], kd["params"], kd["x_realtime"]) == ([1, 2, 3], 1_130_000, pytest.approx(15.0))
    text = (tmp_path / "docs" / "study.md").read_text()
    assert text.count("\n### test, greedy\n") == 2
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4
    for table in tables:
        lines = table.strip().splitlines()
        assert len(lines) == 2 + 7
        assert len({line.count("|") for line in lines}) == 1
    assert re.search(r"\| kd_unlabelled \| 1\.13 M \| whole utterance \| 3 \([\d.–]+\) \| [\d.]+ \[[\d., ]+\] \|", text)
    assert re.search(r"\| streaming_kd \| 1\.12 M \| 640 ms \| .* \| 240 ms \| 15x \|", text)
    assert re.search(r"\| kd \|.*\| \*\S+ \[−[\d.]+, [\d.]+\]\* \|", text), "not significant: in italics"


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected NAME=path"):
        study.main(["summary.json"], tmp_path / "study")
    with pytest.raises(ValueError, match="none of the summaries"):
        study.main([f"main={tmp_path}/summary.json"], tmp_path / "study")
    (tmp_path / "summary.json").write_text('{"rows": [{"testset": "test"}]}')
    with pytest.raises(ContractError, match="is not a summary of `kdtrans report`"):
        read_rows("main", tmp_path / "summary.json")
