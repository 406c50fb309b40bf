"""What the benchmark computes, against loops; that its parts run on tiny material; and what it prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdtrans.__main__ import build_parser
from kdtrans.bench import reading
from kdtrans.bench.table import Bench, Measurement
from kdtrans.bench.targets import SAMPLE, Material, measure_dump, measure_encoding
from kdtrans.config import TargetsConfig
from kdtrans.data.batches import inference_batches
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.stages import bench
from kdtrans.targets.shards import read_shard, row_to_target
from kdtrans.training.checkpoint import load_model
from tests.tiny import Workspace


@pytest.fixture(scope="module")
def sample() -> Material:
    footer, table = read_shard(SAMPLE)
    return Material("sample", footer.vocab_size, [row_to_target(table, row, footer.top_k) for row in range(6)])


def test_the_sample_holds_whole_distributions_and_its_licence(sample: Material) -> None:
    assert SAMPLE.stat().st_size <= 500_000
    assert "Carnegie Mellon" in (SAMPLE.parent / "LICENSE").read_text()
    for target in sample.targets:
        assert all(sorted(ids) == list(range(sample.vocab_size)) for ids in target.topk_ids)
        assert np.exp(target.topk_logp.astype(float)).sum(1) == pytest.approx(1, abs=2e-3)


def test_storing_everything_loses_nothing_and_less_costs_less(sample: Material) -> None:
    whole = TargetsConfig(top_k=sample.vocab_size, min_probability=0.0, logp_step=0.0)
    _, lossless = measure_encoding(sample, whole)
    _, default = measure_encoding(sample, TargetsConfig())
    assert lossless["kl_nats_per_node"] == pytest.approx(0, abs=1e-9)
    assert 0 < default["kl_nats_per_node"] < 0.01
    assert default["tail_mass"] < 0.01
    assert default["mb_per_hour"] < lossless["mb_per_hour"] / 2


def test_overhead_is_of_the_same_batches(toy: Workspace, tmp_path: Path) -> None:
    tokenizer = Tokenizer(toy.tokenizer)
    teacher = load_model(toy.teacher, tokenizer)
    batches = list(inference_batches(toy.cuts, teacher.encoder.extract, 4.0))
    rows, ratios = measure_dump(teacher, tokenizer, batches, TargetsConfig(), tmp_path, repeats=2)
    values = {row.name: row.values for row in rows}
    forward, overhead = values["encoder forward"], values["Viterbi, gather, top-k, encode, write"]
    assert values["dump_overhead"] == [o / f for o, f in zip(overhead, forward, strict=True)]
    assert ratios["dump_overhead"] > 0
    assert read_shard(tmp_path / "made.parquet")[1].num_rows == len(toy.cuts)


def test_a_synthetic_corpus_is_read_in_a_fresh_process(tmp_path: Path) -> None:
    assert reading.write_corpus(tmp_path, 2) == 2
    found = reading.read_in_a_fresh_process(tmp_path / "index.json", 2, 40)
    assert found["audio_s"] == 40 * reading.SECONDS
    assert all(value > 0 for value in found.values())


def test_synthetic_targets_are_like_real_ones(sample: Material) -> None:
    made = reading.synthetic_target(np.random.default_rng(0))
    assert made.num_frames == (made.path == 0).sum() == 300
    assert made.path[-1] == 0
    for target in (made, replace(sample.targets[0])):
        assert (np.diff(target.topk_logp.astype(float)[:, :2]) <= 0).all()
    assert np.exp(made.topk_logp.astype(float)).sum(1).max() <= 1 + 2e-3


def test_table_and_json_say_the_same(tmp_path: Path) -> None:
    row = Measurement("speed", "s/s", [3.0, 1000.0, 2000.0], {"k": 8})
    found = Bench("targets", [row], {"speed": row.median}, {"speed": ">= 500"})
    found.write(tmp_path / "bench.json")
    content = json.loads((tmp_path / "bench.json").read_text())
    assert set(content) == {"name", "rows", "ratios"}
    assert content["ratios"] == {"speed": 1000.0}
    assert content["rows"][0]["median"] == 1000.0
    assert content["rows"][0]["repeats"] == 3
    assert "1,000" in found.text()
    assert ">= 500" in found.text()
    assert "k 8" in found.text()
    assert "ratio" in found.text()
    assert "ratio" not in Bench("gpu", [row], {}, {}).text()  # there is no table of nothing


def test_command_line() -> None:
    arguments = build_parser("bench", bench.main).parse_args(["targets", "--quick", "--json", "a.json"])
    assert (arguments.name, arguments.quick, arguments.json) == ("targets", True, Path("a.json"))
    with pytest.raises(ValueError, match="no benchmark 'speed'"):
        bench.main("speed")
    with pytest.raises(ValueError, match="bench loss has no plot"):
        bench.main("loss", plot=Path("a.svg"))
