"""What the teacher writes, and what a student refuses to read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kdtrans.__main__ import main
from kdtrans.artifacts import read_json
from kdtrans.config import TargetsConfig, validate
from kdtrans.data.batches import inference_batches
from kdtrans.data.manifest import text_of, write_cuts
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.lattice.path import nodes
from kdtrans.targets.encoding import encode
from kdtrans.targets.make import make_targets
from kdtrans.targets.shards import Target, read_shard, row_to_target, write_shard
from kdtrans.training.checkpoint import load_model
from tests.tiny import TARGETS, Workspace
from tests.unit.lattice.twins import every_path, path_score


@pytest.fixture(scope="module")
def made(toy: Workspace) -> dict[str, Target]:
    footer, table = read_shard(toy.part)
    targets = [row_to_target(table, row, footer.top_k) for row in range(len(table))]
    return {target.utt_id: target for target in targets}


def test_every_utterance_has_a_target_in_the_manifests_order(toy: Workspace, made: dict[str, Target]) -> None:
    assert list(made) == [cut.id for cut in toy.cuts]
    for cut in toy.cuts:
        assert made[cut.id].origin == ("greedy" if text_of(cut) is None else "viterbi")
        assert abs(made[cut.id].num_frames - cut.duration * 25) <= 1


def test_labelled_paths_spell_their_text_and_beat_all_others(toy: Workspace, made: dict[str, Target]) -> None:
    tokenizer = Tokenizer(toy.tokenizer)
    teacher = load_model(toy.teacher, tokenizer)
    cut = next(cut for cut in toy.cuts if text_of(cut))
    labels = tokenizer.encode(text_of(cut) or "")[:2]
    with torch.inference_mode():
        for _, features, lengths in inference_batches([cut], teacher.encoder.extract, 10.0):
            enc, _ = teacher.encode(features, lengths)
            enc, pred = enc[:, :5], teacher.predictor(torch.tensor([labels]))
            grid = teacher.grid(teacher.project_encoder(enc), teacher.project_predictor(pred))[0].log_softmax(-1)
    from kdtrans.lattice.recursion import viterbi
    from kdtrans.losses.transducer import node_log_probs

    blank, label = node_log_probs(grid[None], torch.tensor([labels]))
    _, score = viterbi(blank, label, torch.tensor([labels]), torch.tensor([5]), torch.tensor([2]))
    best = max(float(path_score(grid, candidate)) for candidate in every_path(5, labels))
    assert float(score) == pytest.approx(best, abs=1e-4)
    for cut in toy.cuts:
        if text := text_of(cut):
            assert made[cut.id].labels.tolist() == tokenizer.encode(text)


def test_stored_distributions_are_the_teachers(toy: Workspace, made: dict[str, Target]) -> None:
    """Recomputed from the model, one utterance at a time: also batch of N = batches of 1."""
    tokenizer, config = Tokenizer(toy.tokenizer), validate(TargetsConfig, TARGETS, "test")
    teacher = load_model(toy.teacher, tokenizer)
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
            top = logp.topk(target.topk_ids.shape[1])
            _, stored = encode(top.indices.numpy(), top.values.numpy(), config.min_probability, config.logp_step)
            # A batch of another shape moves a log-prob by 1e-6 or so, and once in a while over the edge of a step.
            np.testing.assert_allclose(target.topk_logp, stored, rtol=0, atol=config.logp_step + 2e-3)
            assert (np.abs(target.topk_logp - stored) < 2e-3).mean() > 0.95
            assert target.path_logp == pytest.approx(float(logp.gather(1, path[:, None]).sum()), abs=1e-2)
            assert target.path_logp <= target.total_logp + 1e-3
            assert 0 <= target.confidence <= 1


def test_two_runs_give_the_same_targets_and_training_mode_is_refused(toy: Workspace) -> None:
    tokenizer = Tokenizer(toy.tokenizer)
    teacher = load_model(toy.teacher, tokenizer)
    config = validate(TargetsConfig, TARGETS, "test")
    batch = next(iter(inference_batches(toy.cuts, teacher.encoder.extract, 100.0)))
    one, two = (make_targets(teacher, *batch, tokenizer, config) for _ in range(2))
    for [a], [b] in zip(one, two, strict=True):
        assert np.array_equal(a.path, b.path)
        assert np.array_equal(a.topk_logp, b.topk_logp)
    with pytest.raises(ValueError, match="training mode"):
        make_targets(teacher.train(), *batch, tokenizer, config)


def broken(toy: Workspace, tmp_path: Path, change) -> list[str]:  # type: ignore[no-untyped-def]
    """Write the toy's shard with one thing changed and return the command that verifies it."""
    footer, table = read_shard(toy.part)
    targets = [row_to_target(table, row, footer.top_k) for row in range(len(table))]
    targets, footer = change(targets, footer)
    write_shard(targets, footer, tmp_path / "part-00000.parquet")
    return toy.verify_command(toy.teacher, tmp_path)


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
    assert "part-00000.parquet" in errors
    assert not (tmp_path / "index.json").exists()


def test_a_shard_without_utterances_is_refused(toy: Workspace, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    write_cuts([], tmp_path / "empty.jsonl.gz")
    command = toy.dump_command(toy.teacher, tmp_path / "part.parquet")
    command[command.index("--cuts") + 1] = str(tmp_path / "empty.jsonl.gz")
    assert main(command) == 1
    assert "empty.jsonl.gz: no utterance is in this shard" in capsys.readouterr().err


def test_the_index_counts_what_is_there(toy: Workspace, made: dict[str, Target]) -> None:
    index = read_json(toy.index)
    assert index["utterances"] == len(made)
    assert index["nodes"] == sum(len(target.path) for target in made.values())
    assert index["origin"] == {"viterbi": 8, "greedy": 4}
    mass = np.concatenate([np.exp(target.topk_logp.astype(np.float32)).sum(1) for target in made.values()])
    assert index["mean_tail_mass"] == pytest.approx(float((1 - mass).clip(0, 1).mean()), abs=1e-4)
