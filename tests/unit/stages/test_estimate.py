"""The estimate before a dump, against the dump."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kdtrans.contracts import TARGETS_INDEX, ContractError
from kdtrans.stages import estimate
from kdtrans.stages.estimate import Corpus, Sample, main
from tests.tiny import Workspace


def run(toy: Workspace, **changes: object) -> int:
    files = {"config": toy.config("targets"), "model": [toy.teacher], "tokenizer": toy.tokenizer, "cuts": [toy.train]}
    return main(**files | changes)  # type: ignore[arg-type]


def test_the_estimate_from_all_utterances_is_what_the_dump_takes(
    toy: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(toy, sample=99, hours=100.0, out=tmp_path / "not" / "yet", cuts=[toy.train.parent]) == 0
    printed = capsys.readouterr().out
    assert "12 of 12 utterances: " in printed
    assert "100 h like it" in printed
    assert printed.count("enough") == 2
    taken = toy.part.stat().st_size + 12 * 33  # a row of index.arrow is 33 bytes
    assert sum(field.type.bit_width for field in TARGETS_INDEX) == 33 * 8
    # Footers hold times and versions of different lengths.
    [found] = [line.split()[3] for line in printed.splitlines() if "targets on disk" in line]
    assert float(found) == pytest.approx(taken / 1e6, abs=0.011)
    assert not list(tmp_path.iterdir())


def test_too_little_disk_is_said_and_is_a_failure(
    toy: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2000, 1000, 1000))  # type: ignore[attr-defined]
    assert run(toy, sample=4, out=tmp_path) == 1
    captured = capsys.readouterr()
    assert "the targets need 0.0" in captured.err
    assert f"{tmp_path} has 0.00 MB free: free some disk" in captured.err
    assert "too little" in captured.out


def test_costs_grow_with_the_audio_and_shards_have_their_own() -> None:
    sample = Sample(hours=0.5, paths=100, nodes=1000, bytes=600_000, empty_bytes=100_000, real_time=20.0)
    assert sample.bytes_per_hour == 1e6
    cost = sample.cost(Corpus(hours=10.0, utterances=2000, shards=3))
    assert cost.bytes == pytest.approx(3 * 100_000 + 10 * 1e6 + 2000 * 33)
    assert (cost.hours, cost.nodes) == (0.5, 20_000)


def test_the_sample_is_seeded_and_every_utterance_as_likely(toy: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, lines = estimate._draw([toy.train], 5)
    assert corpus == Corpus(sum(cut.duration for cut in toy.cuts) / 3600, 12, 1)
    assert estimate._draw([toy.train], 5)[1] == lines
    assert len(set(lines)) == 5
    counts = dict.fromkeys(estimate._draw([toy.train], 12)[1], 0)
    for seed in range(300):
        monkeypatch.setattr(estimate, "SEED", seed)
        for line in estimate._draw([toy.train], 5)[1]:
            counts[line] += 1
    assert min(counts.values()) > 85  # 125 are expected, with a deviation of 8.5
    assert max(counts.values()) < 165


def test_nonsense_is_refused(toy: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sample is 0"):
        run(toy, sample=0)
    with pytest.raises(ContractError, match=r"has no cuts\.NNNNN\.jsonl\.gz"):
        run(toy, cuts=[tmp_path])
