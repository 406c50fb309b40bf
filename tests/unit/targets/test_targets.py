"""What the teacher writes, and what a student refuses to read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from kdtrans.__main__ import main
from kdtrans.artifacts import read_json
from kdtrans.config import TargetsConfig, validate
from kdtrans.contracts import ContractError
from kdtrans.data.batches import inference_batches
from kdtrans.data.manifest import text_of, write_cuts
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.lattice.path import nodes
from kdtrans.targets.make import make_targets
from kdtrans.targets.shards import Target, TargetStore, read_shard, read_shard_footer, row_to_target, write_shard
from kdtrans.training.checkpoint import load_model
from tests.tiny import TARGETS, Workspace
from tests.unit.lattice.twins import every_path, path_score


@pytest.fixture(scope="module")
def made(toy: Workspace) -> dict[str, Target]:
    footer, table = read_shard(toy.folder / "part.parquet")
    targets = [row_to_target(table, row, footer.top_k) for row in range(len(table))]
    return {target.utt_id: target for target in targets}


def test_every_utterance_has_a_target_in_the_manifests_order(toy: Workspace, made: dict[str, Target]) -> None:
    assert list(made) == [cut.id for cut in toy.cuts]
    for cut in toy.cuts:
        assert made[cut.id].origin == ("greedy" if text_of(cut) is None else "viterbi")
        assert abs(made[cut.id].num_frames - cut.duration * 25) <= 1


def test_labelled_paths_spell_their_text_and_beat_all_others(toy: Workspace, made: dict[str, Target]) -> None:
    tokenizer = Tokenizer(toy.tokenizer)
    teacher = load_model(toy.folder / "teacher" / "model.pt", tokenizer)
    cut = next(cut for cut in toy.cuts if text_of(cut))
    labels = tokenizer.encode(text_of(cut) or "")[:2]
    with torch.inference_mode():
        for _, features, lengths in inference_batches([cut], teacher.encoder.extract, 10.0):
            enc, _ = teacher.encode(features, lengths)
            enc, pred = enc[:, :5], teacher.predictor(torch.tensor([labels]))
            grid = teacher.grid(teacher.project_encoder(enc), teacher.project_predictor(pred))[0].log_softmax(-1)
    from kdtrans.lattice.recursion import viterbi
    from kdtrans.losses.transducer import node_log_probs

    blank, label, _ = node_log_probs(grid[None], torch.tensor([labels]))
    _, score = viterbi(blank, label, torch.tensor([labels]), torch.tensor([5]), torch.tensor([2]))
    best = max(float(path_score(grid, candidate)) for candidate in every_path(5, labels))
    assert float(score) == pytest.approx(best, abs=1e-4)
    for cut in toy.cuts:
        if text := text_of(cut):
            assert made[cut.id].labels.tolist() == tokenizer.encode(text)


def test_stored_distributions_are_the_teachers(toy: Workspace, made: dict[str, Target]) -> None:
    """Recomputed from the model, one utterance at a time: also batch of N = batches of 1."""
    tokenizer = Tokenizer(toy.tokenizer)
    teacher = load_model(toy.folder / "teacher" / "model.pt", tokenizer)
    with torch.inference_mode():
        for cut in toy.cuts:
            target = made[cut.id]
            features = next(iter(inference_batches([cut], teacher.encoder.extract, 10.0)))[1]
            enc, _ = teacher.encode(features, torch.tensor([features.shape[1]]))
            labels = torch.from_numpy(target.labels.astype(np.int64))[None]
            grid = teacher.grid(teacher.project_encoder(enc), teacher.project_predictor(teacher.predictor(labels)))[0]
            path = torch.from_numpy(target.path.astype(np.int64))
            t_N, u_N = nodes(path)
            logp = grid.log_softmax(-1)[t_N, u_N]
            stored = torch.from_numpy(target.topk_logp.astype(np.float32))
            exact = logp.gather(1, torch.from_numpy(target.topk_ids.astype(np.int64)))
            torch.testing.assert_close(stored, exact, rtol=2e-3, atol=2e-3)  # fp16
            assert target.path_logp == pytest.approx(float(logp.gather(1, path[:, None]).sum()), abs=1e-2)
            assert target.path_logp <= target.total_logp + 1e-3
            assert 0 <= target.confidence <= 1


def test_two_runs_give_the_same_targets_and_training_mode_is_refused(toy: Workspace) -> None:
    tokenizer = Tokenizer(toy.tokenizer)
    teacher = load_model(toy.folder / "teacher" / "model.pt", tokenizer)
    config = validate(TargetsConfig, TARGETS, "test")
    batch = next(iter(inference_batches(toy.cuts, teacher.encoder.extract, 100.0)))
    one, two = (make_targets(teacher, *batch, tokenizer, config) for _ in range(2))
    for [a], [b] in zip(one, two, strict=True):
        assert np.array_equal(a.path, b.path)
        assert np.array_equal(a.topk_logp, b.topk_logp)
    with pytest.raises(ValueError, match="training mode"):
        make_targets(teacher.train(), *batch, tokenizer, config)


def store(toy: Workspace, *paths: Path, **changes: str | int) -> TargetStore:
    footer = read_shard_footer(toy.folder / "part.parquet")
    expected = {"teacher_sha256": footer.teacher_sha256, "tokenizer_sha256": footer.tokenizer_sha256}
    return TargetStore(list(paths), **({**expected, "vocab_size": footer.vocab_size} | changes))  # type: ignore[arg-type]


def test_a_store_finds_every_utterance(toy: Workspace, made: dict[str, Target]) -> None:
    targets = store(toy, toy.folder / "part.parquet")
    for utt_id, target in made.items():
        assert utt_id in targets
        assert len(targets[utt_id]) == 1
        assert np.array_equal(targets[utt_id][0].topk_ids, target.topk_ids)
    assert "nobody" not in targets


@pytest.mark.parametrize(
    ("key", "value"), [("teacher_sha256", "f" * 64), ("tokenizer_sha256", "e" * 64), ("vocab_size", 999)]
)
def test_shards_of_another_teacher_or_tokenizer_are_refused(toy: Workspace, key: str, value: str | int) -> None:
    with pytest.raises(ContractError, match=f"part.parquet: {key} is .*expected {value}"):
        store(toy, toy.folder / "part.parquet", **{key: value})


def test_the_same_utterance_in_two_shards_is_refused(toy: Workspace, tmp_path: Path) -> None:
    again = tmp_path / "again.parquet"
    again.write_bytes((toy.folder / "part.parquet").read_bytes())
    with pytest.raises(ContractError, match="utt00 is in an earlier shard"):
        store(toy, toy.folder / "part.parquet", again)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.9, -1])
def test_a_truncated_shard_is_refused_by_name(toy: Workspace, tmp_path: Path, kept: float) -> None:
    whole = (toy.folder / "part.parquet").read_bytes()
    cut_short = tmp_path / "short.parquet"
    cut_short.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(ContractError, match=r"short\.parquet is not a whole Parquet file"):
        store(toy, cut_short)


def test_a_foreign_parquet_file_is_refused(toy: Workspace, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    with pytest.raises(ContractError, match="not written by this workflow"):
        store(toy, tmp_path / "foreign.parquet")


def broken(toy: Workspace, tmp_path: Path, change) -> list[str]:  # type: ignore[no-untyped-def]
    """Write the toy's shard with one thing changed and return the command that verifies it."""
    footer, table = read_shard(toy.folder / "part.parquet")
    targets = [row_to_target(table, row, footer.top_k) for row in range(len(table))]
    targets, footer = change(targets, footer)
    write_shard(targets, footer, tmp_path / "bad.parquet")
    return toy.verify_command(toy.folder / "teacher" / "model.pt", tmp_path / "bad.parquet", tmp_path / "index.json")


def without_nodes(target: Target) -> Target:
    none = slice(0, 0)
    lists = {"path": target.path[none], "topk_ids": target.topk_ids[none], "topk_logp": target.topk_logp[none]}
    return replace(target, num_frames=0, **lists)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows, f: (rows[:-1], f), "missing \\['utt11'\\]"),
        (lambda rows, f: ([*rows, rows[0]], f), "13 best targets for 12 utterances"),
        (lambda rows, f: ([replace(rows[0], num_frames=99), *rows[1:]], f), "blanks differ from num_frames"),
        (lambda rows, f: ([replace(rows[0], topk_logp=rows[0].topk_logp + 1), *rows[1:]], f), "sum to more than 1"),
        (lambda rows, f: ([replace(rows[0], topk_logp=rows[0].topk_logp * np.nan), *rows[1:]], f), "not numbers"),
        (lambda rows, f: ([rows[0], without_nodes(rows[1]), *rows[2:]], f), "the path is empty \\(utterance utt01"),
        (lambda rows, f: ([replace(rows[0], topk_ids=rows[0].topk_ids + 1000), *rows[1:]], f), "id 1.* in topk_ids"),
        (lambda rows, f: (rows, replace(f, teacher_sha256="d" * 64)), "teacher_sha256 is dddddddddddd"),
        (lambda rows, f: (rows, replace(f, manifest_sha256="d" * 64)), "manifest_sha256 is dddddddddddd"),
    ],
)
def test_verify_names_what_is_wrong(toy: Workspace, tmp_path: Path, capsys, change, message) -> None:  # type: ignore[no-untyped-def]
    assert main(broken(toy, tmp_path, change)) == 1
    import re

    errors = capsys.readouterr().err
    assert re.search(message, errors), errors
    assert "bad.parquet" in errors
    assert not (tmp_path / "index.json").exists()


def test_a_shard_without_utterances_is_refused(toy: Workspace, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    write_cuts([], tmp_path / "empty.jsonl.gz")
    command = toy.dump_command(toy.folder / "teacher" / "model.pt", tmp_path / "part.parquet")
    command[command.index("--cuts") + 1] = str(tmp_path / "empty.jsonl.gz")
    assert main(command) == 1
    assert "empty.jsonl.gz: no utterance is in this shard" in capsys.readouterr().err


def test_the_index_counts_what_is_there(toy: Workspace, made: dict[str, Target]) -> None:
    index = read_json(toy.folder / "index.json")
    assert index["utterances"] == len(made)
    assert index["nodes"] == sum(len(target.path) for target in made.values())
    assert index["origin"] == {"viterbi": 8, "greedy": 4}
    mass = np.concatenate([np.exp(target.topk_logp.astype(np.float32)).sum(1) for target in made.values()])
    assert index["mean_tail_mass"] == pytest.approx(float((1 - mass).clip(0, 1).mean()), abs=1e-4)
