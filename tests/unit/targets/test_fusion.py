"""Fused distributions, n-best targets and the choice of the path, against slow twins."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from kdtrans.__main__ import main
from kdtrans.artifacts import read_json
from kdtrans.config import LmConfig, TargetsConfig, validate
from kdtrans.contracts import BLANK, ContractError
from kdtrans.data.batches import inference_batches
from kdtrans.data.manifest import text_of
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.models.transducer import Transducer
from kdtrans.search.hypothesis import Hypothesis
from kdtrans.search.search import search
from kdtrans.targets.make import fuse, label_scores, make_targets, rank_hypotheses
from kdtrans.targets.shards import Target, read_shard, read_shard_footer, row_to_target, write_shard
from kdtrans.targets.store import TargetStore
from kdtrans.training.checkpoint import load_model
from tests.tiny import TARGETS, Workspace

BEAM = {"search": {"type": "beam", "beam": 4, "max_symbols": 1}}
WHOLE = {"top_k": 999, "min_probability": 0.0, "logp_step": 0.0}  # distributions as the teacher has them


class Bigram:
    """A language model of the previous token, as tensors and, in `table`, as plain numbers."""

    def __init__(self, vocab_size: int) -> None:
        generator = torch.Generator().manual_seed(3)
        self.table = torch.randn(vocab_size, vocab_size, generator=generator).mul(2).log_softmax(1)
        self.table[:, BLANK] = 0.0

    def start(self, batch: int) -> Tensor:
        return torch.zeros(batch, dtype=torch.long)

    def score(self, state: Tensor) -> Tensor:
        return self.table[state].clone()

    def advance(self, state: Tensor, token_N: Tensor) -> Tensor:
        return token_N


@pytest.fixture(scope="module")
def tokenizer(toy: Workspace) -> Tokenizer:
    return Tokenizer(toy.tokenizer)


@pytest.fixture(scope="module")
def teacher(toy: Workspace, tokenizer: Tokenizer) -> Transducer:
    model = load_model(toy.teacher, tokenizer)
    with torch.no_grad():  # four updates have taught it little but blanks: make it speak
        model.joiner.output.bias[BLANK] -= 3.0
    return model


def targets_of(toy: Workspace, teacher: Transducer, tokenizer: Tokenizer, **changes: object) -> list[list[Target]]:
    config = validate(TargetsConfig, TARGETS | BEAM | WHOLE | changes, "test")
    lm = Bigram(tokenizer.vocab_size) if config.search.lm else None
    batch = next(iter(inference_batches(toy.cuts, teacher.encoder.extract, 100.0)))
    return make_targets(teacher, *batch, tokenizer, config, lm)


def test_fused_distributions_are_those_of_a_loop_over_nodes(
    toy: Workspace, teacher: Transducer, tokenizer: Tokenizer
) -> None:
    """The twin goes along the path node by node, with the language model's scores in dictionaries."""
    weight, table = 0.6, Bigram(tokenizer.vocab_size).table
    changes = {"search": BEAM["search"] | {"lm": "ngram"}, "lm_weight": weight}
    checked = {"viterbi": 0, "beam_lm": 0}
    fused = [ranked[0] for ranked in targets_of(toy, teacher, tokenizer, **changes)]
    cuts = {cut.id: cut for cut in toy.cuts}
    for target in fused:
        features = next(iter(inference_batches([cuts[target.utt_id]], teacher.encoder.extract, 100.0)))
        with torch.inference_mode():
            enc, _ = teacher.encode(*features[1:])
            labels = torch.tensor(target.labels.astype(np.int64))[None]
            pred = teacher.project_predictor(teacher.predictor(labels))
            grid = teacher.grid(teacher.project_encoder(enc), pred)[0].log_softmax(-1)
        t, spelled, total = 0, [BLANK], 0.0
        for n, token in enumerate(target.path.tolist()):
            own = dict(enumerate(grid[t, len(spelled) - 1].tolist()))
            total += own[token]
            if token != BLANK:
                scores = {k: p if k == BLANK else p + weight * float(table[spelled[-1], k]) for k, p in own.items()}
                norm = math.log(sum(math.exp(score) for score in scores.values()))
                own = {k: score - norm for k, score in scores.items()}
                spelled.append(token)
                checked[target.origin] += 1
            else:
                t += 1
            stored = dict(zip(target.topk_ids[n].tolist(), target.topk_logp[n].tolist(), strict=True))
            assert stored == pytest.approx(own, abs=2e-2)  # fp16
        assert target.path_logp == pytest.approx(total, abs=1e-2)  # of the transducer alone
    assert min(checked.values()) > 3


def test_fusion_leaves_blank_nodes_and_normalises_label_nodes() -> None:
    logp = torch.randn(5, 7).log_softmax(1)
    path = torch.tensor([0, 3, 3, 0, 0])
    lm = torch.randn(2, 7)
    lm[:, BLANK] = 0
    fused = fuse(logp, path, lm)
    assert torch.equal(fused[path == BLANK], logp[path == BLANK])
    torch.testing.assert_close(fused.exp().sum(1), torch.ones(5))
    assert torch.equal(fuse(logp[:1], path[:1], lm[:0]), logp[:1])
    assert label_scores(Bigram(7), torch.zeros(2, 0, dtype=torch.long)).shape[:2] == (2, 0)


def test_nbest_targets_are_the_beams_hypotheses(toy: Workspace, teacher: Transducer, tokenizer: Tokenizer) -> None:
    config = validate(TargetsConfig, TARGETS | BEAM, "test")
    batch, features, lengths = next(iter(inference_batches(toy.cuts, teacher.encoder.extract, 100.0)))
    with torch.inference_mode():
        enc, frames = teacher.encode(features, lengths)
    found = search(teacher, enc, frames, config.search)
    made = targets_of(toy, teacher, tokenizer, nbest=3)
    best_only = targets_of(toy, teacher, tokenizer)
    several = 0
    for cut, hypotheses, ranked, best in zip(batch, found, made, best_only, strict=True):
        assert [target.rank for target in ranked] == list(range(len(ranked)))
        assert np.array_equal(ranked[0].path, best[0].path)
        assert np.array_equal(ranked[0].topk_logp, best[0].topk_logp)
        if text_of(cut) is not None:
            assert [target.weight for target in ranked] == [1.0]
            continue
        kept = [h for rank, h in enumerate(hypotheses[:3]) if rank == 0 or h.tokens]
        assert [target.labels.tolist() for target in ranked] == [h.tokens for h in kept]
        posterior = torch.tensor([h.score for h in kept], dtype=torch.float64).softmax(0).tolist()
        assert [target.weight for target in ranked] == pytest.approx(posterior, abs=1e-5)
        assert best[0].weight == 1.0
        several += len(ranked) > 1
        for target, hypothesis in zip(ranked, kept, strict=True):
            emitted = np.flatnonzero(target.path != BLANK) - np.arange(len(hypothesis.tokens))
            assert emitted.tolist() == hypothesis.frames
            assert target.text == tokenizer.decode(hypothesis.tokens)
            assert target.path_logp <= target.total_logp + 1e-3
    assert several > 1


def test_viterbi_paths_of_pseudo_labels_beat_the_searchs(
    toy: Workspace, teacher: Transducer, tokenizer: Tokenizer
) -> None:
    for searched, best in zip(
        targets_of(toy, teacher, tokenizer, nbest=2),
        targets_of(toy, teacher, tokenizer, nbest=2, unlabelled_path="viterbi"),
        strict=True,
    ):
        for one, two in zip(searched, best, strict=True):
            assert one.labels.tolist() == two.labels.tolist()
            assert (one.origin, one.weight, one.text) == (two.origin, two.weight, two.text)
            assert two.path_logp >= one.path_logp - 1e-3
            assert two.total_logp == pytest.approx(one.total_logp, abs=1e-3)


def test_hypotheses_without_labels_or_hope_are_left_out(tokenizer: Tokenizer) -> None:
    def hypothesis(tokens: list[int], score: float) -> Hypothesis:
        return Hypothesis(tokens, [0] * len(tokens), [0.0] * len(tokens), score, score, 0.0)

    config = validate(TargetsConfig, TARGETS | BEAM | {"nbest": 4}, "test")
    found = [hypothesis([2], -1.0), hypothesis([], -1.5), hypothesis([3], -2.0), hypothesis([2, 3], -30.0)]
    ranked = rank_hypotheses(found, 3, tokenizer, config)
    assert [(one.labels, one.origin) for one in ranked] == [([2], "beam"), ([3], "beam")]
    assert [one.weight for one in ranked] == pytest.approx([math.e / (1 + math.e), 1 / (1 + math.e)])
    assert [one.labels for one in rank_hypotheses(found[1:2], 3, tokenizer, config)] == [[]]


def test_a_missing_language_model_is_refused(toy: Workspace, teacher: Transducer, tokenizer: Tokenizer) -> None:
    config = validate(TargetsConfig, TARGETS | {"search": {"type": "beam", "lm": "ngram"}, "lm_weight": 0.3}, "test")
    batch = next(iter(inference_batches(toy.cuts[:2], teacher.encoder.extract, 100.0)))
    with pytest.raises(ValueError, match="no language model"):
        make_targets(teacher, *batch, tokenizer, config)


# ---------------------------------------------------------------------------------------------------- through the files
@pytest.fixture(scope="module")
def part(toy: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard of fused 3-best targets, made by the stages with an n-gram."""
    folder = tmp_path_factory.mktemp("fused")
    settings = TARGETS | {"search": BEAM["search"] | {"lm": "ngram"}, "lm_weight": 0.3, "nbest": 3}
    (folder / "targets.yaml").write_text(yaml.safe_dump(settings))
    (folder / "lm.yaml").write_text(yaml.safe_dump(LmConfig(order=2).model_dump(mode="json")))
    lm = ["lm", "--config", folder / "lm.yaml", "--cuts", toy.train, "--tokenizer", toy.tokenizer]
    assert main([*map(str, lm), "--out", str(folder / "lm.arpa")]) == 0
    dump = toy.dump_command(toy.teacher, folder / "part-00000.parquet")
    dump[dump.index("--config") + 1] = str(folder / "targets.yaml")
    assert main(dump) == 1  # search.lm needs --lm
    assert main([*dump, "--lm", str(folder / "lm.arpa")]) == 0
    return folder / "part-00000.parquet"


def test_fused_nbest_shards_are_sound(toy: Workspace, part: Path) -> None:
    index = part.with_name("index.json")
    assert main(toy.verify_command(toy.teacher, part.parent)) == 0
    footer, table = read_shard(part)
    assert footer.lm_weight == 0.3
    assert footer.lm_sha256
    facts = read_json(index)
    assert (facts["utterances"], facts["paths"], facts["lm_weight"]) == (12, len(table), 0.3)
    store = TargetStore(index, footer.tokenizer_sha256, footer.vocab_size)
    for cut in toy.cuts:
        assert sum(row.weight for row in store.rows(cut.id)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("weight", 0.5, "weights do not sum to 1"),
        ("weight", -1.0, "weight is negative or not a number"),
        ("weight", math.nan, "weight is negative or not a number"),
        ("rank", 2, "ranks are not 0, 1, 2"),
    ],
)
def test_verify_refuses_a_broken_ranking(
    toy: Workspace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    column: str,
    value: float,
    message: str,
) -> None:
    from dataclasses import replace

    footer, table = read_shard(toy.part)
    rows = [row_to_target(table, row, footer.top_k) for row in range(len(table))]
    second = replace(rows[3], **{"rank": 1, "weight": 0.0} | {column: value})  # type: ignore[arg-type]
    write_shard([*rows[:4], second, *rows[4:]], footer, tmp_path / "part-00000.parquet")
    command = toy.verify_command(toy.teacher, tmp_path)
    assert main(command) == 1
    assert message in (error := capsys.readouterr().err)
    assert "utterance utt03" in error


def test_a_shard_of_version_1_is_refused(toy: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet as pq

    old = tmp_path / "part-00000.parquet"
    table = pq.read_table(toy.part).drop_columns("weight")
    metadata = {
        key: b"1" if key == b"kdtrans.schema_version" else value for key, value in table.schema.metadata.items()
    }
    pq.write_table(table.replace_schema_metadata(metadata), old)
    message = "part-00000.parquet: schema_version is 1, this version reads 2 and 3: delete the shard"
    with pytest.raises(ContractError, match=message):
        read_shard_footer(old)
    assert main(toy.verify_command(toy.teacher, tmp_path)) == 1
    assert message in capsys.readouterr().err
    assert main(["inspect", str(old)]) == 1
    assert message in capsys.readouterr().err
