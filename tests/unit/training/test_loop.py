from __future__ import annotations

import errno
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from kdtrans.__main__ import main
from kdtrans.config import TrainingConfig, merge
from kdtrans.data.manifest import text_of
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.training import run
from kdtrans.training.checkpoint import claim, load_model, read_model
from kdtrans.training.evaluate import DevScores, dev_evaluation
from kdtrans.training.loop import _check_finite
from kdtrans.training.progress import MetricsLog, read_metrics
from kdtrans.training.schedule import WeightAverage, tri_stage
from tests.tiny import TEACHER, Workspace


def test_tri_stage_warms_up_holds_and_decays() -> None:
    config = TrainingConfig(updates=100, phases=(0.1, 0.4, 0.5), final_lr_scale=0.05)
    scales = [tri_stage(step, config) for step in range(100)]
    assert scales[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert set(scales[10:50]) == {1.0}
    ratios = [b / a for a, b in itertools.pairwise(scales[50:])]
    assert ratios == pytest.approx([0.05 ** (1 / 50)] * 49)
    assert scales[-1] == pytest.approx(0.05, rel=0.1)


def test_the_average_is_the_recursion_by_hand() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    average = WeightAverage(model, decay=0.5)
    expected = model.weight.detach().clone()
    for step in range(8):
        torch.nn.init.normal_(model.weight)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        average.update(model, step)
    torch.testing.assert_close(average.state["weight"], expected)


def test_a_kept_average_is_copied_to_where_the_model_is() -> None:
    average = WeightAverage(torch.nn.Linear(2, 1), decay=0.5)
    places = {name: value.data_ptr() for name, value in average.state.items()}
    kept = {name: torch.randn_like(value) for name, value in average.state.items()}
    average.load(kept)
    assert {name: value.data_ptr() for name, value in average.state.items()} == places  # not the file's own, on the CPU
    torch.testing.assert_close(average.state, kept)


def test_of_equal_wers_the_lowest_loss_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small dev set has few words to get wrong: updates 1 to 4 and what is found on dev after each."""
    found = iter([DevScores(20.0, 3.0), DevScores(10.0, 2.0), DevScores(10.0, 1.0), DevScores(10.0, 1.5)])
    monkeypatch.setattr(run, "dev_evaluation", lambda *_: lambda _: next(found))
    work = Workspace(tmp_path, utterances=4)
    over = {"training": {"updates": 4, "evaluate_every": 1}}
    work.config("teacher").write_text(yaml.safe_dump(merge(TEACHER, over)))
    assert main(work.teacher_command(work.teacher)) == 0
    content = read_model(work.teacher)
    assert (content["step"], content["dev_wer"]) == (3, 10.0)


def test_gradients_that_are_not_numbers_stop_the_run() -> None:
    _check_finite({"grad_norm": torch.tensor(1.0)}, ["utt01"], 3)
    with pytest.raises(ValueError, match=r"update 3: grad_norm is inf for utterances utt01"):
        _check_finite({"grad_norm": torch.tensor(torch.inf)}, ["utt01"], 3)


def test_a_development_set_without_text_is_refused_before_training(toy: Workspace) -> None:
    unlabelled = [cut for cut in toy.cuts if text_of(cut) is None]
    tokenizer = Tokenizer(toy.tokenizer)
    model = load_model(toy.teacher, tokenizer)
    with pytest.raises(ValueError, match="none of the 4 utterances of the development set has text"):
        dev_evaluation(unlabelled, tokenizer, model, 10.0)


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_utterances(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = Workspace(tmp_path, utterances=4)
    work.config("teacher").write_text(yaml.safe_dump(merge(TEACHER, {"training": {"lr": 1.0e30}})))
    out = tmp_path / "teacher" / "model.pt"
    assert main(work.teacher_command(out)) == 1
    error = capsys.readouterr().err
    assert re.search(r"update \d: loss\w* is (nan|inf)", error)
    assert "utt0" in error
    assert "lower training.lr" in error
    assert not out.exists()


def test_samples_that_are_no_numbers_stop_the_run_and_name_their_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = Workspace(tmp_path, utterances=4)
    soundfile.write(tmp_path / "utt01.wav", np.full(20000, np.nan, dtype=np.float32), 16000, subtype="FLOAT")
    (tmp_path / "utt01.flac").unlink()
    (tmp_path / "utt01.wav").rename(tmp_path / "utt01.flac")
    assert main(work.teacher_command(tmp_path / "teacher" / "model.pt")) == 1
    assert "utt01" in capsys.readouterr().err


def test_metrics_of_lost_updates_are_dropped(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    for step in (2, 4, 6):
        log.write(step, {"loss": 1.0 / step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')  # cut short by a kill
    MetricsLog(tmp_path, 4)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [2, 4]


def test_tensorboard_reads_what_a_resumed_run_has_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first, second = (2, 4, 6), (5, 6, 7)  # killed after 6, whose checkpoint was at 4
    for start, steps in ((0, first), (4, second)):
        log = MetricsLog(tmp_path, start)
        for step in steps:
            log.write(step, {"loss": step + start / 10, "dev_wer": 50.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["dev_wer", "loss"]
    read = {event.step: event.value for event in events.Scalars("loss")}
    assert read == pytest.approx({2: 2.0, 4: 4.0, 5: 5.4, 6: 6.4, 7: 7.4})
    assert {row["step"]: row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")} == pytest.approx(read)


def test_metrics_that_cannot_be_written_name_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path, 0)

    def full(data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log._events._records, "write", full)
    with pytest.raises(OSError, match=r"No space left on device: cannot write .*metrics\.jsonl"):
        log.write(1, {"loss": 1.0})


def test_a_folder_is_held_by_one_trainer_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with (
        claim(folder, {"a": 1}),
        pytest.raises(ValueError, match="another process has been making it"),
        claim(folder, {"a": 1}, wait_s=0),
    ):
        pass
    with claim(folder, {"a": 1}):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]


def test_a_folder_of_other_settings_is_moved_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "checkpoints"
    for setting in (1, 2):
        with claim(folder, {"a": setting}):
            assert not (folder / "state").exists()
            (folder / "state").touch()
    aside = [path for path in tmp_path.iterdir() if path.name != "checkpoints"]
    assert len(aside) == 1
    assert (aside[0] / "state").exists()
    assert f"the old ones are in {aside[0]}" in capsys.readouterr().out
