"""A made-up run: everything that the report reads, small, seeded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kdtrans import contracts
from kdtrans.artifacts import write_json
from kdtrans.scoring.bootstrap import wer_interval
from kdtrans.scoring.wer import character_errors, word_errors

WORDS = ["the", "light", "kitchen", "turn", "on", "off", "please", "set", "alarm", "for", "seven", "play", "music"]
# system -> chance of an error a word, parameters, seeds, latency
SYSTEMS: dict[str, tuple[float, int, int, int | None]] = {
    "teacher": (0.04, 9_870_000, 1, None),
    "baseline": (0.30, 1_130_000, 3, None),
    "hard": (0.18, 1_130_000, 2, None),
    "kd": (0.175, 1_130_000, 1, None),
    "kd_unlabelled": (0.12, 1_130_000, 3, None),
    "streaming_baseline": (0.38, 1_120_000, 1, 640),
    "streaming_kd": (0.26, 1_120_000, 2, 640),
}
RUNS = {
    f"{system}-seed{seed}" if seeds > 1 else system: system
    for system, (_, _, seeds, _) in SYSTEMS.items()
    for seed in range(1, seeds + 1)
}
CONDITIONS = [("dev", "greedy"), ("test", "greedy"), ("test", "beam_lm")]


def spoil(rng: np.random.Generator, text: str, chance: float) -> str:
    """The text with words replaced, lost and added at random."""
    words: list[str] = []
    for word in text.split():
        kind = rng.choice(["keep", "sub", "del", "ins"], p=[1 - chance, chance / 2, chance / 4, chance / 4])
        other = str(rng.choice(WORDS))
        words += {"keep": [word], "sub": [other], "del": [], "ins": [word, other]}[kind]
    return " ".join(words)


def write_score(folder: Path, run: str, search: str, testset: str, pairs: list[tuple[str, str]]) -> Path:
    """Write a summary and its counts for pairs of reference and hypothesis; SYSTEM-seedN is a run of SYSTEM."""
    system = run.partition("-seed")[0]
    _, parameters, _, latency_ms = SYSTEMS.get(system, (0, 1_000_000, 1, None))
    references, hypotheses = map(list, zip(*pairs, strict=True))
    counts = word_errors(references, hypotheses)
    columns = {
        "utt_id": [f"{testset}-{number:03}" for number in range(len(pairs))],
        "speaker": ["s1"] * len(pairs),
        "reference": references,
        "hypothesis": hypotheses,
        "words": counts.words,
        "sub": counts.sub,
        "del": counts.dele,
        "ins": counts.ins,
        "seconds": [3.0] * len(pairs),
    }
    path = folder / run / search / f"{testset}.score.json"
    low, high = wer_interval(counts.words, counts.errors)
    summary = contracts.ScoreSummary(
        run,
        system,
        search,
        testset,
        wer=counts.rate,
        wer_low=low,
        wer_high=high,
        cer=character_errors(references, hypotheses).rate,
        sub=int(counts.sub.sum()),
        dele=int(counts.dele.sum()),
        ins=int(counts.ins.sum()),
        words=int(counts.words.sum()),
        utterances=len(pairs),
        audio_seconds=3.0 * len(pairs),
        decode_seconds=0.2 * len(pairs),
        parameters=parameters,
        lm_weight=0.3 if search == "beam_lm" else 0.0,
        latency_ms=latency_ms,
    )
    write_json(path, summary.to_json())
    contracts.write_table(pa.table(columns, schema=contracts.SCORES), path.with_suffix(".parquet"), {"system": system})
    return path


@pytest.fixture(scope="session")
def files_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def made_run(files_of_a_run: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Keyword arguments of `kdtrans.stages.report.main`; what it reads is shared, where it writes is the test's own."""
    return {**files_of_a_run, "out_dir": tmp_path / "report"}


@pytest.fixture
def score_writer() -> Callable[..., Path]:
    return write_score


def write_alignment(path: Path, frames: dict[str, list[int]], tokens: dict[str, list[int]] | None = None) -> Path:
    """Write alignments: utterance -> frames of its labels; the labels are 2, 3, ... where none are given."""
    rows = [
        {
            "utt_id": utt_id,
            "tokens": tokens[utt_id] if tokens else list(range(2, 2 + len(of_labels))),
            "token_frames": of_labels,
            "num_frames": 100,
            "path_logp": -1.0,
        }
        for utt_id, of_labels in frames.items()
    ]
    table = pa.Table.from_pylist(rows, schema=contracts.ALIGNMENTS)
    contracts.write_table(table, path, {"model_fingerprint": "ab"})
    return path


@pytest.fixture
def alignment_writer() -> Callable[..., Path]:
    return write_alignment


@pytest.fixture
def target_writer() -> Callable[..., None]:
    return write_targets


def make_run(folder: Path, utterances: int = 60) -> dict[str, Any]:
    """Write the files of a run; the result is the keyword arguments of `kdtrans.stages.report.main`."""
    rng = np.random.default_rng(3)
    texts = {
        testset: [" ".join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(utterances)]
        for testset in ("dev", "test")
    }
    scores = [
        write_score(
            folder / "decode",
            run,
            search,
            testset,
            [
                (text, spoil(rng, text, SYSTEMS[system][0] * (0.8 if search == "beam_lm" else 1)))
                for text in texts[testset]
            ],
        )
        for run, system in RUNS.items()
        for testset, search in CONDITIONS
    ]
    spoken = {f"test-{n:03}": np.sort(rng.integers(5, 80, rng.integers(3, 12))) for n in range(utterances)}
    alignments = []
    for run, system in RUNS.items():
        lag = 0 if system == "teacher" else 6 if system.startswith("streaming") else 1
        moved = {utt: (frames + rng.poisson(lag, len(frames))).tolist() for utt, frames in spoken.items()}
        alignments.append(write_alignment(folder / "align" / run / "test.parquet", moved))
    metrics = []
    for number, (run, system) in enumerate(RUNS.items()):
        chance = SYSTEMS[system][0]
        path = folder / "systems" / run / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        rows = [
            {"step": s, "loss": 3.0, "loss_transducer": (40 + number) / (1 + s / 60) + rng.normal() * 0.15}
            for s in range(25, 2001, 25)
        ]
        for s in range(500, 2001, 250):
            wer = 100 * chance + 40000 / s + rng.normal() * 0.7
            rows.append({"step": s, "dev_wer": wer, "dev_loss": wer / 4 + rng.normal() * 0.02})
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        metrics.append(f"{run}={path}")
    kept, found = {"utterances": 236, "hours": 0.1969, "speakers": 12}, {"utterances": 240, "hours": 0.2}
    lost = {"too_short_for_labels": {"utterances": 4, "hours": 0.0031}}
    splits = {
        "train-labelled": {**kept, "found": found, "dropped": lost, "counted": {}},
        "dev": {**kept, "found": kept, "dropped": {}, "counted": {"out_of_duration": {"utterances": 1, "hours": 0.01}}},
    }
    write_json(folder / "summary.json", {"splits": splits, "shared_speakers": {"train & dev": 2}, "speeds": [0.9, 1]})
    shards = [
        {"path": "results/part-00000.parquet", "utterances": 240, "nodes": 91_000, "bytes": 5_400_000, "hours": 1.2}
    ]
    totals = {"utterances": 240, "hours": 1.2, "nodes": 91_000, "bytes": 5_400_000, "mean_tail_mass": 0.0123}
    hidden = {f"u{n:02}": texts["dev"][n] for n in range(20)}
    lines = [json.dumps({"utt_id": utt, "text": text}) + "\n" for utt, text in hidden.items()]
    (folder / "unlabelled_text.jsonl").write_text("".join(lines))
    pseudo = {utt: spoil(rng, text, 0.06) for utt, text in hidden.items()}
    indices = []
    for name, origin in (("teacher", "greedy"), ("lm", "beam_lm")):
        index = folder / "targets" / name / "train" / "index.json"
        facts = {"shards": shards, **totals, "mean_confidence": 0.71, "origin": {"viterbi": 40, origin: 200}}
        write_json(index, facts)
        write_targets(index.with_name("part-00000.parquet"), pseudo, origin)
        indices.append(index)
    (folder / "report.yaml").write_text("baseline: baseline\n")
    return {
        "config": folder / "report.yaml",
        "scores": scores,
        "data_summary": folder / "summary.json",
        "metrics": metrics,
        "out_dir": folder / "report",
        "alignments": alignments,
        "indices": indices,
        "unlabelled_text": folder / "unlabelled_text.jsonl",
    }


def write_targets(path: Path, texts: dict[str, str], origin: str = "greedy") -> None:
    """A target shard with one frame, one label and two nodes an utterance, k = 2."""
    rows = [
        {
            "utt_id": utt_id,
            "rank": 0,
            "weight": 1.0,
            "origin": origin,
            "num_frames": 1,
            "path": [5, 0],
            "topk_ids": [5, 0, 0, 5],
            "topk_logp": np.log([0.8, 0.1, 0.7, 0.2]).astype(np.float16),
            "path_logp": -0.5,
            "total_logp": -0.4,
            "text": text,
            "confidence": 0.9,
            "frames_per_label": 1.0,
            "repetition": 0.0,
        }
        for utt_id, text in texts.items()
    ]
    table = pa.Table.from_pylist(rows, schema=contracts.TARGETS)
    contracts.write_table(table, path, {"schema_version": "1", "top_k": "2", "teacher_sha256": "ab" * 32})
