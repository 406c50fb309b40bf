"""Training with all that may stand beside it: an online teacher, a measured shift, several legs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kdtrans.__main__ import main
from kdtrans.artifacts import read_json
from kdtrans.config import merge
from kdtrans.data.batches import BatchOrder, Example, Supervision, known, load_features
from kdtrans.data.manifest import text_of, write_cuts
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.training import shift
from kdtrans.training.checkpoint import fingerprint, load_model, load_torch
from kdtrans.training.progress import read_metrics
from kdtrans.training.run import largest_grids, teacher_outputs
from tests.tiny import STUDENT, Workspace

SHORT = {"training": {"updates": 4, "evaluate_every": 4, "log_every": 1}}


def command_of(toy: Workspace, folder: Path, changes: dict[str, Any], teacher: bool = False) -> list[str]:
    """Command line that trains the toy student with changed settings."""
    folder.mkdir()
    command = toy.student_command(toy.index, folder / "model.pt")
    config = folder / "student.yaml"
    config.write_text(yaml.safe_dump(merge(merge(STUDENT, SHORT), changes)))
    command[command.index("--config") + 1] = str(config)
    return [*command, *(["--teacher", str(toy.teacher)] if teacher else [])]


@pytest.mark.parametrize(
    ("kd", "loss"),
    [
        ({"shift": "auto", "shift_phase": 0.5, "window": 1}, "fused"),
        ({"loss": "collapsed"}, "fused"),
        ({"loss": "full_lattice"}, "fused"),
        ({"loss": "full_sum"}, "fused"),
        ({"loss": "one_best"}, "pruned"),
        ({"encoder_weight": 0.3}, "fused"),
    ],
    ids=lambda part: str(part.get("loss", next(iter(part)))) if isinstance(part, dict) else part,
)
def test_an_interrupted_run_ends_like_an_unbroken_one(
    toy: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kd: dict[str, Any],
    loss: str,
) -> None:
    monkeypatch.setattr(shift, "EVERY", 2)
    compares_grids = kd.get("loss") in ("collapsed", "full_lattice")
    runs_teacher = compares_grids or "encoder_weight" in kd
    models = []
    for name, budget in (("unbroken", []), ("broken", ["--max-seconds", "0.0"])):
        command = command_of(
            toy, tmp_path / name, {"kd": {"weight": 0.5} | kd, "training": {"loss": loss}}, runs_teacher
        )
        statuses = [main([*command, *budget])]
        while statuses[-1] == 75:
            statuses.append(main([*command, *budget]))
        assert statuses == ([75, 75, 75, 0] if budget else [0])
        models.append(load_torch(tmp_path / name / "model.pt")["fingerprint"])
    assert models[0] == models[1]

    rows = [row for row in read_metrics(tmp_path / "broken" / "checkpoints" / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    measures = {1, 2} if kd.get("shift") == "auto" else set()
    assert {row["step"] for row in rows if "kd_shift" in row} == measures
    assert {row["step"] for row in rows if "loss_kd" in row} == {1, 2, 3, 4} - measures
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds), "the seconds of all legs add up"
    record = read_json(tmp_path / "broken" / "model.pt.run.json")
    assert record["training_seconds"] >= seconds[-1] - 0.01
    assert any("teacher" in name for name in record["inputs"]) == runs_teacher
    assert ("GB in the largest batch" in capsys.readouterr().out) == compares_grids
    assert ("kd_shift" in record) == bool(measures)


@pytest.mark.parametrize(
    ("kd", "named"),
    [({"loss": "collapsed", "weight": 1.0}, "kd.loss collapsed"), ({"encoder_weight": 0.1}, "kd.encoder_weight")],
)
def test_a_loss_that_runs_the_teacher_asks_for_it(
    toy: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], kd: dict[str, Any], named: str
) -> None:
    assert main(command_of(toy, tmp_path / "run", {"kd": kd})) == 1
    assert f"{named} runs the teacher: give --teacher" in capsys.readouterr().err


def test_a_student_leaves_the_map_to_its_teacher_behind(toy: Workspace, tmp_path: Path) -> None:
    command = command_of(toy, tmp_path / "run", {"kd": {"encoder_weight": 0.1}}, teacher=True)
    assert main(command) == 0
    rows = read_metrics(tmp_path / "run" / "checkpoints" / "metrics.jsonl")
    assert all(row["loss_encoder"] > 0 for row in rows if "loss" in row)
    model = load_model(tmp_path / "run" / "model.pt", Tokenizer(toy.tokenizer))
    assert model.to_teacher is None
    record = read_json(tmp_path / "run" / "model.pt.run.json")
    assert record["parameters"] == model.num_parameters, "the map is not counted"


def test_another_teacher_than_that_of_the_targets_is_refused(
    toy: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = command_of(toy, tmp_path / "run", {"kd": {"loss": "collapsed", "weight": 1.0}}, teacher=True)
    other = load_torch(toy.teacher)
    weights = {name: value + 1.0 for name, value in other["state_dict"].items()}
    torch.save(other | {"state_dict": weights, "fingerprint": fingerprint(weights)}, tmp_path / "other.pt")
    command[command.index("--teacher") + 1] = str(tmp_path / "other.pt")
    assert main(command) == 1
    expected = f"other.pt is teacher {fingerprint(weights)[:12]}, but the targets"
    assert expected in capsys.readouterr().err


def test_when_the_filters_leave_nothing_they_are_named(
    toy: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = command_of(toy, tmp_path / "run", {"filters": {"min_confidence": 1.0}})
    unlabelled = tmp_path / "unlabelled.jsonl.gz"
    write_cuts([cut for cut in toy.cuts if text_of(cut) is None], unlabelled)
    command[command.index("--train") + 1] = str(unlabelled)
    assert main(command) == 1
    assert "no utterance to train on: left out here: {" in capsys.readouterr().err


def test_the_teachers_outputs_are_those_of_the_utterance_alone(toy: Workspace) -> None:
    teacher = load_model(toy.teacher, Tokenizer(toy.tokenizer))
    cut = toy.cuts[0]
    output = load_features(cut, teacher_outputs(teacher))
    features = load_features(cut, teacher.encoder.extract)
    with torch.no_grad():
        enc_BTE, frames_B = teacher.encode(features[None], torch.tensor([len(features)]))
        expected = teacher.project_encoder(enc_BTE)[0]
    assert output.dtype == torch.float16
    assert not output.requires_grad
    assert len(output) == int(frames_B[0])
    torch.testing.assert_close(output.float(), expected, rtol=2e-3, atol=2e-3)


def test_the_memory_of_the_grids_is_told_before_training(toy: Workspace) -> None:
    lengths = [3, 5, 0]
    labellings = [known(Supervision(tuple(range(n)))) for n in lengths]
    examples = [Example(cut, True, (one,)) for cut, one in zip(toy.cuts[:3], labellings, strict=True)]
    seconds = [cut.duration for cut in toy.cuts[:3]]
    order = BatchOrder(seconds, [True] * 3, max_duration_s=100.0)  # one batch
    assert largest_grids(examples, order, 7) == pytest.approx(2 * 3 * max(seconds) / 0.04 * 6 * 7 * 4, abs=1)
    order = BatchOrder(seconds, [True] * 3, max_duration_s=0.1)  # one each
    one = max(s / 0.04 * (n + 1) for s, n in zip(seconds, lengths, strict=True))
    assert largest_grids(examples, order, 7) == pytest.approx(2 * one * 7 * 4, abs=1)
