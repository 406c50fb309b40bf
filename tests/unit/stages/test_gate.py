"""`kdtrans gate`: a good teacher passes, a weak one stops the workflow and leaves no file; `kdtrans schema` prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kdtrans.__main__ import main
from kdtrans.artifacts import read_json
from kdtrans.config import json_schema
from kdtrans.contracts import MODEL_KEYS


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "teacher.yaml").write_text("max_wer: 12.0\n")
    out = tmp_path / "gate.json"
    return [
        "gate",
        "--config",
        str(tmp_path / "teacher.yaml"),
        "--model",
        str(tmp_path / "model.pt"),
        "--out",
        str(out),
    ]


def save(folder: Path, dev_wer: float | None) -> None:
    torch.save({**dict.fromkeys(MODEL_KEYS), "dev_wer": dev_wer}, folder / "model.pt")


def test_passes(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 11.9)
    assert main(arguments) == 0
    assert read_json(tmp_path / "gate.json") == {"dev_wer": 11.9, "max_wer": 12.0}
    assert "11.90 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("dev_wer", "message"),
    [(12.1, "12.10 % is above teacher.max_wer 12.00 %"), (float("nan"), "nan % is above"), (None, "dev_wer is None")],
)
def test_stops(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str], dev_wer: float | None, message: str
) -> None:
    save(tmp_path, dev_wer)
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "gate.json").exists()


def test_refuses_a_truncated_checkpoint(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 1.0)
    (tmp_path / "model.pt").write_bytes((tmp_path / "model.pt").read_bytes()[:300])
    assert main(arguments) == 1
    assert "not a whole checkpoint" in capsys.readouterr().err


def test_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()
    assert main(["schema", "--out", str(tmp_path / "schema.json")]) == 0
    assert read_json(tmp_path / "schema.json") == json_schema()
