"""Interrupted runs end with the numbers of unbroken ones, and nothing finished is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from kdtrans.__main__ import main
from kdtrans.config import TeacherConfig, merge
from kdtrans.training.checkpoint import load_torch
from kdtrans.training.run import identity_of
from tests.tiny import STUDENT, Workspace


def finished(path: Path) -> str:
    """Identity of a finished model's weights."""
    fingerprint: str = load_torch(path)["fingerprint"]
    return fingerprint


def kill_when(command: list[str], marker: Path, inside: str | None = None) -> None:
    """Start a command in a process of its own and kill -9 it as soon as a file is there."""
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-m", "kdtrans", *command], **silent)
    deadline = time.monotonic() + 120
    while not (marker.exists() and (inside is None or inside in marker.read_text())):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, f"{marker} did not appear"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_kill_in_the_middle_of_training_changes_no_number(toy: Workspace, unbroken: str, tmp_path: Path) -> None:
    command = toy.student_command(toy.index, tmp_path / "model.pt")
    kill_when(command, tmp_path / "checkpoints" / "metrics.jsonl", inside='"step": 6')
    assert not (tmp_path / "model.pt").exists()
    done = load_torch(tmp_path / "checkpoints" / "last.pt")["step"]
    assert 0 < done < STUDENT["training"]["updates"]  # type: ignore[index]
    assert main(command) == 0
    assert finished(tmp_path / "model.pt") == unbroken
    rows = (tmp_path / "checkpoints" / "metrics.jsonl").read_text().splitlines()
    steps = [row.split(",")[0] for row in rows if "loss_transducer" in row]
    assert len(steps) == len(set(steps)), "an update was logged twice"


def test_a_time_budget_is_kept_and_resumed(toy: Workspace, unbroken: str, tmp_path: Path) -> None:
    command = toy.student_command(toy.index, tmp_path / "model.pt")
    statuses = []
    while not statuses or statuses[-1] == 75:
        statuses.append(main([*command, "--max-seconds", "0.0"]))
    assert statuses == [75] * 11 + [0]  # an update each
    assert finished(tmp_path / "model.pt") == unbroken


def test_changed_settings_do_not_resume_the_old_model(toy: Workspace, tmp_path: Path) -> None:
    command = toy.student_command(toy.index, tmp_path / "model.pt")
    assert main([*command, "--max-seconds", "0.0"]) == 75
    changed = STUDENT | {"joiner_dim": 12}
    config = tmp_path / "student.yaml"
    config.write_text(yaml.safe_dump(changed))
    command[command.index("--config") + 1] = str(config)
    assert main(command) == 0
    assert load_torch(tmp_path / "model.pt")["config"]["joiner_dim"] == 12
    assert len(list(tmp_path.glob("checkpoints.*"))) == 1, "the old checkpoints are kept aside"


def test_only_what_changes_the_weights_is_the_identity_of_a_run() -> None:
    def identity(changes: dict[str, Any]) -> dict[str, Any]:
        return identity_of(TeacherConfig.model_validate(merge(TeacherConfig().model_dump(), changes)), [])

    speed = {"workers": 3, "cache_gb": 9.0, "log_every": 7, "loss": "full", "band_width": 9}
    for changes in ({"max_wer": 5.0}, {"training": speed}):
        assert identity(changes) == identity({})
    banded = {"loss": "banded"}
    assert identity({"training": banded}) != identity({})
    assert identity({"training": banded | {"band_width": 9}}) != identity({"training": banded})
    pruned = {"loss": "pruned"}
    assert identity({"training": pruned | {"band_margin": 9}}) == identity({"training": pruned})
    for matters in ({"band_width": 9}, {"simple_weight": 0.7}, {"pruned_warmup": 0.3}, {"backend": "k2"}):
        assert identity({"training": pruned | matters}) != identity({"training": pruned})
        if matters != {"backend": "k2"}:
            assert identity({"training": matters}) == identity({}), "they mean nothing there"
    for changes in ({"joiner_dim": 12}, {"training": {"lr": 1.0}}):
        assert identity(changes) != identity({})


def test_files_of_the_same_name_are_different_inputs(tmp_path: Path) -> None:
    shards = [tmp_path / split / "cuts.00000.jsonl.gz" for split in ("train", "dev")]
    for shard in shards:
        shard.parent.mkdir()
        shard.write_text(str(shard))
    before = identity_of(TeacherConfig(), shards)
    for shard in shards:
        shard.write_text("changed")
        assert identity_of(TeacherConfig(), shards) != before
        before = identity_of(TeacherConfig(), shards)


def test_kill_in_the_middle_of_a_dump_loses_nothing_and_leaves_nothing(toy: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "part-00000.parquet"
    command = toy.dump_command(toy.teacher, out)
    process = subprocess.Popen([sys.executable, "-m", "kdtrans", *command], stdout=subprocess.PIPE)
    time.sleep(2.0)
    process.kill()
    process.wait()
    if not out.exists():  # killed before its rename: no part of a shard is ever visible
        assert list(tmp_path.glob("*.parquet")) == []
    assert main(command) == 0
    assert main(toy.verify_command(toy.teacher, tmp_path)) == 0
    first = (toy.part).read_bytes()
    from kdtrans.targets.shards import read_shard

    assert read_shard(out)[1].equals(read_shard(toy.part)[1])
    assert len(first) == out.stat().st_size or abs(len(first) - out.stat().st_size) < 200  # only `created` may differ
