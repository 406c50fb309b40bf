"""Planning with as many shards as a large corpus has: a complete tree of empty files, which Snakemake finds up to date.

`KDTRANS_SHARDS=20000 python -m pytest -s tests/pipeline/test_scale.py` does it for 60,000 hours in shards of 3 h, and
prints job counts and planning times; without the variable the tree is small and the test guards what planning rests on.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kdtrans.contracts import TARGETS_INDEX
from tests.pipeline.workflow import REPOSITORY, jobs

SHARDS = int(os.environ.get("KDTRANS_SHARDS", "60"))
HOURS_A_SHARD, UTTERANCES_A_SHARD = 3, 900  # of 12 s
LONGEST_PLAN_S = 60.0
LONGEST_ARGUMENT = 128 << 10  # bytes that Linux lets one argument have: a rule's command is one


@dataclass(frozen=True)
class Plan:
    """A dry run: what it prints and what it costs."""

    text: str
    seconds: float
    cpu_seconds: float


def plan(folder: Path, *arguments: str) -> Plan:
    """Run Snakemake on the default configuration with SHARDS shards."""
    (folder / "shards.yaml").write_text(f"corpus: {{num_shards: {SHARDS}}}\n")
    command = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile", "--directory", folder]
    command += ["--configfile", REPOSITORY / "config.yaml", folder / "shards.yaml", *arguments]
    started, before = time.monotonic(), children_cpu_seconds()
    run = subprocess.run(map(str, command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
    return Plan(run.stdout, time.monotonic() - started, children_cpu_seconds() - before)


def children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scale")


@pytest.fixture(scope="module")
def empty(folder: Path) -> Plan:
    """The plan of everything, and then a file of no bytes and one age for every output of it and every shard."""
    planned = plan(folder, "--dry-run", "--printshellcmds")
    for line in plan(folder, "--summary").text.splitlines():
        if line.startswith("results/"):
            placeholder(folder / line.split("\t")[0])
    for shard in range(SHARDS):
        placeholder(folder / f"results/data/train/cuts.{shard:05d}.jsonl.gz")
    return planned


def placeholder(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (1_700_000_000, 1_700_000_000))


@pytest.mark.slow
def test_there_is_a_dump_a_shard_and_all_commands_fit_on_a_command_line(empty: Plan) -> None:
    counts = jobs(empty.text)
    print(f"\n{SHARDS} shards, {SHARDS * HOURS_A_SHARD:,} h; jobs of a fresh tree: {sum(counts.values())}, {counts}")
    print(f"planned in {empty.seconds:.0f} s ({empty.cpu_seconds:.0f} s of CPU)")
    assert counts["dump"] == SHARDS
    assert counts["verify"] == 1
    commands = [line for line in empty.text.splitlines() if line.startswith("Shell command: exec kdtrans")]
    assert len(commands) >= SHARDS
    assert max(map(len, commands)) < LONGEST_ARGUMENT
    # Where the tree is small: a dump names one shard of each kind; a command with more has a list of them all.
    assert all(line.count("/train/cuts.") <= 1 and line.count("/part-") <= 1 for line in commands)


@pytest.mark.slow
def test_a_complete_tree_is_planned_within_a_minute(folder: Path, empty: Plan) -> None:
    whole = plan(folder, "--dry-run")
    print(f"\ncomplete tree of {SHARDS} shards: {whole.seconds:.0f} s ({whole.cpu_seconds:.0f} s of CPU)")
    assert "Nothing to be done" in whole.text
    assert whole.cpu_seconds < LONGEST_PLAN_S


def test_bytes_of_the_index() -> None:
    """Of index.arrow at 60,000 h, a target for each of 20,000 x 900 utterances: what docs/targets.md says."""
    count = 1000
    columns = [pa.array(np.zeros(count, field.type.to_pandas_dtype()), field.type) for field in TARGETS_INDEX]
    a_row = pa.RecordBatch.from_arrays(columns, schema=TARGETS_INDEX).nbytes / count
    assert a_row == 33
    print(f"\nindex.arrow: {a_row * SHARDS * UTTERANCES_A_SHARD / 1e9:.3f} GB")
