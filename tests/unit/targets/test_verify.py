"""What `kdtrans verify` finds in a set of shards, and what it leaves alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdtrans.contracts import ContractError
from kdtrans.targets.shards import Target
from kdtrans.targets.verify import verify_folder
from kdtrans.targets.verify_shard import Verdict
from tests.unit.targets.shard_sets import TEACHER, ShardSet

Change = Callable[[Target], Target]


@pytest.fixture
def made(tmp_path: Path) -> ShardSet:
    return ShardSet(tmp_path)


def verify(made: ShardSet) -> list[Verdict]:
    return verify_folder(made.targets, [made.data], TEACHER, made.tokenizer, lambda done: None)


def problems(verdicts: list[Verdict]) -> list[list[str]]:
    return [verdict.problems for verdict in verdicts]


def test_sound_shards_have_no_problems_whatever_they_are_compared_with(made: ShardSet) -> None:
    assert problems(verify(made)) == [[], [], []]
    done: list[int] = []
    alone = verify_folder(made.targets, None, None, None, done.append)
    assert problems(alone) == [[], [], []]
    assert done == [1, 2, 3]
    assert [verdict.indexed.utterances for verdict in alone if verdict.indexed] == [4, 4, 4]


def at_node(target: Target, node: int, **values: float) -> Target:
    """The target with entries of one node changed; `token` is the path's."""
    logp, ids, path = target.topk_logp.copy(), target.topk_ids.copy(), target.path.copy()
    for key, value in values.items():
        match key:
            case "first_logp":
                logp[node, 0] = value
            case "last_logp":
                logp[node, -1] = value
            case "first_id":
                ids[node, 0] = value
            case "second_id":
                ids[node, 1] = value
            case "token":
                path[node] = value
    return replace(target, topk_logp=logp, topk_ids=ids, path=path)


def in_certain_nodes(target: Target) -> Target:
    """One class of half the mass stands for all: the rest cannot be in classes below min_probability."""
    logp = np.full_like(target.topk_logp, -np.inf)
    logp[:, 0] = np.log(0.5)
    ids = np.zeros_like(target.topk_ids)
    ids[:, 0] = 2
    return replace(target, topk_logp=logp, topk_ids=ids)


FAULTS: list[tuple[Change, str]] = [
    (lambda t: replace(t, num_frames=99), r"the path's \d+ blanks differ from num_frames 99 \(utterance utt1-0, 1 in"),
    (lambda t: at_node(t, -1, token=3), "the path ends with token 3, not with blank"),
    (lambda t: at_node(t, 0, token=1000), "id 1000 in path is outside the vocabulary of"),
    (lambda t: at_node(t, 0, first_id=1000), "id 1000 in topk_ids is outside the vocabulary of"),
    (lambda t: replace(t, path=t.path[:0], topk_ids=t.topk_ids[:0], topk_logp=t.topk_logp[:0]), "the path is empty"),
    (lambda t: replace(t, topk_ids=t.topk_ids[:-1]), r"topk_ids has \d+ entries for \d+ nodes x top_k 4"),
    (lambda t: at_node(t, 3, first_logp=np.nan), "log-probabilities of a node are not numbers"),
    (lambda t: at_node(t, 3, first_logp=np.inf), "log-probabilities of a node are not numbers"),
    (lambda t: replace(t, topk_logp=t.topk_logp + np.float16(1)), "probabilities of a node sum to more than 1: 2"),
    (lambda t: at_node(t, 3, first_logp=-np.inf), "the most probable class of a node has probability 0"),
    (lambda t: at_node(t, 3, last_logp=0.0), "not most probable first"),
    (lambda t: at_node(t, 3, second_id=t.topk_ids[3, 0]), "a class twice"),
    (in_certain_nodes, r"not normalised: 0.5\d* is missing, at most 0.\d+ can be in the tail"),
    (lambda t: replace(t, path_logp=-1.0, total_logp=-2.0), "more probable than all paths: path_logp -1.0000, total"),
    (lambda t: replace(t, path_logp=np.nan), "not finite: path_logp nan"),
    (lambda t: replace(t, weight=0.5), "weights do not sum to 1, but to 0.5"),
    (lambda t: replace(t, weight=-1.0), "a weight is negative or not a number: -1"),
    (lambda t: replace(t, rank=1), "ranks are not 0, 1, 2, ...: 1 where 0 should be"),
    (lambda t: replace(t, text="four four"), "text is 'four four', in the manifest it is"),
    (lambda t: replace(t, text="four four"), "the path spells '.*', text is 'four four'"),
    (lambda t: replace(t, origin="greedy"), "text is None, in the manifest it is '.*' .None: unlabelled"),
    (lambda t: replace(t, utt_id="stranger"), r"missing \['utt1-0'\], not in the manifest \['stranger'\]"),
    (lambda t: replace(t, utt_id="utt1-3"), r"4 best targets for 4 utterances of .*missing \['utt1-0'\].*'utt1-3'"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_each_fault_is_named_and_only_its_shard_is_bad(made: ShardSet, change: Change, message: str) -> None:
    made.write(1, [change(made.rows[1][0]), *made.rows[1][1:]])
    first, second, third = problems(verify(made))
    assert first == third == []
    assert any(re.search(message, problem) for problem in second), second
    assert all(problem.startswith(str(made.part(1))) and "\n" not in problem for problem in second)


@pytest.mark.parametrize(
    ("key", "value"), [("teacher_sha256", "d" * 64), ("tokenizer_sha256", "d" * 64), ("manifest_sha256", "d" * 64)]
)
def test_another_teacher_tokenizer_or_manifest_is_named(made: ShardSet, key: str, value: str) -> None:
    made.write(2, **{key: value})
    first, second, third = problems(verify(made))
    assert first == second == []
    assert f"{made.part(2)}: {key} is dddddddddddd, expected " in third[0]


def test_shards_that_differ_from_the_others_are_named_without_a_model(made: ShardSet) -> None:
    made.write(0, teacher_sha256="d" * 64, frame_offset=1)
    first, *others = problems(verify_folder(made.targets, None, None, None, lambda done: None))
    assert others == [[], []]
    assert first == [
        f"{made.part(0)}: teacher_sha256 is {'d' * 64}, but {TEACHER} in 2 of 3 shards",
        f"{made.part(0)}: frame_offset is 1, but 0 in 2 of 3 shards",
    ]


def test_all_problems_of_all_shards_are_listed(made: ShardSet) -> None:
    rows = made.rows[0]
    made.write(0, [replace(rows[0], num_frames=99), replace(rows[1], weight=0.5, text="x"), *rows[2:]])
    made.part(1).write_bytes(made.part(1).read_bytes()[:-9])
    made.part(2).unlink()
    first, second, third = problems(verify(made))
    assert len(first) == 3
    assert len(second) == 1
    assert "SHA-256 is" in second[0]
    assert third == [f"{made.part(2)} does not exist, {made.manifest(2)} does: dump it"]


def test_a_fault_of_many_utterances_is_one_line(made: ShardSet) -> None:
    made.write(0, [replace(row, num_frames=99) for row in made.rows[0]])
    [line] = problems(verify(made))[0]
    assert line.endswith("differ from num_frames 99 (utterance utt0-0, 4 in all)")


def test_a_shard_without_a_manifest_and_names_that_do_not_match_are_refused(made: ShardSet) -> None:
    made.manifest(2).unlink()
    assert problems(verify(made))[2] == [
        f"{made.part(2)}: there is no manifest cuts.00002.jsonl.gz that it would belong to"
    ]
    made.part(2).rename(made.targets / "part-last.parquet")
    with pytest.raises(ContractError, match=r"part-last\.parquet is not called part-NNNNN\.parquet"):
        verify(made)
    with pytest.raises(ContractError, match=r"has no part-NNNNN\.parquet"):
        verify_folder(made.folder, None, None, None, lambda done: None)


def test_a_broken_manifest_condemns_no_shard(made: ShardSet) -> None:
    made.manifest(1).write_bytes(made.manifest(1).read_bytes()[:-20])
    with pytest.raises(ContractError, match=r"cuts\.00001\.jsonl\.gz is not a whole manifest"):
        verify(made)


@pytest.mark.parametrize("with_manifests", [False, True])
def test_an_utterance_in_two_shards_is_found(made: ShardSet, with_manifests: bool) -> None:
    made.write(2, [*made.rows[2], *made.rows[0][:2]])
    cuts = [made.data] if with_manifests else None
    first, second, third = problems(verify_folder(made.targets, cuts, None, None, lambda done: None))
    assert first == second == []
    assert (
        "6 best targets for 4 utterances" if with_manifests else f"2 utterances are in {made.part(0)} too"
    ) in third[0]


def test_an_utterance_twice_in_a_shard_is_found(made: ShardSet) -> None:
    made.write(1, [*made.rows[1], made.rows[1][0]])
    for cuts in (None, [made.data]):
        _, second, _ = problems(verify_folder(made.targets, cuts, None, None, lambda done: None))
        assert re.search(r"5 best targets.* twice:? \['utt1-0'\]", second[0])


def test_utterances_that_the_index_could_not_tell_apart_are_refused(
    made: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdtrans.targets import index

    monkeypatch.setattr(index, "utterance_key", lambda utt_id: 7 if utt_id.endswith("-0") else hash(utt_id) % 2**60)
    first, second, third = problems(verify(made))
    assert first == []
    assert "'utt0-0' and 'utt1-0', whose hashes are the same" in second[0]
    assert "whose hashes are the same" in third[0]


def test_nbest_rows_may_cross_row_groups(made: ShardSet) -> None:
    """An utterance's three hypotheses stand together; 64 rows are not a multiple of three."""
    rows = []
    for i in range(43):
        base = replace(made.rows[0][1], utt_id=f"utt{i:03d}", origin="beam")
        rows += [replace(base, rank=rank, weight=weight) for rank, weight in enumerate((0.5, 0.3, 0.2))]
    made.write(0, rows)
    verdicts = verify_folder(made.targets, None, TEACHER, made.tokenizer, lambda done: None)
    assert problems(verdicts) == [[], [], []]
    assert verdicts[0].indexed is not None
    assert (verdicts[0].indexed.utterances, len(verdicts[0].indexed.rows)) == (43, 129)


def test_a_damaged_record_condemns_its_shard(made: ShardSet) -> None:
    Path(f"{made.part(0)}.run.json").write_text("{")
    Path(f"{made.part(1)}.run.json").unlink()
    first, second, third = problems(verify(made))
    assert second == third == []
    assert "part-00000.parquet.run.json: not a record of a stage" in first[0]
