"""The workflow from no file to the report, and what it makes again when something changes."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kdtrans import contracts

Snakemake = Callable[..., subprocess.CompletedProcess[str]]  # the fixture of conftest.py
SYSTEMS = ["teacher", "baseline", "kd_unlabelled"]
SEARCHES = ["greedy", "beam_lm"]
TEST_SETS = ["dev", "test"]
DECODINGS = len(SYSTEMS) * len(SEARCHES) * len(TEST_SETS)


def jobs(dry_run_output: str) -> dict[str, int]:
    """Rule -> number of jobs, from the table that a dry run prints."""
    table = dry_run_output.partition("Job stats:")[2].partition("total")[0]
    rows = re.findall(r"^(\w+)\s+(\d+)$", table, flags=re.MULTILINE)
    return {rule: int(count) for rule, count in rows if rule != "all"}


def utterances(*manifests: Path) -> list[str]:
    """The ids of the cuts."""
    return [json.loads(line)["id"] for path in manifests for line in gzip.open(path, "rt", encoding="utf-8")]


def test_every_stage_leaves_its_product(results: Path) -> None:
    expected = {"corpus/SHA256SUMS", "tokenizer/tokenizer.model", "lm/lm.arpa", "data/summary.json"}
    expected |= {"teacher/model.pt", "teacher/gate.json", "targets/teacher/train/index.json"}
    expected |= {f"systems/{system}/model.pt" for system in SYSTEMS[1:]}
    expected |= {f"report/{name}" for name in ("index.html", "summary.json", "table.txt")}
    assert not {name for name in expected if not (results / name).stat().st_size}


def test_targets_hold_every_utterance_of_their_shard_once(results: Path) -> None:
    for shard in ("00000", "00001"):
        table = contracts.read_table(results / f"targets/teacher/train/part-{shard}.parquet", contracts.TARGETS)
        assert sorted(table["utt_id"].to_pylist()) == sorted(utterances(results / f"data/train/cuts.{shard}.jsonl.gz"))


@pytest.mark.parametrize("testset", TEST_SETS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_is_scored_on_every_utterance(results: Path, system: str, search: str, testset: str) -> None:
    stem = results / f"decode/{system}/{search}/{testset}"
    ids = utterances(results / f"data/{testset}/cuts.00000.jsonl.gz")
    assert sorted(set(pq.read_table(f"{stem}.parquet")["utt_id"].to_pylist())) == sorted(ids)
    score = contracts.ScoreSummary.from_json(json.loads(Path(f"{stem}.score.json").read_text()))
    assert (score.system, score.search, score.testset, score.utterances) == (system, search, testset, len(ids))
    assert score.wer >= 0


def test_the_table_names_every_system(results: Path) -> None:
    table = (results / "report/table.txt").read_text()
    assert all(system in table for system in SYSTEMS)


def test_a_second_run_has_nothing_to_do(results: Path, snakemake: Snakemake) -> None:
    assert "Nothing to be done" in snakemake().stdout


def test_a_lost_shard_is_made_again_alone_with_what_follows(results: Path, snakemake: Snakemake) -> None:
    shard = results / "targets/teacher/train/part-00001.parquet"
    aside = shard.rename(shard.with_suffix(".aside"))
    try:
        planned = jobs(snakemake("--dry-run").stdout)
    finally:
        aside.rename(shard)
    assert planned["dump"] == planned["verify"] == planned["train_student"] == planned["report"] == 1
    assert not planned.keys() & {"synth", "prepare", "check", "lm", "train_teacher", "gate"}


@pytest.mark.parametrize(
    ("over", "planned"),
    [
        ("teacher: {max_wer: 200000.0}", {"gate": 1}),
        (
            "decode: {max_duration_s: 30.0}",
            {"decode_testset": DECODINGS, "score": DECODINGS, "report": 1},
        ),
        (
            "decode: {searches: {greedy: {max_symbols: 2}}}",
            {"decode_testset": DECODINGS // 2, "score": DECODINGS // 2, "report": 1},
        ),
        (
            "systems: {kd_unlabelled: {kd: {weight: 0.3}}}",
            {"train_student": 1, "tune_lm": 1, "decode_testset": 4, "score": 4, "report": 1},
        ),
    ],
)
def test_a_changed_key_reruns_what_depends_on_it(
    results: Path, snakemake: Snakemake, over: str, planned: dict[str, int]
) -> None:
    assert jobs(snakemake("--dry-run", over=over).stdout) == planned


def test_a_job_time_limit_reaches_the_trainers_and_retrains_nothing(results: Path, snakemake: Snakemake) -> None:
    limit = ("--set-resources", "train_student:runtime=60")
    assert "Nothing to be done" in snakemake("--dry-run", *limit).stdout
    forced = snakemake("--dry-run", "--printshellcmds", *limit, "--forcerun", "train_student").stdout
    assert forced.count("--max-seconds 3000 ") == 2


def test_a_dry_run_leaves_the_settings_of_a_run_alone(results: Path, snakemake: Snakemake) -> None:
    settings = results / "config/report.yaml"
    before = settings.read_text()
    assert jobs(snakemake("--dry-run", over="report: {title: Another}").stdout) == {"report": 1}
    assert settings.read_text() == before


def test_a_wrong_key_stops_before_any_job(snakemake: Snakemake) -> None:
    run = snakemake("--dry-run", over="student: {kd: {wait: 1.0}}")
    assert run.returncode != 0
    assert "unknown key 'student.kd.wait'" in run.stdout


def test_a_corpus_that_is_not_there_is_asked_for(snakemake: Snakemake) -> None:
    librispeech = "{results: new, corpus: {name: librispeech}}"
    run = snakemake("--dry-run", over=librispeech)
    assert run.returncode != 0
    assert "snakemake download" in run.stdout
    assert jobs(snakemake("--dry-run", "download", over=librispeech).stdout) == {"download": 1}
