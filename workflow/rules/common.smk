"""The configuration, checked and taken apart by section, and the path of everything that rules share."""

import os
import re
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
    for name in ("corpus", "tokenizer", "lm", "teacher", "targets", "decode", "report")
}
SECTIONS |= {f"systems/{name}": CFG.system(name).model_dump(mode="json") for name in CFG.systems}

R = CFG.results
SYSTEMS = list(CFG.systems)
TEST_SETS = ["dev", *CFG.corpus.test]
LM_SEARCHES = [name for name, search in CFG.decode.searches.items() if search.lm]
SHARDS = [f"{n:05d}" for n in range(CFG.corpus.num_shards)]

MAKES_CORPUS = CFG.corpus.name == "synth" and not CFG.corpus.root
CORPUS_ROOT = CFG.corpus.root or f"{R}/corpus"
CORPUS_PARTS = sorted(
    {*CFG.corpus.labelled, *CFG.corpus.unlabelled, *CFG.corpus.dev, *sum(CFG.corpus.test.values(), [])}
)

TOKENIZER = f"{R}/tokenizer/tokenizer.model"
LM = f"{R}/lm/lm.arpa"
TEACHER = f"{R}/teacher/model.pt"
TRAIN_CUTS = [f"{R}/data/train/cuts.{shard}.jsonl.gz" for shard in SHARDS]
DEV_CUTS = f"{R}/data/dev/cuts.00000.jsonl.gz"
TARGETS = [f"{R}/targets/teacher/train/part-{shard}.parquet" for shard in SHARDS]
TARGETS_INDEX = f"{R}/targets/teacher/train/index.json"


def one_of(names):
    return "|".join(map(re.escape, names))


wildcard_constraints:
    shard=r"\d{5}",
    system=one_of(["teacher", *SYSTEMS]),
    search=one_of(CFG.decode.searches),
    testset=one_of(TEST_SETS),


def corpus_ready(wildcards):
    """What `prepare` waits for: the rule that makes the corpus, or nothing where it is given or has been fetched."""
    if MAKES_CORPUS:
        return f"{R}/corpus/SHA256SUMS"
    if CFG.corpus.name == "librispeech" and not CFG.corpus.root and not Path(f"{R}/corpus/.downloaded").exists():
        raise WorkflowError(
            "LibriSpeech is not here: `snakemake download` fetches it, or set corpus.root to your copy."
        )
    if CFG.corpus.name != "librispeech" and not CFG.corpus.root:
        raise WorkflowError(f"corpus.root is not set: name the folder of the corpus '{CFG.corpus.name}'.")
    return []


def targets_of(wildcards):
    """Target shards that a system trains on: none for a baseline, which therefore does not wait for the teacher."""
    return TARGETS if CFG.system(wildcards.system).reads_targets else []


def model_of(wildcards):
    """The model of a system; the teacher is one."""
    return TEACHER if wildcards.system == "teacher" else f"{R}/systems/{wildcards.system}/model.pt"


def scores_of(systems, suffix="json"):
    """The score files of some systems: each search, each test set."""
    return expand(
        f"{R}/decode/{{system}}/{{search}}/{{testset}}.score.{suffix}",
        system=systems,
        search=list(CFG.decode.searches),
        testset=TEST_SETS,
    )


def option(flag, value):
    """A command-line option, or nothing where its value is empty."""
    return f"{flag} {value}" if value else ""


def max_seconds(wildcards, resources):
    """A trainer's time budget: it saves, and leaves with exit status 75, ten minutes before its job would be killed.

    The profile's retries then start the next job, which resumes. Without a `runtime` there is no budget.
    """
    return option("--max-seconds", resources.get("runtime", 0) and max(60, resources.runtime * 60 - 600))


onstart:  # a dry run writes nothing, so it cannot pull the settings from under a run in progress
    for name, values in SECTIONS.items():
        path, text = Path(f"{R}/config/{name}.yaml"), yaml.safe_dump(values, sort_keys=False)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
