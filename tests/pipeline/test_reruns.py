"""What is made again: by phase, by force, after a changed key, a lost file, and after what should change nothing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from kdtrans.config import TARGET_NAMES
from tests.pipeline.test_status import remade
from tests.pipeline.workflow import REPOSITORY, Snakemake, jobs, run_snakemake

# Rule -> jobs of the tiny configuration: two shards, two students, three searches (one of them for one student alone).
CORPUS = {"synth": 1}
PREPARE = {"prepare_corpus": 1, "tokenizer": 1, "check": 1}
TEACHER = {"train_teacher": 1, "gate": 1}
NGRAM, LSTM = {"lm": 1}, {"lstm_lm": 1}  # of a search, and of the targets
TARGETS = {"dump": 2, "verify": 1}
DISTILLED = {"train_student": 1}  # the student that reads targets
STUDENTS = {"train_student": 2}
ALL_DECODED = {"tune_lm": 3, "decode_testset": 14, "score_testset": 14, "align": 3, "report": 1}
BUT_BASELINE = {"tune_lm": 2, "decode_testset": 10, "score_testset": 10, "align": 2, "report": 1}
ONE_DECODED = {"tune_lm": 1, "decode_testset": 6, "score_testset": 6, "align": 1, "report": 1}
ANOTHER_DECODED = {"tune_lm": 1, "decode_testset": 4, "score_testset": 4, "align": 1, "report": 1}

AFTER_TARGETS = DISTILLED | ONE_DECODED
AFTER_TEACHER = TARGETS | DISTILLED | BUT_BASELINE
AFTER_CHECK = LSTM | TEACHER | TARGETS | STUDENTS | ALL_DECODED

# Each phase adds its jobs to those of the one before; the last is the phase's own, which makes nothing.
HYPOTHESES = NGRAM | {"tune_lm": 3, "decode_testset": 14}
SCORES = {"score_testset": 14, "align": 3}
STEPS = {
    "prepare": CORPUS | PREPARE,
    "teacher": TEACHER,
    "targets": LSTM | TARGETS,
    "student": STUDENTS,
    "decode": HYPOTHESES,
    "score": SCORES,
    "report": {},
}
NOTHING = "Nothing to be done"


@pytest.mark.parametrize("phase", STEPS)
def test_a_phase_from_nothing_makes_what_it_needs(snakemake: Snakemake, phase: str) -> None:
    expected = {phase: 1}
    for earlier in [*STEPS][: [*STEPS].index(phase) + 1]:
        expected |= STEPS[earlier]
    assert jobs(snakemake("--dry-run", phase, over="results: new").stdout) == expected


@pytest.mark.parametrize("phase", STEPS)
def test_a_phase_of_a_finished_tree_has_nothing_to_do(results: Path, snakemake: Snakemake, phase: str) -> None:
    assert NOTHING in snakemake("--dry-run", phase).stdout


@pytest.mark.parametrize(
    ("rule", "own", "following"),
    [
        ("check", {"check": 1}, AFTER_CHECK),
        ("train_teacher", {"train_teacher": 1}, {"gate": 1} | AFTER_TEACHER),
        ("dump", {"dump": 2}, {"verify": 1} | AFTER_TARGETS),
        ("train_student", STUDENTS, {"tune_lm": 2, "decode_testset": 10, "score_testset": 10, "align": 2, "report": 1}),
        ("decode_testset", {"decode_testset": 14}, {"score_testset": 14, "report": 1}),
        ("score_testset", {"score_testset": 14}, {"report": 1}),
    ],
)
def test_a_forced_stage_is_made_again_alone_or_with_what_follows(
    results: Path, snakemake: Snakemake, rule: str, own: dict[str, int], following: dict[str, int]
) -> None:
    assert jobs(snakemake("--dry-run", "--forcerun", rule, "--until", rule).stdout) == own
    assert jobs(snakemake("--dry-run", "--forcerun", rule).stdout) == own | following


def test_a_forced_shard_is_made_again_alone(results: Path, snakemake: Snakemake) -> None:
    part = "results/targets/teacher/train/part-00001.parquet"
    planned = snakemake("--dry-run", "--forcerun", part, "--until", "dump").stdout
    assert jobs(planned) == {"dump": 1}
    assert f"output: {part}" in planned


def test_until_a_stage_makes_it_and_what_it_needs(snakemake: Snakemake) -> None:
    planned = jobs(snakemake("--dry-run", "--until", "dump", over="results: new").stdout)
    assert planned == CORPUS | PREPARE | TEACHER | LSTM | {"dump": 2}


@pytest.mark.parametrize(
    ("over", "planned"),
    [
        ("corpus: {synth: {voices: 9}}", CORPUS | PREPARE | NGRAM | AFTER_CHECK),
        ("{teacher: {training: {log_every: 1}}, student: {training: {cache_gb: 1.0, band_width: 7}}}", {}),
        ("corpus: {max_duration_s: 19.0}", PREPARE | NGRAM | AFTER_CHECK),
        ("corpus: {split: {dev_fraction: 0.2, labelled_fraction: 0.5}}", PREPARE | NGRAM | AFTER_CHECK),
        ("tokenizer: {vocab_size: 300}", {"tokenizer": 1, "check": 1} | NGRAM | AFTER_CHECK),
        ("lm: {order: 3}", NGRAM | {"tune_lm": 3, "decode_testset": 6, "score_testset": 6, "report": 1}),
        # the n-gram stays, and the targets that the LSTM went into are made again
        ("lm: {lstm: {updates: 20}}", LSTM | TARGETS | AFTER_TARGETS),
        ("teacher: {joiner_dim: 16}", TEACHER | AFTER_TEACHER),
        ("teacher: {training: {updates: 7}}", TEACHER | AFTER_TEACHER),
        ("teacher: {max_wer: 200000.0}", {"gate": 1}),
        ("targets: {top_k: 3}", TARGETS | AFTER_TARGETS),
        ("target_sets: {teacher: {top_k: 3}}", TARGETS | AFTER_TARGETS),
        # a second target set, and a system that learns from it
        (
            "{target_sets: {top1: {top_k: 1}}, systems: {one: {kd: {weight: 1.0}, targets: top1}}}",
            TARGETS | DISTILLED | ANOTHER_DECODED,
        ),
        # a set along the paths of one that is there
        (
            "{target_sets: {again: {along: teacher}}, systems: {two: {kd: {weight: 1.0}, targets: again}}}",
            TARGETS | DISTILLED | ANOTHER_DECODED,
        ),
        ("student: {joiner_dim: 16}", STUDENTS | BUT_BASELINE),  # of the teacher nothing
        ("systems: {kd_unlabelled: {kd: {weight: 0.3}}}", DISTILLED | ONE_DECODED),
        (
            "systems: {kd_unlabelled: {filters: {min_confidence: 0.5}}}",
            DISTILLED | ONE_DECODED,
        ),  # read with the targets
        ("systems: {baseline: {unlabelled: true}}", {"train_student": 1} | ANOTHER_DECODED),
        # seeds are runs of their own
        (
            "systems: {more: {seeds: [1, 2]}}",
            {"train_student": 2, "tune_lm": 2, "decode_testset": 8, "score_testset": 8, "align": 2, "report": 1},
        ),
        ("decode: {searches: {greedy: {max_symbols: 2}}}", {"decode_testset": 6, "score_testset": 6, "report": 1}),
        (
            "decode: {lm_weights: [0.0, 0.5]}",
            {"tune_lm": 3, "decode_testset": 6, "score_testset": 6, "report": 1},
        ),
        (
            "decode: {max_duration_s: 30.0}",
            {"decode_testset": 14, "score_testset": 14, "align": 3, "report": 1},
        ),
        ("report: {title: Another}", {"report": 1}),
    ],
)
def test_a_changed_key_reruns_what_depends_on_it(
    results: Path, snakemake: Snakemake, monkeypatch: pytest.MonkeyPatch, over: str, planned: dict[str, int]
) -> None:
    assert jobs(snakemake("--dry-run", over=over).stdout) == planned
    monkeypatch.chdir(results.parent)
    assert remade(results.parent, over) == planned, "what status says differs from what Snakemake plans"


def test_edited_sources_rules_and_comments_rerun_nothing(results: Path, tmp_path: Path) -> None:
    """From a copy of the repository, in which every file that the workflow consists of is newer than the results."""
    for name in ("kdtrans", "profiles", "workflow"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "Snakefile", tmp_path)
    shutil.copy(REPOSITORY / "config.yaml", tmp_path)
    for path in [tmp_path / "Snakefile", tmp_path / "config.yaml", *tmp_path.rglob("*.py"), *tmp_path.rglob("*.smk")]:
        path.write_text(path.read_text() + "# edited\n")
    dump = tmp_path / "workflow/rules/targets.smk"
    dump.write_text(dump.read_text().replace("exec kdtrans dump ", "exec nice kdtrans dump "))
    planned = run_snakemake(results.parent, "--dry-run", "--printshellcmds", repository=tmp_path).stdout
    assert NOTHING in planned, planned
    forced = run_snakemake(results.parent, "--dry-run", "-p", "--forcerun", "dump", repository=tmp_path).stdout
    assert "exec nice kdtrans dump " in forced  # it was the copy that planned


def test_a_lost_shard_is_made_again_alone_with_what_follows(results: Path, snakemake: Snakemake) -> None:
    shard = results / "targets/teacher/train/part-00001.parquet"
    aside = shard.rename(shard.with_suffix(".aside"))
    try:
        planned = jobs(snakemake("--dry-run").stdout)
    finally:
        aside.rename(shard)
    assert planned == {"dump": 1, "verify": 1} | AFTER_TARGETS


def test_a_lost_intermediate_is_made_again_when_it_is_needed(results: Path, snakemake: Snakemake) -> None:
    """Not by `all`, which names products: what was made from the lost file stands."""
    names = ["data/prepared/train.jsonl.gz", "lm/lm.arpa", "lm/lstm.pt", "decode/baseline/beam_lm/lm_weight.json"]
    lost = [results / name for name in names]
    aside = [path.rename(path.with_name(f"{path.name}.aside")) for path in lost]
    try:
        assert NOTHING in snakemake("--dry-run").stdout
        assert jobs(snakemake("--dry-run", "results/lm/lstm.pt").stdout) == PREPARE | LSTM
        again = jobs(snakemake("--dry-run", "--forcerun", "results/decode/baseline/beam_lm/test.parquet").stdout)
    finally:
        for path, there in zip(aside, lost, strict=True):
            path.rename(there)
    assert again.items() >= {"lm": 1, "tune_lm": 3}.items()  # every weight was tuned with the model that is new


def test_a_job_time_limit_reaches_the_trainers_and_retrains_nothing(results: Path, snakemake: Snakemake) -> None:
    limit = ("--set-resources", "train_student:runtime=60")
    assert NOTHING in snakemake("--dry-run", *limit).stdout
    forced = snakemake("--dry-run", "--printshellcmds", *limit, "--forcerun", "train_student").stdout
    assert forced.count("--max-seconds 3000 ") == 2


def test_a_dry_run_leaves_the_settings_of_a_run_alone(results: Path, snakemake: Snakemake) -> None:
    settings = results / "config/report.yaml"
    before = settings.read_text()
    assert jobs(snakemake("--dry-run", over="report: {title: Another}").stdout) == {"report": 1}
    assert settings.read_text() == before


def test_no_system_can_be_called_what_a_target_is(snakemake: Snakemake) -> None:
    printed = snakemake("--dry-run", "--list-rules").stdout
    rules = {*re.findall(r"^(\w+)$", printed, flags=re.MULTILINE)}
    assert rules - {"baseline", "kd_unlabelled"} == TARGET_NAMES
