"""What `kdtrans status` says is what Snakemake plans: the files, who makes them, and what would be made again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from kdtrans.config import load
from kdtrans.layout import Layout
from kdtrans.report.status import PRESENT, STALE, Survey
from tests.pipeline.workflow import REPOSITORY

CONFIGS = REPOSITORY / "workflow/configs"
TINY = [REPOSITORY / "config.yaml", CONFIGS / "tiny.yaml"]


def layout_of(folder: Path, over: str = "{}") -> Layout:
    """The layout of the tiny configuration with some text laid over it."""
    (folder / "over-status.yaml").write_text(over)
    return Layout(load([*TINY, folder / "over-status.yaml"]))


def remade(folder: Path, over: str) -> dict[str, int]:
    """Rule -> number of artifacts that are missing or stale; to be called in the working directory of the run."""
    rows = Survey(layout_of(folder, over).artifacts()).rows()
    return dict(Counter(row.artifact.rule for row in rows if row.state != PRESENT))


EVERYTHING = """
teachers: {other: {training: {seed: 2}}, swept: {}, unused: {}}
target_sets:
  again: {along: teacher}
  second: {teachers: [second.pt]}
  both: {teachers: [teacher, other, second.pt], along: teacher}
  swept: {teachers: [swept]}
systems:
  kd_unlabelled: {targets: again}  # reads no index of the set that it follows
  second: {kd: {weight: 1.0}, targets: second}
  averaged: {kd: {weight: 1.0}, targets: both}
  lattice: {kd: {weight: 1.0, loss: full_lattice}, seeds: [1, 2]}
sweep: {kd_unlabelled: {kd.weight: [0.2, 2.0], targets: [again, swept]}}
decode:
  searches:
    beam: {type: beam}
    rescored: {type: beam, lm: lstm, rescore: beam}
    ratio: {type: beam, lm: lstm, density_ratio: 0.3}
"""


@pytest.mark.parametrize(
    ("presets", "over"),
    [(["tiny.yaml"], "{}"), ([], "{}"), (["an4.yaml", "an4-study.yaml"], "{}"), (["tiny.yaml"], EVERYTHING)],
    ids=["tiny", "demo", "study", "everything"],
)
def test_the_layout_has_the_files_that_snakemake_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, presets: list[str], over: str
) -> None:
    for name in ("AN4_ROOT", "WHISPER_BASE"):
        monkeypatch.setenv(name, str(tmp_path))
    (tmp_path / "over.yaml").write_text(over)
    (tmp_path / "second.pt").touch()
    files = [REPOSITORY / "config.yaml", *(CONFIGS / name for name in presets), tmp_path / "over.yaml"]
    command = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile", "--directory", tmp_path]
    command += ["all", *(["sweep"] if "sweep" in over else []), "--configfile", *files, "--summary"]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=dict(os.environ))
    assert run.returncode == 0, run.stderr[-3000:]
    _, *lines = run.stdout.splitlines()
    planned = {path: rule for path, _, rule, *_ in (line.split("\t") for line in lines)}
    artifacts = Layout(load(files)).artifacts()
    assert planned == {path: a.rule for a in artifacts for path in (a.path, *a.others)}


def test_a_finished_run_is_present_with_its_settings_and_inputs(
    results: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is stale; and records hold what the layout says, word for word."""
    monkeypatch.chdir(folder)
    layout = layout_of(folder)
    survey = Survey(layout.artifacts())
    assert {row.artifact.path: (row.state, row.why) for row in survey.rows() if row.state != PRESENT} == {}
    for artifact in layout.artifacts():
        record = json.loads(Path(f"{artifact.path}.run.json").read_text())
        assert record["stage"] == artifact.stage
        assert record["config"] == artifact.settings
        assert set(record["inputs"]) == set(artifact.inputs)
    listed = {f"{artifact.path}.run.json" for artifact in layout.artifacts()}
    assert {str(path.relative_to(folder)) for path in results.rglob("*.run.json")} == listed


def test_the_command_prints_a_table_or_rows(results: Path, folder: Path) -> None:
    (folder / "max_wer.yaml").write_text("teacher: {max_wer: 200000.0}")
    command = [sys.executable, "-m", "kdtrans", "status", "--config", *map(str, TINY), "max_wer.yaml"]
    table = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert "      max_wer 100000.0 -> 200000.0\n" in table
    assert " present, 1 stale; " in table.splitlines()[-1]
    rows = json.loads(subprocess.run([*command, "--json"], cwd=folder, capture_output=True, text=True).stdout)
    assert [row["rule"] for row in rows if row["state"] == STALE] == ["gate"]
    assert all(row["bytes"] > 0 and row["created"] for row in rows)


def test_a_wrong_key_is_an_error(folder: Path) -> None:
    (folder / "wrong.yaml").write_text("student: {kd: {wait: 1.0}}")
    command = [sys.executable, "-m", "kdtrans", "status", "--config", *map(str, TINY), "wrong.yaml"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 1
    assert "unknown key 'student.kd.wait'" in run.stderr
