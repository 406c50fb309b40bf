"""Faults of a real cluster, each kind at least ten times at random moments: nothing is lost, and no number changes.

Several ordeals run side by side, each in a copy of the finished tiny workflow. All trainings have the same settings,
and every model has to end as that of the one training that nobody breaks. KDTRANS_FAULTS=2 breaks less.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kdtrans.__main__ import main
from kdtrans.artifacts import is_claimed, read_json
from kdtrans.contracts import TARGETS
from kdtrans.targets.shards import read_shard
from tests.slurm.harness import FaultTable, Workflow, cluster_jobs, end, running_stages, shown, wait_for

RUNS = int(os.environ.get("KDTRANS_FAULTS", "10"))
UPDATES = 60
STUDENT: dict[str, object] = {
    "unlabelled": True,
    "kd": {"weight": 1.0},
    "training": {
        "updates": UPDATES,
        "max_duration_s": 5.0,
        "evaluate_every": 30,
        "checkpoint_every": 3,
        "log_every": 2,
    },
}
# A greedy search without a language model: a dump takes as long as its program takes to start.
TARGETS_SETTINGS = {"nbest": 1, "lm_weight": 0.0, "search": {"type": "greedy", "lm": None}}
SYSTEMS = [f"f{number:02d}" for number in range(RUNS)]
SETS = [f"s{number:02d}" for number in range(RUNS)]
SHARD = "part-00000.parquet"
OVER: dict[str, object] = {
    "targets": TARGETS_SETTINGS,
    "target_sets": {name: {} for name in SETS},
    "systems": dict.fromkeys(["unbroken", *SYSTEMS], STUDENT) | {"reads": {"kd": {"weight": 1.0}, "targets": SETS[0]}},
}
CONTENT = list(TARGETS.names)


# ------------------------------------------------------------------------------------------------ what nobody breaks
@pytest.fixture(scope="module")
def unbroken(whole: Workflow, tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """A training with the settings of all others, decoded and scored."""
    workflow = whole.copy(tmp_path_factory.mktemp("unbroken") / "work", OVER)
    assert workflow.run("unbroken") == 0, workflow.tail()
    return workflow


def fingerprint(workflow: Workflow, run: str) -> str:
    """Identity of a finished model's weights, by the record beside it; empty where there is no model."""
    model = workflow.model(run)
    return str(read_json(f"{model}.run.json")["fingerprint"]) if model.exists() else ""


def survivors(workflow: Workflow, runs: list[str], unbroken: Workflow) -> list[str]:
    """Those that ended as the unbroken one."""
    expected = fingerprint(unbroken, "unbroken")
    assert expected
    return [run for run in runs if fingerprint(workflow, run) == expected]


def same_shard(part: Path, other: Path) -> bool:
    """Whether a target shard is there and holds what another one holds."""
    return part.exists() and read_shard(part)[1].select(CONTENT).equals(read_shard(other)[1].select(CONTENT))


# ----------------------------------------------------------------------------------------- trainings, broken one by one
def kill(ordeal: Ordeal, run: str, pid: int) -> bool:
    os.kill(pid, signal.SIGKILL)
    return True


def cancel(ordeal: Ordeal, run: str, pid: int) -> bool:
    job = ordeal.workflow.training_job(run)
    return job is not None and subprocess.run(["scancel", job.id]).returncode == 0


def reach_time_limit(ordeal: Ordeal, run: str, pid: int) -> bool:
    """Lower the job's limit to a minute; the trainer pauses, as one that has more to do than that."""
    job = ordeal.workflow.training_job(run)
    if job is None:
        return False
    subprocess.run(["scontrol", "update", f"jobid={job.id}", "timelimit=1"], check=True)
    os.kill(pid, signal.SIGSTOP)  # SLURM wakes what it ends
    ordeal.timed_out.append(job.id)
    return True


def cut_checkpoint(ordeal: Ordeal, run: str, pid: int) -> bool:
    """Cut the newest checkpoint short, as a disk does that loses power."""
    checkpoints = ordeal.workflow.model(run).parent / "checkpoints"
    if not (checkpoints / "before.pt").exists():
        return False
    os.kill(pid, signal.SIGKILL)
    if (last := checkpoints / "last.pt").exists():
        os.truncate(last, random.randrange(last.stat().st_size))
    return True


def fill_disk(ordeal: Ordeal, run: str, pid: int) -> bool:
    ordeal.fillers[pid] = fill(ordeal.workflow.model(run).parent)
    return True


@dataclass
class Ordeal:
    """Trainings under way, each of which suffers every kind of fault once."""

    workflow: Workflow
    kinds: dict[str, Callable[[Ordeal, str, int], bool]]
    injected: Counter[str] = field(default_factory=Counter)
    timed_out: list[str] = field(default_factory=list)  # jobs
    fillers: dict[int, Path] = field(default_factory=dict)  # of a training's disk, while its process is there
    broken: set[int] = field(default_factory=set)  # processes: a fault each, so that none hides another

    def run(self) -> None:
        """Train all systems to the end; at random updates, in random order, break each of them by every kind."""
        pending = {run: self._moments() for run in SYSTEMS}
        driver = self.workflow.start(*map(self.workflow.target, map(self.workflow.model, SYSTEMS)))
        try:
            while driver.poll() is None:
                trainers = running_stages("train-student", self.workflow.folder)
                for pid in self.fillers.keys() - set(trainers.values()):
                    self.fillers.pop(pid).unlink()
                for out, pid in trainers.items():
                    run = out.parent.name
                    if pid in self.broken or not pending[run] or self.workflow.step(run) < pending[run][0][0]:
                        continue
                    kind = pending[run][0][1]
                    if self.kinds[kind](self, run, pid):
                        self.injected[kind] += 1
                        self.broken.add(pid)
                        del pending[run][0]
                time.sleep(0.2)
            assert driver.wait() == 0, self.workflow.tail()
        finally:
            end(driver)
        assert not any(pending.values()), f"ended before all was broken: {pending}"
        states = {job: shown(job, "JobState") for job in self.timed_out}
        assert set(states.values()) <= {"TIMEOUT"}, states

    def _moments(self) -> list[tuple[float, str]]:
        """A random update for each kind, in random order; below 0: at once, while the program starts."""
        kinds = random.sample(list(self.kinds), len(self.kinds))
        return list(zip(sorted(random.uniform(-0.1, 0.8) * UPDATES for _ in kinds), kinds, strict=True))


def trainings_one_by_one(workflow: Workflow, unbroken: Workflow) -> dict[str, tuple[int, int]]:
    kinds = {
        "training killed": kill,
        "job cancelled": cancel,
        "time limit reached": reach_time_limit,
        "newest checkpoint truncated": cut_checkpoint,
        "disk full at a checkpoint": fill_disk,
    }
    ordeal = Ordeal(workflow, kinds)
    with small_disks([workflow.model(run).parent for run in SYSTEMS], "32m"):
        ordeal.run()
        equal = len(survivors(workflow, SYSTEMS, unbroken))
    return {kind: (ordeal.injected[kind], equal) for kind in kinds}


# -------------------------------------------------------------------------------------- trainings, broken many at once
def jobs_preempted(workflow: Workflow, unbroken: Workflow) -> dict[str, tuple[int, int]]:
    """Jobs of a more urgent partition take the node, again and again."""
    urgent = ["sbatch", "--parsable", "-p", "urgent", "--gres=gpu:2", "-o", "/dev/null", "--wrap", "sleep 1"]

    def preempt() -> int:
        running = [job.id for job in cluster_jobs() if job.state == "RUNNING" and job.partition == "preempt"]
        taker = subprocess.run(urgent, capture_output=True, text=True, check=True).stdout.strip()
        wait_for(lambda: shown(taker, "JobState") == "COMPLETED", 180, "the urgent job has run")
        return sum(shown(job, "JobState") != "RUNNING" or shown(job, "Restarts") != "0" for job in running)

    return {"job preempted": break_all(workflow, unbroken, "preempt", preempt)}


def nodes_killed(workflow: Workflow, unbroken: Workflow) -> dict[str, tuple[int, int]]:
    """The node is gone, and comes back before or after the cluster has noticed."""
    cluster = Path(__file__).parent / "cluster.sh"

    def lose_node() -> int:
        subprocess.run([cluster, "kill", "n3"], check=True, timeout=60)
        time.sleep(random.uniform(0, 20))  # it is noticed after ten
        subprocess.run([cluster, "start", "n3"], check=True, timeout=60)
        return 1

    return {"node killed": break_all(workflow, unbroken, "fragile", lose_node)}


def break_all(workflow: Workflow, unbroken: Workflow, partition: str, fault: Callable[[], int]) -> tuple[int, int]:
    """Train on a partition while faults come at random moments, until there were enough; faults, and those survived."""
    workflow.options += ["--default-resources", f"slurm_partition={partition}", "mem_mb=8000", "runtime=60", "nodes=1"]
    systems, injected = SYSTEMS[: max(2, RUNS // 2)], 0
    driver = workflow.start(*map(workflow.target, map(workflow.model, systems)))
    try:
        while driver.poll() is None:
            if injected < RUNS and running_stages("train-student", workflow.folder):
                time.sleep(random.uniform(0, 15))
                injected += fault() if running_stages("train-student", workflow.folder) else 0
            release_held(partition)
            time.sleep(0.3)
        assert driver.wait() == 0, workflow.tail()
    finally:
        end(driver)
    assert injected >= RUNS, f"all trainings had ended after {injected} of {RUNS} faults"
    return injected, injected if survivors(workflow, systems, unbroken) == systems else 0


def release_held(partition: str) -> None:
    """What is the user's to do: SLURM holds a job whose node has died more than five times (max_batch_requeue)."""
    command = ["squeue", "-h", "-t", "RH", "-p", partition, "-o", "%A"]
    held = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.split()
    for job in held:
        subprocess.run(["scontrol", "release", job], check=True, timeout=30)


# -------------------------------------------------------------------------------------------------------- the driver
def drivers_killed(workflow: Workflow, unbroken: Workflow) -> dict[str, tuple[int, int]]:
    """Their jobs live on; the next driver starts others for the same files, which wait for the first ones."""
    run, injected = SYSTEMS[0], 0
    while injected < RUNS:
        driver = workflow.start(run)
        try:
            time.sleep(random.uniform(5, 60))
            ended = driver.poll()
        finally:
            end(driver)  # kill -9
        if ended is None:
            injected += 1
            assert workflow.run("--unlock") == 0, workflow.tail()
        else:  # all was made before its turn
            assert ended == 0, workflow.tail()
            shutil.rmtree(workflow.results / "decode" / run)
    assert workflow.run(run) == 0, workflow.tail()
    equal = survivors(workflow, [run], unbroken) == [run]
    for search in ("greedy", "beam_lm"):
        ours, theirs = (
            read_json(one.results / f"decode/{name}/{search}/test.score.json")["wer"]
            for one, name in ((workflow, run), (unbroken, "unbroken"))
        )
        equal &= ours == theirs
    return {"driver killed": (injected, injected if equal else 0)}


# ------------------------------------------------------------------------------------------------------------- shards
def dumps_broken(workflow: Workflow, unbroken: Workflow) -> dict[str, tuple[int, int]]:
    """Each dump is killed once, while it starts or at work, and finds its disk full once, in either order."""
    expected = unbroken.results / "targets/teacher/train" / SHARD
    work_s = float(read_json(f"{expected}.run.json")["seconds"])
    parts = {name: workflow.results / "targets" / name / "train" / SHARD for name in SETS}
    # Half of the kills come first, and half of those find the dump at work.
    to_kill = {name: (number % 2 == 0, number % 4 < 2) for number, name in enumerate(SETS)}
    killed: list[str] = []
    with small_disks([part.parent for part in parts.values()], "1m"):
        fillers = {name: fill(part.parent) for name, part in parts.items()}
        driver = workflow.start(*map(workflow.target, parts.values()))
        try:
            while driver.poll() is None:
                for name in list(fillers):
                    log = workflow.results / f"logs/dump/{name}.00000.log"
                    if log.exists() and "No space left on device" in log.read_text():
                        fillers.pop(name).unlink()
                for out, pid in running_stages("dump", workflow.folder).items():
                    name = out.parent.parent.name
                    first, at_work = to_kill.get(name, (False, False))
                    if name not in to_kill or not (first or name not in fillers) or (at_work and not is_claimed(out)):
                        continue
                    time.sleep(random.uniform(0, work_s / 3 if at_work else 2.0))
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed.append(name)
                    del to_kill[name]
                time.sleep(0.05)
            assert driver.wait() == 0, workflow.tail()
        finally:
            end(driver)
        assert not fillers, f"these disks were never full: {fillers}"
        equal = [name for name, part in parts.items() if same_shard(part, expected)]
        assert not [path for part in parts.values() for path in part.parent.glob(".*.part*")]
    return {
        "dump killed": (len(killed), len(set(killed) & set(equal))),
        "disk full at a dump": (len(SETS), len(equal)),
    }


def shards_truncated(workflow: Workflow, unbroken: Workflow) -> dict[str, tuple[int, int]]:
    """Refused; `verify --repair` removes them, and the workflow makes them again."""
    folder = workflow.results / "targets/teacher/train"
    parts, injected, survived = sorted(folder.glob("part-*.parquet")), 0, 0
    while injected < RUNS:
        for part in parts:
            os.truncate(part, random.randrange(part.stat().st_size))
        injected += len(parts)
        assert main(["verify", str(folder)]) == 1
        assert main(["verify", str(folder), "--repair"]) == 1
        assert not list(folder.glob("part-*.parquet"))
        assert workflow.run(workflow.target(folder / "index.json")) == 0, workflow.tail()
        survived += sum(same_shard(part, unbroken.results / part.relative_to(workflow.results)) for part in parts)
    return {"shard truncated": (injected, survived)}


# -------------------------------------------------------------------------------------------------------- small disks
@contextmanager
def small_disks(folders: list[Path], size: str) -> Iterator[None]:
    """A small file system on each folder."""
    with ExitStack() as mounted:
        for folder in folders:
            folder.mkdir(parents=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
            mounted.callback(subprocess.run, ["umount", "-l", folder], check=True)
        yield


def fill(folder: Path) -> Path:
    """Fill the disk of a folder to the last byte; the file that does."""
    filler = folder / "filler"
    for piece in (1 << 16, 1):
        with filler.open("ab", buffering=0) as file, suppress(OSError):
            while file.write(bytes(piece)):
                pass
    return filler


# ---------------------------------------------------------------------------------------------------------- all of them
ORDEALS = [trainings_one_by_one, jobs_preempted, nodes_killed, drivers_killed, dumps_broken, shards_truncated]


@pytest.fixture(scope="module")
def under_way(
    unbroken: Workflow,
    faults: FaultTable,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[dict[str, Future[dict[str, tuple[int, int]]]]]:
    """The ordeals, started side by side; with `pytest -k` those that it leaves."""
    chosen = " ".join(item.name for item in request.session.items)

    def undergo(ordeal: Callable[[Workflow, Workflow], dict[str, tuple[int, int]]]) -> dict[str, tuple[int, int]]:
        workflow = unbroken.copy(tmp_path_factory.mktemp(ordeal.__name__) / "work", OVER)
        started = time.monotonic()
        counts = ordeal(workflow, unbroken)
        for kind, (injected, survived) in counts.items():
            faults.add(kind, injected, survived)
        print(f"{ordeal.__name__}: {counts}, {time.monotonic() - started:.0f} s", flush=True)
        return counts

    with ThreadPoolExecutor(len(ORDEALS)) as threads:
        yield {ordeal.__name__: threads.submit(undergo, ordeal) for ordeal in ORDEALS if ordeal.__name__ in chosen}


@pytest.mark.parametrize("ordeal", [ordeal.__name__ for ordeal in ORDEALS])
def test_nothing_is_lost(under_way: dict[str, Future[dict[str, tuple[int, int]]]], ordeal: str) -> None:
    for kind, (injected, survived) in under_way[ordeal].result().items():
        assert injected >= RUNS, kind
        assert survived == injected, kind
