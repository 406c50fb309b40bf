"""Targets of several teachers, and along another set's paths: the command line on a toy corpus, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from kdtrans.__main__ import main
from kdtrans.artifacts import read_json
from kdtrans.config import merge
from kdtrans.contracts import TargetsFooter
from kdtrans.data.manifest import write_cuts
from kdtrans.targets.shards import Target, read_shard, row_to_target, write_shard
from tests.tiny import STUDENT, TARGETS, TEACHER, Workspace


class Second:
    """A second teacher of the toy corpus, and its targets along the first one's paths."""

    def __init__(self, toy: Workspace, folder: Path) -> None:
        self.toy, self.folder = toy, folder
        self.teacher, self.part = folder / "teacher/model.pt", folder / "targets/part-00000.parquet"
        self.config = folder / "targets.yaml"
        self.config.write_text(yaml.safe_dump(TARGETS | {"along": "teacher"}))
        teacher = folder / "teacher.yaml"
        training = {"seed": 7, "updates": 1, "evaluate_every": 1}
        teacher.write_text(yaml.safe_dump(merge(TEACHER, {"training": training})))
        assert main(changed(toy.teacher_command(self.teacher), config=teacher)) == 0
        assert main(self.dump_command(self.part)) == 0
        assert main(toy.verify_command(self.teacher, self.part.parent)) == 0

    def dump_command(self, out: Path) -> list[str]:
        command = changed(self.toy.dump_command(self.teacher, out), config=self.config)
        return [*command, "--along", str(self.toy.part)]


def changed(command: list[str], **options: Path) -> list[str]:
    """A command line with other values of some options."""
    command = list(command)
    for name, value in options.items():
        command[command.index(f"--{name}") + 1] = str(value)
    return command


def targets_of(part: Path) -> list[Target]:
    footer, table = read_shard(part)
    return [row_to_target(table, row, footer.top_k) for row in range(len(table))]


@pytest.fixture(scope="module")
def second(toy: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Second:
    return Second(toy, tmp_path_factory.mktemp("second"))


def test_a_dump_along_has_the_firsts_paths_and_its_own_distributions(toy: Workspace, second: Second) -> None:
    footer, first = read_shard(second.part)[0], read_shard(toy.part)[0]
    assert footer.teacher_sha256 != first.teacher_sha256
    assert footer.manifest_sha256 == first.manifest_sha256
    for own, followed in zip(targets_of(second.part), targets_of(toy.part), strict=True):
        for name in ("utt_id", "rank", "weight", "origin", "num_frames", "text"):
            assert getattr(own, name) == getattr(followed, name)
        assert np.array_equal(own.path, followed.path)
        assert own.path_logp != followed.path_logp
        assert own.path_logp <= own.total_logp + 1e-3
        assert not np.array_equal(own.topk_logp, followed.topk_logp)
    assert str(toy.part) in read_json(f"{second.part}.run.json")["inputs"]


def test_the_same_teacher_along_its_own_paths_writes_the_same(toy: Workspace, tmp_path: Path) -> None:
    again = [*toy.dump_command(toy.teacher, tmp_path / "part-00000.parquet"), "--along", str(toy.part)]
    assert main(again) == 0
    assert read_shard(tmp_path / "part-00000.parquet")[1].equals(read_shard(toy.part)[1])


def other_tokenizer(footer: TargetsFooter, rows: list[Target]) -> tuple[TargetsFooter, list[Target]]:
    return replace(footer, tokenizer_sha256="d" * 64), rows


def without_an_utterance(footer: TargetsFooter, rows: list[Target]) -> tuple[TargetsFooter, list[Target]]:
    return footer, rows[1:]


def with_a_frame_more(footer: TargetsFooter, rows: list[Target]) -> tuple[TargetsFooter, list[Target]]:
    lists = {name: np.append(getattr(rows[0], name), getattr(rows[0], name)[-1:], 0) for name in ("path", "topk_ids")}
    logp = np.append(rows[0].topk_logp, rows[0].topk_logp[-1:], 0)
    return footer, [replace(rows[0], num_frames=rows[0].num_frames + 1, topk_logp=logp, **lists), *rows[1:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_tokenizer, "part-00000.parquet: tokenizer_sha256 is dddddddddddd, here it is"),
        (without_an_utterance, "utterance utt00 has no path in the shard that is followed"),
        (with_a_frame_more, "utterance utt00: the path to follow has"),
    ],
)
def test_a_shard_that_cannot_be_followed_is_refused(
    second: Second,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[TargetsFooter, list[Target]], tuple[TargetsFooter, list[Target]]],
    message: str,
) -> None:
    footer, rows = change(read_shard(second.toy.part)[0], targets_of(second.toy.part))
    write_shard(rows, footer, tmp_path / "part-00000.parquet")
    assert main(changed(second.dump_command(tmp_path / "out.parquet"), along=tmp_path / "part-00000.parquet")) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()


def test_a_shard_of_another_manifest_is_refused(
    toy: Workspace, second: Second, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cuts(toy.cuts[:3], tmp_path / "cuts.jsonl.gz")
    assert main(changed(second.dump_command(tmp_path / "out.parquet"), cuts=tmp_path / "cuts.jsonl.gz")) == 1
    assert f"{toy.part}: manifest_sha256 is" in capsys.readouterr().err


def test_a_set_that_follows_another_needs_its_shard(
    second: Second, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(second.dump_command(tmp_path / "out.parquet")[:-2]) == 1
    assert "targets.yaml: along is teacher: give --along" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- the mean of both teachers
WHOLE = TARGETS | {"top_k": 256, "min_probability": 0.0, "logp_step": 0.0}


class Both:
    """Targets of both teachers, and of each along the paths that both have found; all with the whole vocabulary."""

    def __init__(self, second: Second, folder: Path) -> None:
        self.toy, self.teachers = second.toy, [second.toy.teacher, second.teacher]
        self.part, self.index = folder / "both/part-00000.parquet", folder / "both/index.json"
        config, along = folder / "whole.yaml", folder / "along.yaml"
        config.write_text(yaml.safe_dump(WHOLE))
        along.write_text(yaml.safe_dump(WHOLE | {"along": "both"}))
        assert main(changed(self.of_both(self.toy.dump_command(second.teacher, self.part)), config=config)) == 0
        self.alone = [folder / "first.parquet", folder / "second.parquet"]
        for teacher, part in zip(self.teachers, self.alone, strict=True):
            command = [*self.toy.dump_command(teacher, part), "--along", str(self.part)]
            assert main(changed(command, config=along)) == 0

    def of_both(self, command: list[str]) -> list[str]:
        """A command line of the second teacher with the first before it."""
        place = command.index("--model") + 1
        return [*command[:place], *map(str, self.teachers), *command[place + 1 :]]


@pytest.fixture(scope="module")
def both(second: Second, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(second, tmp_path_factory.mktemp("both"))


def probabilities(target: Target, vocabulary: int) -> np.ndarray:
    """Of every class at every node, (N, V)."""
    p_NV = np.zeros((len(target.path), vocabulary))
    np.put_along_axis(p_NV, target.topk_ids.astype(int), np.exp(target.topk_logp.astype(float)), axis=1)
    return p_NV


def test_the_targets_of_two_are_their_mean_at_every_node(both: Both) -> None:
    footer = read_shard(both.part)[0]
    fingerprints = [read_shard(part)[0].teacher_sha256 for part in both.alone]
    assert footer.teacher_sha256 == "+".join(fingerprints)
    assert set(map(str, both.teachers)) <= read_json(f"{both.part}.run.json")["inputs"].keys()
    for found, *alone in zip(*map(targets_of, [both.part, *both.alone]), strict=True):
        each = [probabilities(target, footer.vocab_size) for target in alone]
        mean_NV = np.mean(each, axis=0)
        assert probabilities(found, footer.vocab_size) == pytest.approx(mean_NV, rel=5e-3, abs=1e-6)  # stored as fp16
        on_path_N = np.take_along_axis(mean_NV, found.path[:, None].astype(int), axis=1)
        assert found.path_logp == pytest.approx(float(np.log(on_path_N).sum()), rel=5e-3)
        assert found.path_logp <= found.total_logp + 1e-3


def test_their_mean_is_what_searches_unlabelled_audio(both: Both) -> None:
    """Greedy: every node of a path has the class that is the most probable of the mean."""
    searched = [target for target in targets_of(both.part) if target.origin == "greedy"]
    assert searched
    for target in searched:
        best_N, is_label_N = target.topk_ids[:, 0], target.path != 0
        follows_label_N = np.append(False, is_label_N[:-1])  # max_symbols is 1: a blank whatever it is
        assert ((best_N == target.path) | follows_label_N).all()


def test_verify_wants_all_of_them(both: Both, capsys: pytest.CaptureFixture[str]) -> None:
    command = both.toy.verify_command(both.teachers[1], both.part.parent)
    assert main(command) == 1
    first, second = (read_shard(part)[0].teacher_sha256[:12] for part in both.alone)
    assert f"teacher_sha256 is {first}+{second}, expected {second}\n" in capsys.readouterr().err
    assert main(both.of_both(command)) == 0
    assert both.index.exists()


def test_a_student_learns_from_both_and_may_run_one_of_them(
    both: Both, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(both.of_both(both.toy.verify_command(both.teachers[1], both.part.parent))) == 0
    config, out, other = tmp_path / "student.yaml", tmp_path / "both/model.pt", tmp_path / "other/model.pt"
    over = {"kd": {"encoder_weight": 0.3}, "training": {"updates": 2, "evaluate_every": 2}}
    config.write_text(yaml.safe_dump(merge(STUDENT, over)))
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text(yaml.safe_dump(merge(TEACHER, {"training": {"seed": 8, "updates": 1, "evaluate_every": 1}})))
    assert main(changed(both.toy.teacher_command(other), config=teacher)) == 0
    command = changed(both.toy.student_command(both.index, out), config=config)
    assert main([*command, "--teacher", str(other)]) == 1
    first, second = (read_shard(part)[0].teacher_sha256[:12] for part in both.alone)
    assert f"but the targets of {both.index} are by {first}+{second}: give" in capsys.readouterr().err
    assert main([*command, "--teacher", str(both.teachers[1])]) == 0
    assert {str(both.index), str(both.teachers[1])} <= read_json(f"{out}.run.json")["inputs"].keys()
