"""The configuration, checked and taken apart by section, and the path of everything that rules share."""

import os
import re
import shlex
import sys
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError

from kdtrans.artifacts import write_text
from kdtrans.config import Config, ConfigError, validate

# `.venv/bin/snakemake` finds `.venv/bin/kdtrans`, with the environment activated or not, here and in cluster jobs.
os.environ |= {"PATH": os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])}

try:
    CFG = validate(Config, config, "configuration")
except ConfigError as error:
    raise WorkflowError(str(error)) from None

# What each stage is given: the file's name below config/ -> its values, defaults filled in. A rule takes the values that
# it depends on as `params: cfg`, so that a changed key reruns that stage and what follows; the files are no inputs.
SECTIONS = {
    name: getattr(CFG, name).model_dump(mode="json")
    for name in ("corpus", "tokenizer", "lm", "teacher", "decode", "report")
}
TARGET_SETS = {name: CFG.target_set(name) for name in CFG.target_sets}
SECTIONS |= {f"targets/{name}": settings.model_dump(mode="json") for name, settings in TARGET_SETS.items()}

# A run is one training of a student: a system, one of its seeds, or one point of a sweep.
RUNS, SWEEP_RUNS = CFG.runs(), CFG.sweep_runs()
STUDENTS = RUNS | SWEEP_RUNS
SECTIONS |= {f"systems/{name}": run.config.model_dump(mode="json") for name, run in STUDENTS.items()}

R = CFG.results
TEST_SETS = ["dev", *CFG.corpus.test]
SEARCHES = CFG.decode.searches
LM_SEARCHES = [name for name, search in SEARCHES.items() if search.lm]
SHARDS = [f"{n:05d}" for n in range(CFG.corpus.num_shards)]

MAKES_CORPUS = CFG.corpus.name == "synth" and not CFG.corpus.root
CORPUS_ROOT = CFG.corpus.root or f"{R}/corpus"
CORPUS_PARTS = sorted(
    {*CFG.corpus.labelled, *CFG.corpus.unlabelled, *CFG.corpus.dev, *sum(CFG.corpus.test.values(), [])}
)

TOKENIZER = f"{R}/tokenizer/tokenizer.model"
LMS = {"ngram": f"{R}/lm/lm.arpa", "lstm": f"{R}/lm/lstm.pt"}
TEACHER = f"{R}/teacher/model.pt"
# The manifest shards of train. Commands are given the folder, for thousands of paths do not fit on a command line; rules
# depend on data/summary.json, which holds one hash of them all: as outputs of `check` and inputs of everything else,
# they would make the time to plan grow with their square.
TRAIN = f"{R}/data/train"
DEV_CUTS = f"{R}/data/dev/cuts.00000.jsonl.gz"


def one_of(names):
    return "|".join(map(re.escape, names))


wildcard_constraints:
    shard=r"\d{5}",
    targetset=one_of(TARGET_SETS),
    run=one_of(["teacher", *STUDENTS]),
    search=one_of(SEARCHES),
    testset=one_of(TEST_SETS),


def corpus_ready(wildcards):
    """What `prepare_corpus` waits for: the rule that makes the corpus, or nothing where it is given or has been fetched."""
    if MAKES_CORPUS:
        return f"{R}/corpus/SHA256SUMS"
    if CFG.corpus.name == "librispeech" and not CFG.corpus.root and not Path(f"{R}/corpus/.downloaded").exists():
        raise WorkflowError(
            "LibriSpeech is not here: `snakemake download` fetches it, or set corpus.root to your copy."
        )
    if CFG.corpus.name != "librispeech" and not CFG.corpus.root:
        raise WorkflowError(f"corpus.root is not set: name the folder of the corpus '{CFG.corpus.name}'.")
    return []


def shards_of(targetset):
    """The target shards of a set."""
    return [f"{R}/targets/{targetset}/train/part-{shard}.parquet" for shard in SHARDS]


def index_of(targetset):
    """The index of a target set's shards, written when they have been checked; index.arrow lies beside it."""
    return f"{R}/targets/{targetset}/train/index.json"


def target_sets_of(runs):
    """The target sets that some runs read, each once."""
    return list(
        dict.fromkeys(name for run in runs.values() if run.config.reads_targets for name in run.config.target_sets)
    )


def teacher_of(wildcards):
    """The model that makes a target set: the one that the set names, or the workflow's own."""
    return TARGET_SETS[wildcards.targetset].teacher or TEACHER


def made_from(wildcards):
    """What a shard is made from: its teacher, and the other set's shard whose paths it follows, if it follows one."""
    along = TARGET_SETS[wildcards.targetset].along
    teacher = {"model": teacher_of(wildcards)}
    if teacher["model"] == TEACHER:
        # Has to stand there; passing it anew changes no target.
        teacher |= {"gate": ancient(rules.gate.output.gate)}
    return teacher | ({"along": f"{R}/targets/{along}/train/part-{wildcards.shard}.parquet"} if along else {})


def lm_of(name):
    """The file of the language model that a search names, or nothing where it names none."""
    return LMS[name] if name else []


def model_of(wildcards):
    """The model of a run; the teacher's is one."""
    return TEACHER if wildcards.run == "teacher" else f"{R}/systems/{wildcards.run}/model.pt"


def searches_of(run):
    """The searches that a run is decoded with: those that name a chunk size are for streaming students."""
    streaming = run in STUDENTS and STUDENTS[run].config.encoder.streaming
    return [name for name, search in SEARCHES.items() if streaming or not search.chunk_ms]


def decodings_of(runs, suffix):
    """The files of some runs for each of their searches and each test set."""
    return [
        f"{R}/decode/{run}/{search}/{testset}.{suffix}"
        for run in runs
        for search in searches_of(run)
        for testset in TEST_SETS
    ]


def alignments_of(runs):
    """The alignments of some runs, from which emission delays are read: every test set but dev."""
    return expand(f"{R}/align/{{run}}/{{testset}}.parquet", run=runs, testset=list(CFG.corpus.test))


def distils_from(wildcards):
    """What a run learns from: indices of target shards, the teacher itself, or, a baseline, from neither.

    The shards themselves are no inputs: any change of one gives a new index.
    """
    config = STUDENTS[wildcards.run].config
    shards = {"index": [index_of(name) for name in config.target_sets]} if config.reads_targets else {}
    return shards | ({"teacher": TEACHER, "gate": ancient(rules.gate.output.gate)} if config.kd.runs_teacher else {})


def reported(paths):
    """What the report reads of these: all, or what is there."""
    return [path for path in paths if not CFG.report.finished_only or Path(path).exists()]


def sweep_scores(wildcards):
    """What a sweep is judged by: dev, decoded with the first of the searches that are for every system."""
    if not SWEEP_RUNS:
        raise WorkflowError("sweep is empty: name a system, keys and values, as in {kd: {kd.weight: [0.2, 0.5]}}")
    search, *_ = searches_of("teacher")
    return [f"{R}/decode/{run}/{search}/dev.score.json" for run in SWEEP_RUNS]


def option(flag, value):
    """The words of a command-line option, or none where its value is empty; `{params.NAME:q}` quotes each of them."""
    return [flag, *(value if isinstance(value, list) else [value])] if value else []


def max_seconds(wildcards, resources):
    """A trainer's time budget: it saves, and leaves with exit status 75, ten minutes before its job would be killed.

    The profile's retries then start the next job, which resumes. Without a `runtime` there is no budget.
    """
    return option("--max-seconds", resources.get("runtime", 0) and max(60, resources.runtime * 60 - 600))


def trainer(wildcards, resources):
    """The program that trains, teacher and students: a process for each GPU, where there are several, of each node."""
    nodes, gpus = resources.get("nodes", 1), resources.get("gpu", 0)
    if nodes > 1:
        script = shlex.quote(str(Path(workflow.basedir) / "workflow/scripts/torchrun_node.sh"))
        return f"srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --kill-on-bad-exit=1 {script}"
    return f"torchrun --standalone --nproc-per-node {gpus} -m kdtrans" if gpus > 1 else "kdtrans"


onstart:  # a dry run writes nothing, so it cannot pull the settings from under a run in progress
    for name, values in SECTIONS.items():
        path, text = Path(f"{R}/config/{name}.yaml"), yaml.safe_dump(values, sort_keys=False)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
