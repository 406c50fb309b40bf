"""What the tests on SLURM share: a working directory whose jobs run on the cluster, and a look at what runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from kdtrans.artifacts import code_revision
from kdtrans.training.progress import read_metrics

REPOSITORY = Path(__file__).parents[2]
Found = TypeVar("Found")

# The profile as it is, with what a toy on a loopback cluster wants: a thread a job, and short waits.
THREADS = dict.fromkeys(("train_teacher", "train_student", "dump", "tune_lm", "decode_testset"), 1)
TEST_OPTIONS = [
    *("--workflow-profile", REPOSITORY / "profiles/slurm"),
    *("--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "20"),
    *("--set-threads", *(f"{rule}={count}" for rule, count in THREADS.items())),
]


@dataclass(frozen=True)
class Job:
    """A job of the cluster."""

    id: str
    state: str
    comment: str  # rule_NAME_wildcards_VALUES
    partition: str
    folder: Path  # where its driver was started


def cluster_jobs() -> list[Job]:
    """The jobs that wait or run."""
    command = ["squeue", "-h", "-t", "PD,R,CG,S", "-o", "%A|%T|%k|%P|%Z"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30)
    rows = (line.split("|") for line in run.stdout.splitlines() if line.count("|") == 4)
    return [Job(*facts, folder=Path(folder)) for *facts, folder in rows]


def shown(job: str, fact: str) -> str:
    """A fact that the cluster knows of a job, ended or not: JobState, NodeList, Restarts."""
    run = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, timeout=30)
    return next((word.partition("=")[2] for word in run.stdout.split() if word.startswith(f"{fact}=")), "")


def wait_for(what: Callable[[], Found], timeout_s: float, message: str) -> Found:
    """Poll until something is found; raises AssertionError with the message when it takes too long."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {message}"
        time.sleep(0.05)
    return found


def running_stages(stage: str, folder: Path) -> dict[Path, int]:
    """The processes that carry out a stage in a working directory, on any node of this machine: artifact -> pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            # Not the shell and the drivers around it, whose command lines hold the same words inside one argument.
            if stage in argv[2:3] and "--out" in argv and Path(os.readlink(entry / "cwd")) == folder:
                found[folder / argv[argv.index("--out") + 1]] = int(entry.name)
        except OSError:  # it has ended
            continue
    return found


@dataclass
class Workflow:
    """A working directory in which Snakemake drives jobs on the cluster."""

    folder: Path
    over: dict[str, object] = field(default_factory=dict)  # laid over workflow/configs/tiny.yaml
    options: list[str | Path] = field(default_factory=list)

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def log(self) -> Path:
        """What the drivers have printed, all of them."""
        return self.folder / "driver.log"

    def command(self, *arguments: str) -> list[str]:
        """Snakemake's command line."""
        over = self.folder / "over.yaml"
        over.write_text(yaml.safe_dump(self.over))
        configs = [REPOSITORY / "config.yaml", REPOSITORY / "workflow/configs/tiny.yaml", over]
        command = [sys.executable, "-m", "snakemake", *arguments, "--snakefile", REPOSITORY / "Snakefile"]
        return list(map(str, [*command, "--configfile", *configs, *TEST_OPTIONS, *self.options]))

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a driver, with targets or options."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command(*arguments), cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )

    def run(self, *arguments: str, timeout_s: float = 1800.0) -> int:
        """Run a driver to its end; its exit status."""
        driver = self.start(*arguments)
        try:
            return driver.wait(timeout_s)
        finally:
            end(driver)

    def tail(self) -> str:
        """The last lines that drivers have printed."""
        return self.log.read_text(errors="replace")[-6000:] if self.log.exists() else ""

    def copy(self, folder: Path, over: dict[str, object], options: list[str | Path] | None = None) -> Workflow:
        """A copy of this directory, with a configuration of its own."""
        shutil.copytree(self.folder, folder, symlinks=True)
        (folder / "driver.log").unlink(missing_ok=True)
        return Workflow(folder, over, options or [])

    # -- trainings ------------------------------------------------------------------------------------------------
    def model(self, run: str) -> Path:
        return self.results / "systems" / run / "model.pt"

    def target(self, artifact: Path) -> str:
        """What Snakemake calls an artifact."""
        return str(artifact.relative_to(self.folder))

    def step(self, run: str) -> int:
        """The last update that a training has logged."""
        rows = read_metrics(self.model(run).parent / "checkpoints" / "metrics.jsonl")
        return max((row["step"] for row in rows), default=0)

    def training_job(self, run: str) -> Job | None:
        """The running job that trains a run."""
        comment = f"rule_train_student_wildcards_{run}"
        here = (job for job in cluster_jobs() if job.folder == self.folder and job.state == "RUNNING")
        return next((job for job in here if job.comment == comment), None)


def end(driver: subprocess.Popen[bytes]) -> None:
    """Kill a driver that is still there, with what it has started here."""
    if driver.poll() is None:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()


class FaultTable:
    """Counts of faults, by kind: injected, survived, lost; kept in a JSON file, of each kind the last run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, kind: str, injected: int, survived: int) -> None:
        """Record a kind's counts; lost are those that did not survive."""
        counts = {"injected": injected, "survived": survived, "lost": injected - survived}
        self.rows[kind] = counts | {"date": time.strftime("%Y-%m-%d"), "code_revision": code_revision()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.rows, indent=2) + "\n")

    def lines(self) -> Iterator[str]:
        """The table."""
        width = max(map(len, self.rows), default=4)
        yield f"{'fault':{width}}  injected  survived  lost  date        code"
        for kind, row in self.rows.items():
            counts = f"{row['injected']:8}  {row['survived']:8}  {row['lost']:4}"
            yield f"{kind:{width}}  {counts}  {row['date']}  {row['code_revision']}"
