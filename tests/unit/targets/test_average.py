"""Several teachers read as one: the mean against a slow twin and what has to hold of it; paths followed; refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrans.__main__ import main
from kdtrans.artifacts import read_json
from kdtrans.config import merge
from kdtrans.contracts import ContractError, TargetsFooter
from kdtrans.data.manifest import write_cuts
from kdtrans.targets.average import AveragedStore, mean_distributions
from kdtrans.targets.encoding import encode
from kdtrans.targets.index import index_shard, row_groups, write_index
from kdtrans.targets.shards import Target, read_shard, row_to_target, write_shard
from kdtrans.targets.store import TargetStore
from tests.tiny import STUDENT, TARGETS, TEACHER, Workspace

V = 12
Distributions = tuple[np.ndarray, np.ndarray]  # ids (N, K), log-probabilities (N, K)


# ---------------------------------------------------------------------------------------------------- the distributions
def random_logp(seed: int, nodes: int = 6) -> np.ndarray:
    """Log-probabilities of every class, some of them nearly certain."""
    random = np.random.default_rng(seed)
    logits_NV = random.normal(scale=random.uniform(0.1, 6), size=(nodes, V))
    return np.asarray(logits_NV - np.log(np.exp(logits_NV).sum(1, keepdims=True)))


def stored(logp_NV: np.ndarray, top_k: int, min_probability: float, step: float) -> Distributions:
    """As a shard has it."""
    ids_NK = np.argsort(-logp_NV, axis=1)[:, :top_k]
    return encode(ids_NK, np.take_along_axis(logp_NV, ids_NK, 1), min_probability, step)


@st.composite
def a_distribution(draw: st.DrawFn, top_k: int | None = None) -> Distributions:
    """What a shard may hold of six nodes."""
    k = draw(st.integers(1, V)) if top_k is None else top_k
    below, step = draw(st.sampled_from([0.0, 1e-3, 0.1])), draw(st.sampled_from([0.0625, 0.25]))
    return stored(random_logp(draw(st.integers(0, 10_000))), k, below, step)


def dictionaries(ids_NK: np.ndarray, logp_NK: np.ndarray) -> list[dict[int, float]]:
    """Class -> probability of each node, without the classes left out."""
    return [
        {int(i): math.exp(float(logp)) for i, logp in zip(ids, logps, strict=True) if logp > -math.inf}
        for ids, logps in zip(ids_NK, logp_NK, strict=True)
    ]


def slow_mean(distributions: list[Distributions], top_k: int) -> list[list[tuple[int, float]]]:
    """The twin: dictionaries, node by node; (class, probability), most probable first."""
    nodes = zip(*(dictionaries(*distribution) for distribution in distributions), strict=True)
    means = []
    for found in nodes:
        classes = {i for one in found for i in one}
        mean = {i: sum(one.get(i, 0.0) for one in found) / len(found) for i in classes}
        means.append(sorted(mean.items(), key=lambda item: (-item[1], item[0]))[:top_k])
    return means


@settings(deadline=None, max_examples=30)
@given(st.lists(a_distribution(), min_size=1, max_size=4), st.integers(1, V))
def test_the_mean_is_that_of_dictionaries_node_by_node(distributions: list[Distributions], top_k: int) -> None:
    ids_NK, logp_NK = mean_distributions(distributions, top_k)
    for ids, logp, expected in zip(ids_NK, logp_NK, slow_mean(distributions, top_k), strict=True):
        count = len(expected)
        # Float addition is not associative: beyond two, nearly equal classes may change places.
        assert np.exp(logp[:count].astype(float)) == pytest.approx([p for _, p in expected], rel=1e-6)
        found = {int(i): float(p) for i, p in zip(ids[:count], np.exp(logp[:count]), strict=True)}
        if len(distributions) <= 2:
            assert list(found) == [i for i, _ in expected]
        assert len(found) == count
        assert not ids[count:].any()
        assert (logp[count:] == -np.inf).all()


@settings(deadline=None, max_examples=30)
@given(st.lists(a_distribution(), min_size=1, max_size=4))
def test_every_node_is_sorted_and_has_no_more_than_all_mass(distributions: list[Distributions]) -> None:
    _, logp_NK = mean_distributions(distributions, V)
    assert (logp_NK[:, 1:] <= logp_NK[:, :-1]).all()
    assert (logp_NK[:, 0] > -np.inf).all()
    masses = [np.exp(logp.astype(float)).sum(1) for _, logp in distributions]
    assert np.exp(logp_NK.astype(float)).sum(1) == pytest.approx(np.mean(masses, axis=0), abs=1e-6)
    assert (np.exp(logp_NK.astype(float)).sum(1) <= 1 + 1e-5).all()


@settings(deadline=None, max_examples=30)
@given(a_distribution(), st.integers(1, 3))
def test_the_mean_of_the_same_is_the_same(distribution: Distributions, times: int) -> None:
    ids_NK, logp_NK = mean_distributions([distribution] * times, distribution[0].shape[1])
    exact = times != 3  # a third of three times p may be another float than p
    np.testing.assert_allclose(logp_NK, distribution[1].astype(np.float32), rtol=0 if exact else 1e-6)
    assert [set(node) for node in dictionaries(ids_NK, logp_NK)] == [set(node) for node in dictionaries(*distribution)]


@settings(deadline=None, max_examples=30)
@given(a_distribution(top_k=4), a_distribution(top_k=4))
def test_the_mean_of_two_does_not_know_which_is_the_first(one: Distributions, two: Distributions) -> None:
    for here, there in zip(mean_distributions([one, two], 4), mean_distributions([two, one], 4), strict=True):
        assert np.array_equal(here, there)


def test_with_all_classes_stored_the_mean_is_exact() -> None:
    whole = [random_logp(seed) for seed in (1, 2, 3)]
    every = [(np.tile(np.arange(V), (len(logp), 1)), logp) for logp in whole]
    ids_NK, logp_NK = mean_distributions(every, V)
    mean_NV = np.mean(np.exp(whole), axis=0)
    assert np.exp(logp_NK.astype(float)) == pytest.approx(np.take_along_axis(mean_NV, ids_NK.astype(int), 1), rel=1e-6)
    assert np.exp(logp_NK.astype(float)).sum(1) == pytest.approx(np.ones(len(mean_NV)), abs=1e-6)


@pytest.mark.parametrize("step", [0.0, 0.0625])
def test_a_class_is_understated_by_no_more_than_the_tails(step: float) -> None:
    whole = [random_logp(seed, nodes=50) for seed in (4, 5)]
    parts = [stored(logp, 4, 1e-2, step) for logp in whole]
    tail_N = sum(1 - np.exp(logp.astype(float)).sum(1) for _, logp in parts) / 2
    mean_NV = np.mean(np.exp(whole), axis=0)
    for truth, tail, node in zip(mean_NV, tail_N, dictionaries(*mean_distributions(parts, 8)), strict=True):
        for i, p in node.items():
            rounding = truth[i] * (math.exp(step) - 1) + 1e-3
            assert -tail - rounding <= p - truth[i] <= rounding + tail * (step > 0)


# ------------------------------------------------------------------------------------------------------ averaged stores
TOKENIZER = "b" * 64
FOOTER = TargetsFooter("a" * 64, TOKENIZER, V, 3, 1, "c" * 64)
PATH = np.array([0, 5, 0, 0, 7, 0], np.uint16)


def a_target(seed: int, utt_id: str = "utt", rank: int = 0, weight: float = 1.0) -> Target:
    ids, logp = stored(random_logp(seed), FOOTER.top_k, 1e-3, 0.0625)
    return Target(utt_id, rank, weight, "beam", 4, PATH, ids, logp, -8.0 - seed, -6.0 - seed, "text")


def a_store(folder: Path, targets: list[Target], **footer: object) -> TargetStore:
    folder.mkdir()
    described, path = replace(FOOTER, **footer), folder / "part-00000.parquet"  # type: ignore[arg-type]
    write_shard(targets, described, path)
    write_index(folder / "index.json", described, [index_shard(path, described, row_groups(path))])
    return TargetStore(folder / "index.json", TOKENIZER, V)


def test_an_averaged_store_has_the_firsts_paths_and_the_mean_of_all(tmp_path: Path) -> None:
    ranked = [[a_target(seed, rank=0, weight=0.75), a_target(seed + 1, rank=1, weight=0.25)] for seed in (10, 20)]
    one, two = (a_store(tmp_path / str(n), targets) for n, targets in enumerate(ranked))
    store = AveragedStore([one, two])
    assert (store.teacher_sha256, store.top_k, store.frame_offset) == ("a" * 64, 3, 1)
    assert "utt" in store
    assert "nobody" not in store
    assert store.rows("utt") == one.rows("utt")
    for rank in (0, 1):
        found, parts = store.target("utt", rank), [one.target("utt", rank), two.target("utt", rank)]
        assert (found.utt_id, found.rank, found.weight, found.text) == ("utt", rank, parts[0].weight, "text")
        assert np.array_equal(found.path, PATH)
        expected = slow_mean([(part.topk_ids, part.topk_logp) for part in parts], 3)
        for ids, logp, node in zip(found.topk_ids, found.topk_logp, expected, strict=True):
            assert [(int(i), pytest.approx(math.exp(x))) for i, x in zip(ids, logp, strict=True) if x > -20] == node
        for name in ("path_logp", "total_logp"):
            mean = np.mean([math.exp(getattr(part, name)) for part in parts])
            assert getattr(found, name) == pytest.approx(math.log(mean))
        assert found.node_targets(0).logp_NK.shape == (6, 3)


@pytest.mark.parametrize(
    ("other", "footer", "message"),
    [
        ([a_target(2)], {"frame_offset": 0}, r"frame_offset is 1, in .*two.index\.json it is 0"),
        ([a_target(2, "another")], {}, r"utterance utt has no target in .*two.index\.json"),
        ([replace(a_target(2), num_frames=5)], {}, r"utterance utt has other paths in .*one.* than in .*two.*\(4, 2, "),
        ([a_target(2, weight=0.5), a_target(3, rank=1, weight=0.5)], {}, r"\(4, 2, 1\.0\)\] and \[\(4, 2, 0\.5\)"),
        ([replace(a_target(2), path=PATH[[1, 0, 2, 3, 4, 5]])], {}, r"utterance utt .* token 0 and 5 at node 0: dump"),
    ],
)
def test_sets_that_do_not_go_together_are_refused(
    tmp_path: Path, other: list[Target], footer: dict[str, object], message: str
) -> None:
    one, two = a_store(tmp_path / "one", [a_target(1)]), a_store(tmp_path / "two", other, **footer)
    with pytest.raises(ContractError, match=message):  # noqa: PT012
        store = AveragedStore([one, two])
        store.rows("utt")
        store.target("utt", 0)


# ---------------------------------------------------------------------------------------------------- the command line
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


def test_a_student_learns_from_both(
    toy: Workspace, second: Second, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = tmp_path / "student.yaml", tmp_path / "both" / "model.pt"
    over = {"targets": ["teacher", "second"], "training": {"updates": 2, "evaluate_every": 2}}
    config.write_text(yaml.safe_dump(merge(STUDENT, over)))
    command = changed(toy.student_command(toy.index, out), config=config)
    assert main(command) == 1
    assert "uses the targets of ['teacher', 'second']: give --index as many, not 1" in capsys.readouterr().err
    assert main([*command, str(second.part.parent / "index.json")]) == 0
    inputs = read_json(f"{out}.run.json")["inputs"]
    assert {str(toy.index), str(second.part.parent / "index.json")} <= inputs.keys()


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


def test_another_teachers_own_paths_are_not_averaged(
    toy: Workspace, second: Second, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, config = tmp_path / "own", tmp_path / "student.yaml"
    assert main(toy.dump_command(second.teacher, own / "part-00000.parquet")) == 0
    assert main(toy.verify_command(second.teacher, own)) == 0
    config.write_text(yaml.safe_dump(STUDENT | {"targets": ["teacher", "own"]}))
    command = changed(toy.student_command(toy.index, tmp_path / "model.pt"), config=config)
    assert main([*command, str(own / "index.json")]) == 1
    errors = capsys.readouterr().err
    assert "has other paths in" in errors
    assert "dump the second along the first" in errors
