"""A made-up run: everything that the report reads, small, seeded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kdtrans import contracts
from kdtrans.artifacts import write_json
from kdtrans.scoring.bootstrap import wer_interval
from kdtrans.scoring.wer import character_errors, word_errors

WORDS = ["the", "light", "kitchen", "turn", "on", "off", "please", "set", "alarm", "for", "seven", "play", "music"]
# system -> chance of an error a word, parameters
SYSTEMS = {
    "teacher": (0.04, 9_870_000),
    "baseline": (0.30, 1_130_000),
    "hard": (0.18, 1_130_000),
    "kd": (0.22, 1_130_000),
    "kd_unlabelled": (0.12, 1_130_000),
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


def write_score(folder: Path, system: str, search: str, testset: str, pairs: list[tuple[str, str]]) -> Path:
    """Write a summary and its counts for pairs of reference and hypothesis."""
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
    path = folder / system / search / f"{testset}.score.json"
    low, high = wer_interval(counts.words, counts.errors)
    summary = contracts.ScoreSummary(
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
        parameters=SYSTEMS.get(system, (0, 1_000_000))[1],
        lm_weight=0.3 if search == "beam_lm" else 0.0,
    )
    write_json(path, summary.to_json())
    contracts.write_table(pa.table(columns, schema=contracts.SCORES), path.with_suffix(".parquet"), {"system": system})
    return path


@pytest.fixture
def made_run(tmp_path: Path) -> dict[str, object]:
    return make_run(tmp_path)


@pytest.fixture
def score_writer() -> Callable[..., Path]:
    return write_score


@pytest.fixture
def target_writer() -> Callable[..., None]:
    return write_targets


def make_run(folder: Path, utterances: int = 60) -> dict[str, object]:
    """Write the files of a run; the result is the keyword arguments of `kdtrans.stages.report.main`."""
    rng = np.random.default_rng(3)
    texts = {
        testset: [" ".join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(utterances)]
        for testset in ("dev", "test")
    }
    scores = [
        write_score(
            folder / "decode",
            system,
            search,
            testset,
            [(text, spoil(rng, text, chance * (0.8 if search == "beam_lm" else 1))) for text in texts[testset]],
        )
        for system, (chance, _) in SYSTEMS.items()
        for testset, search in CONDITIONS
    ]
    metrics = []
    for number, (system, (chance, _)) in enumerate(SYSTEMS.items()):
        path = folder / "systems" / system / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        rows = [
            {"step": s, "loss": 3.0, "loss_transducer": (40 + number) / (1 + s / 60) + rng.normal() * 0.15}
            for s in range(25, 2001, 25)
        ]
        rows += [{"step": s, "dev_wer": 100 * chance + 40000 / s + rng.normal() * 0.7} for s in range(500, 2001, 250)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        metrics.append(f"{system}={path}")
    kept, found = {"utterances": 236, "hours": 0.1969, "speakers": 12}, {"utterances": 240, "hours": 0.2}
    lost = {"too_short_for_labels": {"utterances": 4, "hours": 0.0031}}
    splits = {
        "train-labelled": {**kept, "found": found, "dropped": lost, "counted": {}},
        "dev": {**kept, "found": kept, "dropped": {}, "counted": {"out_of_duration": {"utterances": 1, "hours": 0.01}}},
    }
    write_json(folder / "summary.json", {"splits": splits, "shared_speakers": {"train & dev": 2}})
    shards = [{"path": "part-00000.parquet", "utterances": 240, "nodes": 91_000, "bytes": 5_400_000, "hours": 1.2}]
    totals = {"utterances": 240, "hours": 1.2, "nodes": 91_000, "bytes": 5_400_000, "mean_tail_mass": 0.0123}
    origin = {"viterbi": 40, "greedy": 200}
    write_json(folder / "index.json", {"shards": shards, **totals, "mean_confidence": 0.71, "origin": origin})
    hidden = {f"u{n:02}": texts["dev"][n] for n in range(20)}
    lines = [json.dumps({"utt_id": utt, "text": text}) + "\n" for utt, text in hidden.items()]
    (folder / "unlabelled_text.jsonl").write_text("".join(lines))
    pseudo = {utt: spoil(rng, text, 0.06) for utt, text in hidden.items()}
    write_targets(folder / "part-00000.parquet", pseudo)
    (folder / "report.yaml").write_text("baseline: baseline\n")
    return {
        "config": folder / "report.yaml",
        "scores": scores,
        "data_summary": folder / "summary.json",
        "metrics": metrics,
        "out_dir": folder / "report",
        "index": folder / "index.json",
        "unlabelled_text": folder / "unlabelled_text.jsonl",
        "targets": [folder / "part-00000.parquet"],
    }


def write_targets(path: Path, texts: dict[str, str], origin: str = "greedy") -> None:
    """A target shard with one frame, one label and two nodes an utterance, k = 2."""
    rows = [
        {
            "utt_id": utt_id,
            "rank": 0,
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
