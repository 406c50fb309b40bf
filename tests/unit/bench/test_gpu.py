"""What `bench gpu` times is an update of the preset's models; the times themselves need a GPU."""

from __future__ import annotations

import pytest
import torch

from kdtrans.bench import gpu
from tests.tiny import STUDENT


def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(ValueError, match="torch sees none here"):
        gpu.bench_gpu(quick=True)


def test_an_update_changes_the_student_and_says_how_much_it_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    training = {"updates": 4, "max_duration_s": 4.0, "accumulate": 2}
    presets = {"librispeech-100h": {"student": {"training": training}}, "student-tiny": {"student": STUDENT}}
    presets["student-tiny"]["student"] = {key: STUDENT[key] for key in ("encoder", "predictor", "joiner_dim")}
    monkeypatch.setattr(gpu, "preset", presets.__getitem__)
    for name, value in {"GPU": torch.device("cpu"), "SECONDS": 2.0, "FRAMES": 50, "LABELS": 5}.items():
        monkeypatch.setattr(gpu, name, value)
    built: list[torch.nn.Module] = []
    build = gpu.build_student
    monkeypatch.setattr(gpu, "build_student", lambda *of: built.append(build(*of)) or built[0])
    work, audio = gpu.student("tiny", gpu.KD)
    assert audio == 4.0
    before = [parameter.clone() for parameter in built[0].parameters()]
    work()
    changed = [not torch.equal(old, new) for old, new in zip(before, built[0].parameters(), strict=True)]
    assert sum(changed) > len(changed) / 2


def test_the_presets_are_read_as_they_stand() -> None:
    assert gpu.preset("librispeech-100h")["teacher"]["encoder"] == "torchaudio:WAV2VEC2_LARGE_LV60K"
    with pytest.raises(ValueError, match="is not there: run it in a clone"):
        gpu.preset("no-such-preset")
