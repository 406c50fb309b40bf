"""The configuration, checked and taken apart by section, and the path of everything that rules share."""

import os
import re
import shlex
import sys
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError

from kdtrans.artifacts import write_text
from kdtrans.config import Config, ConfigError, training_identity, validate
from kdtrans.layout import Layout

# `.venv/bin/snakemake` finds `.venv/bin/kdtrans`, with the environment activated or not, here and in cluster jobs.
os.environ |= {"PATH": os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])}

try:
    CFG = validate(Config, config, "configuration")
except ConfigError as error:
    raise WorkflowError(str(error)) from None

LAYOUT = Layout(CFG)  # where everything lies

# What each stage is given: the file's name below config/ -> its values, defaults filled in. A rule takes the values that
# it depends on as `params: cfg`, so that a changed key reruns that stage and what follows; the files are no inputs.
SECTIONS = {
    name: getattr(CFG, name).model_dump(mode="json") for name in ("corpus", "tokenizer", "lm", "decode", "report")
}
TEACHERS, TARGET_SETS = LAYOUT.teachers, LAYOUT.target_sets
SECTIONS |= {folder: settings.model_dump(mode="json") for folder, settings in TEACHERS.items()}
SECTIONS |= {f"targets/{name}": settings.model_dump(mode="json") for name, settings in TARGET_SETS.items()}
SECTIONS |= {f"ngrams/{name}": settings.model_dump(mode="json") for name, settings in LAYOUT.ngrams.items()}

RUNS, SWEEP_RUNS, STUDENTS = LAYOUT.runs, LAYOUT.sweep_runs, LAYOUT.students
SECTIONS |= {f"systems/{name}": run.config.model_dump(mode="json") for name, run in STUDENTS.items()}

R, TEST_SETS, SEARCHES, SHARDS = LAYOUT.results, LAYOUT.test_sets, LAYOUT.searches, LAYOUT.shards
LM_SEARCHES = [name for name, search in SEARCHES.items() if search.lm]

MAKES_CORPUS, CORPUS_ROOT, CORPUS_PARTS = LAYOUT.makes_corpus, LAYOUT.corpus_root, LAYOUT.corpus_parts
TOKENIZER, LMS, TEACHER, TRAIN, DEV_CUTS = LAYOUT.tokenizer, LAYOUT.lms, LAYOUT.teacher, LAYOUT.train, LAYOUT.dev_cuts

shards_of, index_of, target_sets_of = LAYOUT.shards_of, LAYOUT.index_of, LAYOUT.target_sets_of
lm_of, searches_of, reported = LAYOUT.lm_of, LAYOUT.searches_of, LAYOUT.reported
decodings_of, alignments_of = LAYOUT.decodings_of, LAYOUT.alignments_of


def one_of(names):
    return "|".join(map(re.escape, names))


wildcard_constraints:
    shard=r"\d{5}",
    teacher=one_of(TEACHERS),
    targetset=one_of(TARGET_SETS),
    run=one_of(["teacher", *STUDENTS]),
    search=one_of(SEARCHES),
    testset=one_of(TEST_SETS),


def corpus_ready(wildcards):
    """What `prepare_corpus` waits for: the rule that makes the corpus, or nothing where it is given or has been fetched."""
    if MAKES_CORPUS:
        return LAYOUT.corpus_sums
    if LAYOUT.downloads_corpus and not Path(LAYOUT.downloaded).exists():
        raise WorkflowError(
            "LibriSpeech is not here: `snakemake download` fetches it, or set corpus.root to your copy."
        )
    if CFG.corpus.name != "librispeech" and not CFG.corpus.root:
        raise WorkflowError(f"corpus.root is not set: name the folder of the corpus '{CFG.corpus.name}'.")
    return []


def teachers_of(wildcards):
    """The models that make a target set."""
    return LAYOUT.teachers_of(wildcards.targetset)


def made_from(wildcards):
    """What a shard is made from: its teachers, and the other set's shard whose paths it follows, if it follows one."""
    along = TARGET_SETS[wildcards.targetset].along
    gates = LAYOUT.gates_of(wildcards.targetset)  # have to stand there; passing one anew changes no target
    made = {"model": teachers_of(wildcards), "gates": [ancient(gate) for gate in gates]}
    return made | ({"along": LAYOUT.shard(along, wildcards.shard)} if along else {})


def model_of(wildcards):
    """The model of a run; the teacher's is one."""
    return LAYOUT.model_of(wildcards.run)


def distils_from(wildcards):
    """What a run learns from, and the gate where that is the teacher itself."""
    found = LAYOUT.distils_from(wildcards.run)
    return found | ({"teacher": TEACHER, "gate": ancient(LAYOUT.gate)} if "teacher" in found else {})


def sweep_scores(wildcards):
    """What a sweep is judged by: dev, decoded with the first of the searches that are for every system."""
    if not SWEEP_RUNS:
        raise WorkflowError("sweep is empty: name a system, keys and values, as in {kd: {kd.weight: [0.2, 0.5]}}")
    return LAYOUT.sweep_scores()


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
