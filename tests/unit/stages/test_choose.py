"""`kdtrans choose`: the lowest dev WER of each system, and nothing but dev."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdtrans.__main__ import main
from kdtrans.artifacts import read_json, write_json
from kdtrans.contracts import ScoreSummary
from kdtrans.stages import choose

WERS = {
    "kd-weight_0.2": 20.0,
    "kd-weight_0.5": 18.5,
    "kd-weight_1.0": 18.5,
    "hard-lr_0.001": 25.0,
    "hard-lr_0.002": 22.0,
}


def score(folder: Path, run: str, wer: float, testset: str = "dev", search: str = "greedy") -> Path:
    """Write a score summary."""
    values: dict[str, Any] = {"run": run, "system": run.partition("-")[0], "search": search, "testset": testset}
    values |= {"wer": wer, "wer_low": wer - 1, "wer_high": wer + 1, "cer": wer / 2}
    values |= {"sub": 1, "dele": 1, "ins": 1, "words": 100, "utterances": 10, "parameters": 1000}
    values |= {"audio_seconds": 10.0, "decode_seconds": 1.0, "lm_weight": 0.0, "latency_ms": None}
    path = folder / run / search / f"{testset}.score.json"
    write_json(path, ScoreSummary.from_json(values).to_json())
    return path


def test_the_lowest_of_each_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = [score(tmp_path, run, wer) for run, wer in WERS.items()]
    choose.main(scores, tmp_path / "sweep.json")
    found = read_json(tmp_path / "sweep.json")
    expected: dict[str, str] = {}  # twin: look at every run of every system
    for system in ("kd", "hard"):
        for run, wer in WERS.items():
            if run.startswith(system) and (system not in expected or wer < WERS[expected[system]]):
                expected[system] = run
    assert found["chosen"] == expected == {"kd": "kd-weight_0.5", "hard": "hard-lr_0.002"}
    assert [row["wer"] for row in found["rows"]] == sorted(WERS.values())
    assert [row["run"] for row in found["rows"] if row["chosen"]] == ["kd-weight_0.5", "hard-lr_0.002"]
    table = (tmp_path / "sweep.txt").read_text()
    assert table == capsys.readouterr().out
    assert "*  kd-weight_0.5  kd      18.50 [17.50, 19.50]\n   kd-weight_1.0  kd      18.50" in table
    assert (tmp_path / "sweep.json.run.json").exists()


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dev, out = score(tmp_path, "kd-a", 20.0), tmp_path / "sweep.json"
    bad = {
        "was scored on 'test': a choice is made on 'dev' only": score(tmp_path, "kd-b", 10.0, testset="test"),
        "the run 'kd-a' is given twice": dev,
        "was decoded with 'beam', the run 'kd-a' with 'greedy'": score(tmp_path, "kd-c", 10.0, search="beam"),
    }
    for message, path in bad.items():
        assert main(["choose", "--scores", str(dev), str(path), "--out", str(out)]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="sweep is empty: "):
        choose.main([], out)
    assert not list(tmp_path.glob("sweep.*"))
