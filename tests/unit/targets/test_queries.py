"""Every query of docs/targets.md runs on the page's own words, and answers what a loop over the targets answers."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdtrans.bench.reading import FOOTER, TOP_K, synthetic_target
from kdtrans.targets.shards import Target, read_shard, row_to_target, write_shard

PAGE = Path(__file__).parents[3] / "docs" / "targets.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
SPEAKERS = {f"utt{i:02d}": f"speaker{i % 3}" for i in range(12)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards with a second hypothesis each, and their manifests."""
    folder, random = tmp_path_factory.mktemp("train"), np.random.default_rng(3)
    for number in range(2):
        rows: list[Target] = []
        for utt_id in list(SPEAKERS)[number::2]:
            best = replace(synthetic_target(random), utt_id=utt_id, weight=0.7)
            best = replace(best, total_logp=best.path_logp + float(random.uniform(0.1, 3)))
            rows += [best, replace(best, rank=1, weight=0.3, total_logp=best.path_logp + 9)]
        write_shard(rows, FOOTER, folder / f"part-{number:05d}.parquet")
        cuts = [{"id": name, "supervisions": [{"id": name, "speaker": SPEAKERS[name]}]} for name in SPEAKERS]
        with gzip.open(folder / f"cuts.{number:05d}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(cut) + "\n" for cut in cuts[number::2])
    return folder


@pytest.fixture(scope="module")
def best(folder: Path) -> list[Target]:
    tables = [read_shard(path)[1] for path in sorted(folder.glob("part-*.parquet"))]
    targets = [row_to_target(table, row, TOP_K) for table in tables for row in range(len(table))]
    return [target for target in targets if target.rank == 0]


def answer(word: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the block with this word in it leaves in `answer`."""
    (block,) = [block for block in BLOCKS if word in block]
    for package in re.findall(r"^import (\w+)", block, flags=re.MULTILINE):
        pytest.importorskip(package)
    monkeypatch.chdir(folder)
    scope: dict[str, Any] = {}
    exec(block, scope)
    return scope["answer"]


def test_every_block_has_a_test_here() -> None:
    words = ["ORDER BY confidence", "AS entropy", "AS mass", "rate =", "tail"]
    assert len(BLOCKS) == len(words)
    assert [sum(word in block for block in BLOCKS) for word in words] == [1] * len(words)


def test_least_confident(folder: Path, best: list[Target], monkeypatch: pytest.MonkeyPatch) -> None:
    found = answer("ORDER BY confidence", folder, monkeypatch)
    expected = sorted(best, key=lambda target: target.confidence)[:10]
    assert found["utt_id"].tolist() == [target.utt_id for target in expected]


def test_entropy_by_speaker(folder: Path, best: list[Target], monkeypatch: pytest.MonkeyPatch) -> None:
    entropy, nodes = Counter[str](), Counter[str]()
    for target in best:
        for row in target.topk_logp.astype(np.float64):
            entropy[SPEAKERS[target.utt_id]] -= sum(np.exp(x) * x for x in row if x > -np.inf)  # type: ignore[assignment]
            nodes[SPEAKERS[target.utt_id]] += 1
    found = answer("AS entropy", folder, monkeypatch)
    assert len(found) == 3
    for speaker, value in zip(found["speaker"], found["entropy"], strict=True):
        assert value == pytest.approx(entropy[speaker] / nodes[speaker], rel=1e-6)


def test_confusions(folder: Path, best: list[Target], monkeypatch: pytest.MonkeyPatch) -> None:
    mass: dict[tuple[int, int], float] = {}
    for target in best:
        for label, ids, logp in zip(target.path, target.topk_ids, target.topk_logp.astype(np.float64), strict=True):
            for other, p in zip(ids, np.exp(logp), strict=True):
                if label != 0 and other != label and p > 0:
                    key = (int(label), int(other))
                    mass[key] = mass.get(key, 0.0) + float(p)
    found = answer("AS mass", folder, monkeypatch)
    largest = sorted(mass.values(), reverse=True)[:10]
    assert found["mass"].tolist() == pytest.approx(largest, rel=1e-6)
    for label, other, value in zip(found["label"], found["other"], found["mass"], strict=True):
        assert mass[label, other] == pytest.approx(value, rel=1e-6)


def test_label_rate(folder: Path, best: list[Target], monkeypatch: pytest.MonkeyPatch) -> None:
    rates = sorted(len(target.labels) / (target.num_frames * 0.04) for target in best)
    assert answer("rate =", folder, monkeypatch).tolist() == pytest.approx([rates[0], rates[-1]])


def test_tail_by_kind(folder: Path, best: list[Target], monkeypatch: pytest.MonkeyPatch) -> None:
    found = answer("tail", folder, monkeypatch).rows_by_key("kind", named=True, unique=True)
    for kind, is_kind in {"blank": lambda token: token == 0, "label": lambda token: token > 0}.items():
        tails = [
            max(1 - np.exp(logp.astype(np.float64)).sum(), 0)
            for target in best
            for token, logp in zip(target.path, target.topk_logp, strict=True)
            if is_kind(token)
        ]
        assert found[kind]["nodes"] == len(tails)
        assert found[kind]["tail"] == pytest.approx(np.mean(tails), rel=1e-6)
