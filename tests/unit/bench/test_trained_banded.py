"""The banded loss beside the full one on a student of a results folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kdtrans.bench import trained_banded as bench
from kdtrans.bench.trained_banded import trained_banded
from kdtrans.config import StudentConfig
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.losses.backends import pruned_loss
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
    (gap, *times), ratios = trained_banded(results, width=1, margin=0)
    assert (gap.parameters["student"], gap.parameters["utterances"]) == ("kd_unlabelled", len(toy.cuts))
    assert ratios["banded_loss_gap_trained"] == gap.median > 0
    assert {"full time, trained", "banded time, trained", "native_pruned time, trained"} <= {row.name for row in times}
    assert all(row.median > 0 for row in times)
    _, wide = trained_banded(results, width=1000, margin=1000)
    assert wide["banded_loss_gap_trained"] == pytest.approx(0, abs=1e-6)


def test_the_faster_library_is_the_peer(toy: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = results_of(toy, tmp_path, {"kd": {}})
    native = pruned_loss("native")
    monkeypatch.setattr(bench, "installed_backends", lambda: ["native", "k2", "fast_rnnt", "torchaudio"])
    monkeypatch.setattr(bench, "pruned_loss", lambda library: native)
    rows, ratios = trained_banded(results, width=5, margin=4)
    time = {row.name: row.median for row in rows}
    peer = min(time["k2_pruned time, trained"], time["fast_rnnt_pruned time, trained"])
    assert ratios["banded_vs_pruned_time_trained"] == time["banded time, trained"] / peer


def test_there_has_to_be_a_student_that_learns_from_paths(toy: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no trained student that learns from paths"):
        trained_banded(results_of(toy, tmp_path, NOT_MEANT), width=5, margin=4)
