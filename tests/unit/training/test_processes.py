"""Several processes train what one trains that takes all of their batches."""

from __future__ import annotations

import multiprocessing
import os
import socket
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from torch import distributed, nn

from kdtrans.__main__ import main
from kdtrans.artifacts import read_json
from kdtrans.config import merge
from kdtrans.data.batches import BatchOrder
from kdtrans.training.checkpoint import load_torch
from kdtrans.training.processes import ALONE, Processes, SharedOrder, joined
from kdtrans.training.progress import read_metrics
from kdtrans.training.shift import ShiftTracker
from tests.tiny import STUDENT, Workspace

TWO_BATCHES = {"training": {"updates": 3, "accumulate": 2, "evaluate_every": 2, "log_every": 1, "checkpoint_every": 2}}


def in_two(work, *arguments) -> list[int]:  # type: ignore[no-untyped-def]
    """Exit statuses of two processes with torchrun's environment that do the same work."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def run(rank: int) -> None:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        os.environ |= meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        os._exit(work(*arguments))

    processes = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode or 0 for process in processes]


def train(toy: Workspace, folder: Path, *budget: str) -> list[str]:
    """Command line that trains the toy student with two batches an update."""
    folder.mkdir()
    command = toy.student_command(toy.index, folder / "model.pt")
    config = folder / "student.yaml"
    config.write_text(yaml.safe_dump(merge(STUDENT, TWO_BATCHES)))
    command[command.index("--config") + 1] = str(config)
    return [*command, *budget]


def test_two_processes_train_what_one_trains(toy: Workspace, tmp_path: Path) -> None:
    """Dropout and masks included; and so they do when they are interrupted."""
    assert main(train(toy, tmp_path / "one")) == 0
    interrupted = train(toy, tmp_path / "two", "--max-seconds", "0.0")
    assert [in_two(main, interrupted) for _ in range(3)] == [[75, 75], [75, 75], [0, 0]]
    one, two = (load_torch(tmp_path / name / "model.pt")["state_dict"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6, msg=name)
    rows = [read_metrics(tmp_path / name / "checkpoints" / "metrics.jsonl") for name in ("one", "two")]
    assert [row["step"] for row in rows[1]] == [row["step"] for row in rows[0]], "one of them writes"
    for ours, theirs in zip(*rows, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(ours[key] == pytest.approx(theirs[key], abs=2e-5) for key in ours if key.startswith("loss"))
    assert read_json(tmp_path / "two" / "model.pt.run.json")["processes"] == 2


def test_all_processes_shift_as_the_first_one_measures() -> None:
    def work() -> int:
        with joined(2) as processes:
            tracker = ShiftTracker(5)
            tracker.frames = 3 + processes.rank
            tracker.load(processes.from_first(tracker.state()))
        return int(tracker.frames != 3)

    assert in_two(work) == [0, 0]


def test_gradients_are_summed_and_none_stays_none() -> None:
    def work() -> int:
        with joined(2) as processes:
            here, nowhere, first = (nn.Parameter(torch.zeros(2, 3)) for _ in range(3))
            here.grad = torch.full((2, 3), 1.0 + processes.rank)
            first.grad = torch.ones(2, 3) if processes.is_first else None
            processes.sum_gradients([here, nowhere, first])
            right = bool((here.grad == 3.0).all() and (first.grad == 1.0).all()) and nowhere.grad is None  # type: ignore[union-attr]
            right &= processes.gathered(processes.rank) == [0, 1] and processes.from_first(processes.rank) == 0
        return int(not right or distributed.is_initialized())

    assert in_two(work) == [0, 0]


def test_batches_are_dealt_out() -> None:
    seconds = [1.0] * 5
    whole = list(islice(BatchOrder(seconds, [True] * 5, 1.0).stream((0, 3)), 8))
    shares = [SharedOrder(seconds, [True] * 5, 1.0, processes=Processes(rank, 2)).stream((0, 3)) for rank in range(2)]
    assert [next(shares[place % 2]) for place in range(8)] == whole


def test_batches_that_cannot_be_shared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with joined(1) as processes:
        assert processes == ALONE
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"training.accumulate is 3 batches an update, which 2 processes"), joined(3):
        pass
