"""The banded loss beside the full one on a student of a results folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kdtrans.bench.trained_gap import trained_banded_loss_gap
from kdtrans.config import StudentConfig
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.models.build import build_student
from kdtrans.training.checkpoint import save_model
from tests.tiny import STUDENT, Workspace

NOT_MEANT = {
    "baseline": {"kd": {"weight": 0.0}},
    "collapsed": {"kd": {"weight": 1.0, "loss": "collapsed"}},
    "streaming": {"encoder": {**STUDENT["encoder"], "streaming": {}}},  # type: ignore[dict-item]
}


def results_of(toy: Workspace, folder: Path, systems: dict[str, dict[str, object]]) -> Path:
    """A results folder with untrained students on the toy corpus."""
    for source, place in ((toy.tokenizer, "tokenizer/tokenizer.model"), (toy.train, "data/train/cuts.00000.jsonl.gz")):
        (folder / place).parent.mkdir(parents=True)
        shutil.copy(source, folder / place)
    shutil.copytree(toy.index.parent, folder / "targets/teacher/train")
    tokenizer = Tokenizer(toy.tokenizer)
    for name, values in systems.items():
        config = StudentConfig.model_validate(STUDENT | values)
        state = build_student(config, tokenizer.vocab_size).state_dict()
        (folder / "systems" / name).mkdir(parents=True)
        save_model(folder / "systems" / name / "model.pt", "student", config, state, tokenizer, step=0, dev_wer=100.0)
    return folder


def test_a_band_leaves_something_out_and_a_wide_one_nothing(toy: Workspace, tmp_path: Path) -> None:
    results = results_of(toy, tmp_path, NOT_MEANT | {"kd_unlabelled": {}})
    narrow = trained_banded_loss_gap(results, width=1, margin=0)
    assert (narrow.parameters["student"], narrow.parameters["utterances"]) == ("kd_unlabelled", len(toy.cuts))
    assert narrow.median > 0
    assert trained_banded_loss_gap(results, width=1000, margin=1000).median == pytest.approx(0, abs=1e-6)


def test_there_has_to_be_a_student_that_learns_from_paths(toy: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no trained student that learns from paths"):
        trained_banded_loss_gap(results_of(toy, tmp_path, NOT_MEANT), width=5, margin=4)
