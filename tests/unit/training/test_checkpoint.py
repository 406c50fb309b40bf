"""What a trainer leaves behind and finds again: two checkpoints, a finished model, nothing broken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kdtrans.__main__ import main
from kdtrans.artifacts import read_json, write_json
from kdtrans.contracts import ContractError
from kdtrans.training.checkpoint import FINISHED, load_torch, newest_checkpoint, save_checkpoint
from kdtrans.training.stopping import Stop
from tests.tiny import STUDENT, Workspace


def step_of(path: Path) -> int:
    step: int = load_torch(path)["step"]
    return step


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fingerprint_of(path: Path) -> str:
    fingerprint: str = load_torch(path)["fingerprint"]
    return fingerprint


@pytest.fixture
def interrupted(toy: Workspace, tmp_path: Path) -> list[str]:
    """Command line of a student whose training was stopped after its third update, with two checkpoints."""
    command = toy.student_command(toy.index, tmp_path / "model.pt")
    for _ in range(3):
        assert main([*command, "--max-seconds", "0.0"]) == 75
    return command


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in range(1, 4):
        save_checkpoint(tmp_path, {"step": step})
        found = newest_checkpoint(tmp_path)
        assert found
        assert found[1] == {"step": step}
    assert {path.name: step_of(path) for path in tmp_path.iterdir()} == {"last.pt": 3, "before.pt": 2}
    (tmp_path / "last.pt").unlink()  # as after a kill between the two renames
    found = newest_checkpoint(tmp_path)
    assert found
    assert found[0].name == "before.pt"


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    interrupted: list[str], unbroken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = tmp_path / "checkpoints"
    truncate(checkpoints / "last.pt")
    assert main(interrupted) == 0
    printed = capsys.readouterr()
    assert f"warning: {checkpoints / 'last.pt'} is not a whole checkpoint" in printed.err
    assert "resuming at update 2 of" in printed.out
    assert fingerprint_of(tmp_path / "model.pt") == unbroken


def test_two_damaged_checkpoints_are_an_error_that_says_what_to_do(
    interrupted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("last.pt", "before.pt"):
        truncate(tmp_path / "checkpoints" / name)
    assert main(interrupted) == 1
    assert "before.pt is not a whole checkpoint" in capsys.readouterr().err
    with pytest.raises(ContractError):
        newest_checkpoint(tmp_path / "checkpoints")


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, {"step": 1})

    def full(value: object, path: Path) -> None:
        path.write_bytes(b"a part")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nand many lines")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"MB are free \(PytorchStreamWriter failed [^\n]*\): make room$"):
        save_checkpoint(tmp_path, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert step_of(tmp_path / "last.pt") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heeded_with_a_checkpoint(
    toy: Workspace, unbroken: str, tmp_path: Path, number: signal.Signals
) -> None:
    command = toy.student_command(toy.index, tmp_path / "model.pt")
    process = subprocess.Popen([sys.executable, "-m", "kdtrans", *command], stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "checkpoints" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    updates = STUDENT["training"]["updates"]  # type: ignore[index]
    assert process.returncode == 75, error
    step = step_of(tmp_path / "checkpoints" / "last.pt")
    assert 0 < step < updates
    assert f"stopped by {number.name} at update {step} of {updates}, which is kept" in error
    assert "Traceback" not in error
    assert main(command) == 0
    assert fingerprint_of(tmp_path / "model.pt") == unbroken


def test_a_second_ctrl_c_interrupts_and_a_second_sigterm_does_not() -> None:
    stop, before = Stop(), signal.getsignal(signal.SIGTERM)
    with stop.heeding_signals():
        assert stop.reason() is None
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason() == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_process_forked_while_signals_are_heeded_still_ends_by_them() -> None:
    with Stop().heeding_signals():
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_a_finished_run_that_is_asked_for_again_is_handed_back(
    toy: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a kill of the workflow's driver: it deletes the model whose end it has not seen, and asks for it."""
    out = tmp_path / "model.pt"
    command = toy.teacher_command(out)
    assert main(command) == 0
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*.pt")) == [FINISHED]
    content, record = out.read_bytes(), Path(f"{out}.run.json").read_text()
    for gone in (True, False, True):
        if gone:
            out.unlink()
        capsys.readouterr()
        started = time.time()
        assert main(command) == 0
        assert "was finished before" in capsys.readouterr().out
        assert out.read_bytes() == content
        assert Path(f"{out}.run.json").read_text() == record
        assert out.stat().st_mtime >= started - 0.1


@pytest.mark.parametrize("changed", ["code", "packages", "record", "model", "no record"])
def test_what_would_not_be_the_same_again_is_trained_again(
    toy: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: str
) -> None:
    out = tmp_path / "model.pt"
    record = Path(f"{out}.run.json")
    command = toy.teacher_command(out)
    assert main(command) == 0
    fingerprint = fingerprint_of(out)
    out.unlink()
    match changed:
        case "code":
            write_json(record, read_json(record) | {"code": {"kdtrans/losses/fused.py": "0" * 12}})
        case "packages":
            write_json(record, read_json(record) | {"packages": {"torch": "0.0"}})
        case "record":
            record.write_text("{")
        case "model":
            truncate(tmp_path / "checkpoints" / FINISHED)
        case "no record":
            record.unlink()
    capsys.readouterr()
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "was finished before" not in printed
    assert "2/4" in printed
    assert fingerprint_of(out) == fingerprint


def test_a_trainer_that_waited_takes_what_the_other_one_made(toy: Workspace, tmp_path: Path) -> None:
    """The driver was killed, its job lives on, and the rerun starts a second one: the work is done once."""
    command = [sys.executable, "-m", "kdtrans", *toy.student_command(toy.index, tmp_path / "model.pt")]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "checkpoints" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGSTOP)
    second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert second.stdout
    printed = second.stdout.readline()
    os.kill(first.pid, signal.SIGCONT)
    printed += second.communicate(timeout=120)[0]
    assert first.wait(timeout=60) == second.returncode == 0
    assert "waiting for another process" in printed
    assert "was finished before" in printed


def test_checkpoints_of_an_earlier_form_are_moved_aside(interrupted: list[str], unbroken: str, tmp_path: Path) -> None:
    identity = tmp_path / "checkpoints" / "identity.json"
    earlier = read_json(identity)
    del earlier["checkpoint_version"]
    write_json(identity, earlier)
    assert main(interrupted) == 0
    assert fingerprint_of(tmp_path / "model.pt") == unbroken
    assert len(list(tmp_path.glob("checkpoints.*/last.pt"))) == 1
