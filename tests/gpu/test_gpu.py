"""On a GPU everything comes out as on a CPU: losses with their gradients, what searches find, what stages write.

`make test-gpu` runs it; all other tests compute on the CPU, bit for bit (tests/conftest.py).
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdtrans.__main__ import main
from kdtrans.config import KdConfig, SearchConfig
from kdtrans.models.transducer import Transducer
from kdtrans.search.search import search
from kdtrans.targets.shards import Target, read_shard, row_to_target
from kdtrans.training.losses import transducer_losses
from kdtrans.training.optimizers import orthogonalised
from kdtrans.training.run import RESUME_ME
from kdtrans.training.shift import ShiftTracker
from tests.tiny import Workspace
from tests.unit.search.test_search import make, some_speech
from tests.unit.training.test_losses import CONFIG, KDS, make_batch, make_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or not by `make test-gpu`")
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def exact_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions and LSTMs as exact as on a CPU: by default cuDNN rounds their factors to ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def learning(seed: int, loss: str = "fused") -> Transducer:
    """`make_model` in a mode in which cuDNN's LSTM has a gradient; without dropout, as there."""
    model = make_model(seed, loss)
    for module in model.predictor.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.predictor.train()
    return model


def losses_and_gradients(device: torch.device, loss: str, kd: str, precision: str) -> dict[str, Tensor]:
    student, teacher = learning(1, loss), make_model(2)
    batch = make_batch([0, 1, 2], student, teacher)
    config = CONFIG.model_copy(
        update={"loss": loss, "precision": precision, "fastemit": 0.1, "band_width": 3, "band_margin": 1}
    )
    student, teacher, batch = student.to(device), teacher.to(device), batch.to(device)
    losses = transducer_losses(student, batch, config, KdConfig(weight=0.7, **KDS[kd]), teacher, shift=1)
    losses["loss"].backward()
    found = {name: value.detach().cpu() for name, value in losses.items()}
    return found | {name: p.grad.cpu() for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss", ["fused", "full", "banded", "pruned"])
@pytest.mark.parametrize("kd", KDS)
def test_losses_and_gradients_are_those_of_the_cpu(loss: str, kd: str) -> None:
    ours = losses_and_gradients(GPU, loss, kd, "fp32")
    assert len(ours) > 20
    torch.testing.assert_close(ours, losses_and_gradients(torch.device("cpu"), loss, kd, "fp32"), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kd", KDS)
def test_in_bf16_losses_are_close(kd: str) -> None:
    ours, exact = (losses_and_gradients(GPU, "fused", kd, precision) for precision in ("bf16", "fp32"))
    for name in (name for name in exact if name.startswith("loss")):
        torch.testing.assert_close(ours[name], exact[name], rtol=0.05, atol=0.05)


def test_a_shift_is_measured_as_on_the_cpu() -> None:
    found = []
    for device in (torch.device("cpu"), GPU):
        student, teacher = learning(1), make_model(2)
        batch = make_batch([0, 1, 2], student, teacher)
        tracker = ShiftTracker(1)
        transducer_losses(student.to(device), batch.to(device), CONFIG, KdConfig(weight=1.0), shift=tracker)
        found.append(tracker.frames)
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["lstm", "stateless"])
@pytest.mark.parametrize("config", [{"type": "greedy"}, {"type": "beam", "beam": 4}], ids=["greedy", "beam"])
def test_searches_find_the_same(config: dict[str, object], kind: str) -> None:
    model, (enc_BTE, lengths_B) = make(3, kind=kind), some_speech(4, [30, 21, 7])
    settings = SearchConfig.model_validate(config)
    with torch.inference_mode():
        expected = search(model, enc_BTE, lengths_B, settings)
        found = search(copy.deepcopy(model).to(GPU), enc_BTE.to(GPU), lengths_B.to(GPU), settings)
    for ours, theirs in zip(found, expected, strict=True):
        assert [(h.tokens, h.frames) for h in ours] == [(h.tokens, h.frames) for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-3)


def test_matrices_are_orthogonalised_as_on_the_cpu() -> None:
    matrices = [torch.randn(16, 48), torch.randn(48, 16), torch.randn(32, 32)]
    settings = ((3.4445, -4.7750, 2.0315), 5, 1e-7)
    ours = orthogonalised([matrix.to(GPU) for matrix in matrices], *settings)
    for mine, theirs in zip(ours, orthogonalised(matrices, *settings), strict=True):
        torch.testing.assert_close(mine.float().cpu(), theirs.float(), rtol=0, atol=0.05)


def test_stages_train_dump_and_resume(tmp_path: Path) -> None:
    """From audio to a student; what the dump says is what the same teacher says on the CPU."""
    work = Workspace(tmp_path)
    assert main(work.teacher_command(work.teacher)) == 0
    assert main(work.dump_command(work.teacher, work.part)) == 0
    assert main(work.verify_command(work.teacher, work.part.parent)) == 0
    student = work.student_command(work.index, tmp_path / "student" / "model.pt")
    assert main([*student, "--max-seconds", "0"]) == RESUME_ME
    assert main(student) == 0

    there = tmp_path / "cpu" / work.part.name
    command = [sys.executable, "-m", "kdtrans", *work.dump_command(work.teacher, there)]
    subprocess.run(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, check=True)
    pairs = list(zip(targets_of(work.part), targets_of(there), strict=True))
    same = [(ours, theirs) for ours, theirs in pairs if ours.path.tolist() == theirs.path.tolist()]
    assert len(same) > len(pairs) / 2  # rounding may choose between paths that are nearly as good
    for ours, theirs in same:
        assert ours.total_logp == pytest.approx(theirs.total_logp, rel=1e-3)


def targets_of(shard: Path) -> list[Target]:
    footer, table = read_shard(shard)
    return [row_to_target(table, row, footer.top_k) for row in range(len(table))]
