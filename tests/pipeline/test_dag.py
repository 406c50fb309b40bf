"""The workflow from no file to the report, and what it makes again when something changes."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from kdtrans import contracts
from tests.pipeline.workflow import REPOSITORY, Snakemake, jobs

SYSTEMS = ["teacher", "baseline", "kd_unlabelled"]
SEARCHES = {system: ["greedy", "beam_lm"] for system in SYSTEMS}
SEARCHES["kd_unlabelled"] += ["greedy_320ms"]  # a streaming system
TEST_SETS = ["dev", "test"]
TOKENIZER = "new/tokenizer/tokenizer.model"  # of a run in a folder of its own
DECODED = [(system, search) for system in SYSTEMS for search in SEARCHES[system]]
DECODINGS = len(DECODED) * len(TEST_SETS)


def utterances(*manifests: Path) -> list[str]:
    """The ids of the cuts."""
    return [json.loads(line)["id"] for path in manifests for line in gzip.open(path, "rt", encoding="utf-8")]


def test_every_stage_leaves_its_product(results: Path) -> None:
    expected = {"corpus/SHA256SUMS", "tokenizer/tokenizer.model", "lm/lm.arpa", "lm/lstm.pt", "data/summary.json"}
    expected |= {"teacher/model.pt", "teacher/gate.json", "targets/teacher/train/index.json"}
    expected |= {f"systems/{system}/model.pt" for system in SYSTEMS[1:]}
    expected |= {f"align/{system}/test.parquet" for system in SYSTEMS}
    expected |= {f"report/{name}" for name in ("index.html", "summary.json", "table.txt")}
    assert not {name for name in expected if not (results / name).stat().st_size}


def test_targets_hold_every_utterance_of_their_shard_once(results: Path) -> None:
    for shard in ("00000", "00001"):
        table = contracts.read_table(results / f"targets/teacher/train/part-{shard}.parquet", contracts.TARGETS)
        best = table.filter(pc.equal(table["rank"], 0))
        assert sorted(best["utt_id"].to_pylist()) == sorted(utterances(results / f"data/train/cuts.{shard}.jsonl.gz"))


@pytest.mark.parametrize("testset", TEST_SETS)
@pytest.mark.parametrize(("system", "search"), DECODED)
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


def test_another_teacher_is_dumped_along_the_firsts_paths(folder: Path, snakemake: Snakemake) -> None:
    """From nothing: the second set waits for the first one's shards and for no gate, the student for its index."""
    (folder / "other.pt").touch()
    second = "target_sets: {second: {teachers: [other.pt], along: teacher}}"
    over = f"{{results: new, {second}, systems: {{kd_unlabelled: {{targets: second}}}}}}"
    planned = snakemake("--dry-run", "--printshellcmds", over=over).stdout
    assert jobs(planned).items() >= {"dump": 4, "verify": 1, "train_student": 2, "gate": 1}.items()
    part = "new/targets/teacher/train/part-00001.parquet"
    assert f"--model other.pt --cuts new/data/train/cuts.00001.jsonl.gz --tokenizer {TOKENIZER} " in planned
    assert f"--lm new/lm/lstm.pt --along {part} --out new/targets/second/train/part-00001.parquet" in planned
    assert f"--model other.pt --tokenizer {TOKENIZER} --out new/targets/second/train/index.json" in planned
    assert "--index new/targets/second/train/index.json " in planned


def test_a_further_teacher_is_made_where_a_system_learns_from_it(results: Path, snakemake: Snakemake) -> None:
    """The first teacher stands; of two more, one is in use."""
    further = "teachers: {second: {training: {seed: 2}}, third: {training: {seed: 3}}}"
    sets = "target_sets: {both: {teachers: [teacher, second]}, three: {teachers: [teacher, second, third]}}"
    both = "systems: {kd_unlabelled: {targets: both}}"
    planned = snakemake("--dry-run", "--printshellcmds", over=f"{{{further}, {sets}, {both}}}").stdout
    assert jobs(planned).items() >= {"train_teacher": 1, "gate": 1, "dump": 2, "verify": 1, "train_student": 1}.items()
    assert "train-teacher --config results/config/teachers/second.yaml " in planned
    assert "gate --config results/config/teachers/second.yaml --model results/teachers/second/model.pt " in planned
    both = "--model results/teacher/model.pt results/teachers/second/model.pt "
    for stage in ("dump --config results/config/targets/both.yaml", "verify results/targets/both/train"):
        assert both in next(line for line in planned.splitlines() if f"kdtrans {stage}" in line)
    assert "third" not in planned


def test_a_sweep_decodes_dev_alone(results: Path, snakemake: Snakemake) -> None:
    over = "sweep: {kd_unlabelled: {kd.weight: [0.2, 2.0], kd.shift: [0, 1]}}"
    planned = jobs(snakemake("--dry-run", "sweep", over=over).stdout)
    assert planned == {"train_student": 4, "decode_testset": 4, "score_testset": 4, "choose": 1, "sweep": 1}
    assert "Nothing to be done" in snakemake("--dry-run", over=over).stdout


def test_an_empty_sweep_says_so(results: Path, snakemake: Snakemake) -> None:
    assert "sweep is empty" in snakemake("--dry-run", "sweep").stdout


def test_a_report_of_what_is_finished_makes_nothing_else(results: Path, snakemake: Snakemake) -> None:
    over = "{systems: {another: {}}, report: {finished_only: true}}"
    assert jobs(snakemake("--dry-run", "report", over=over).stdout) == {"report": 1}


def test_a_report_before_any_alignment_names_none(results: Path, snakemake: Snakemake) -> None:
    aside = (results / "align").rename(results / "align.aside")
    try:
        over = "report: {finished_only: true}"
        planned = snakemake("--dry-run", "report", "--printshellcmds", "--forcerun", "report", over=over).stdout
    finally:
        aside.rename(results / "align")
    assert jobs(planned) == {"report": 1}
    assert "kdtrans report --config" in planned
    assert "--alignments" not in planned


@pytest.mark.parametrize(
    ("presets", "students"),
    [
        (["100h", "student-10m"], 2),
        (["100h", "960h", "student-30m"], 5),
        (["100h", "960h", "streaming", "student-30m"], 9),
    ],
)
def test_librispeech_presets_make_a_plan(
    folder: Path, monkeypatch: pytest.MonkeyPatch, presets: list[str], students: int
) -> None:
    monkeypatch.setenv("LIBRISPEECH", str(folder))
    names = [f"librispeech-{name}" if name[0] != "s" or name == "streaming" else name for name in presets]
    files = [REPOSITORY / f"workflow/configs/{name}.yaml" for name in names]
    command = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile", "--directory", folder]
    configs = ["--configfile", REPOSITORY / "config.yaml", *files]
    run = subprocess.run([*map(str, [*command, *configs]), "--dry-run"], capture_output=True, text=True)
    planned = jobs(run.stdout)
    assert planned["train_student"] == students, run.stdout[-3000:] + run.stderr[-3000:]
    assert planned["dump"] == (10 if presets[1] != "960h" else 200)
    assert not planned.keys() & {"synth", "download"}


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


def test_a_job_computes_with_as_many_threads_as_its_rule_has(tmp_path: Path) -> None:
    """So that jobs side by side on one machine do not compete for its cores; here, OMP_NUM_THREADS is 1."""
    rules = [
        f"rule {name}:\n    output: '{name}'\n    {threads}\n    shell: 'echo $OMP_NUM_THREADS > {{output}}'\n"
        for name, threads in (("trainer", "threads: 2"), ("other", ""))
    ]
    (tmp_path / "Snakefile").write_text("".join(rules))
    profile = ["--workflow-profile", str(REPOSITORY / "profiles/default"), "--cores", "2"]
    command = [sys.executable, "-m", "snakemake", *profile, "trainer", "other"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert [(tmp_path / name).read_text().strip() for name in ("trainer", "other")] == ["2", "1"]
