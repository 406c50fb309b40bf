"""Folders and files with any name, on other file systems and on a read-only one: a run, and the words of its commands.

The names would run `touch pwned` if any part of the way took them for more than names.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from kdtrans.config import Config, ConfigError, validate
from kdtrans.data.corpora.librispeech import read as read_librispeech
from tests.pipeline.workflow import commands, run_snakemake

HOSTILE = """x; touch pwned $(touch pwned) `touch pwned` 'q' "ü" & *[a]? | #\\ =%"""
PARTS = ("train-labelled", "train-unlabelled", "dev", "test")


class Tree(NamedTuple):
    """A finished run: where everything lies, and what lay there before."""

    base: Path  # holds all the others
    work: Path
    results: Path  # in `work`, a link to another file system
    corpus: Path
    mounted: bool  # on file systems of this test's own, the corpus read-only
    settings: str
    before: list[str]


def mount(folder: Path) -> bool:
    """Put a file system of its own at a folder, if this process may."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(folder)]
    return os.getuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


def copy_corpus(source: Path, root: Path) -> None:
    """Write a synthetic corpus in LibriSpeech's layout as plain folders, with texts in a TSV or beside the audio."""
    for part in PARTS:
        folder, rows = root / f"{part} {HOSTILE}", ["path\ttext\tspeaker"]
        for number, utterance in enumerate(read_librispeech(source, part)):
            audio = folder / f"{utterance.speaker} 'ñ'" / f"{number} {HOSTILE}.flac"
            audio.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(utterance.audio, audio)
            rows.append(f"{audio.relative_to(root)}\t{utterance.text}\t{utterance.speaker} 'ñ'")
            if part == "dev":
                audio.with_suffix(".txt").write_text(utterance.text or "")
        if part != "dev":
            folder.with_name(f"{folder.name}.tsv").write_text("\n".join(rows) + "\n")
    (root / f"{HOSTILE}.txt").write_text("SOME FURTHER TEXT\n")


def listing(*folders: Path) -> list[str]:
    """Every file and folder below some folders, but for results and Snakemake's own."""
    paths = (path for folder in folders for path in folder.rglob("*"))
    return sorted(str(path) for path in paths if ".snakemake" not in path.parts)


@pytest.fixture(scope="module")
def tree(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """A run of the whole workflow, with one student that learns from targets."""
    base = tmp_path_factory.mktemp("names")
    disks = [base / "disk", base / "read-only"]
    mounted = [mount(disk) for disk in disks]
    try:
        work, corpus = base / f"work {HOSTILE}", disks[1] / f"corpus {HOSTILE}"
        work.mkdir()
        (disks[0] / "results").mkdir()
        (work / HOSTILE).symlink_to(disks[0] / "results")
        copy_corpus(results / "corpus", corpus)
        if mounted[1]:
            subprocess.run(["mount", "-o", "remount,ro", str(disks[1])], check=True)
        parts = {part: [f"{part} {HOSTILE}"] for part in PARTS}
        roles = {"labelled": parts["train-labelled"], "unlabelled": parts["train-unlabelled"], "dev": parts["dev"]}
        over: dict[str, Any] = {
            "results": HOSTILE,
            "corpus": {
                "name": "folder",
                "root": str(corpus),
                **roles,
                "test": {"test": parts["test"]},
                "num_shards": 1,
            },
            "lm": {"texts": [str(corpus / f"{HOSTILE}.txt")]},
            "targets": {"lm_weight": 0.0, "search": {"lm": None}},
            "systems": {"baseline": {"unlabelled": True, "kd": {"weight": 1.0}}, "kd_unlabelled": None},
            "decode": {"searches": {"greedy": None, "greedy_320ms": None}},
        }
        settings = yaml.safe_dump(over, allow_unicode=True)
        before = listing(work, corpus)
        run = run_snakemake(work, "--show-failed-logs", over=settings)
        assert run.returncode == 0, run.stdout[-8000:]
        yield Tree(base, work, work / HOSTILE, corpus, all(mounted), settings, before)
    finally:
        for disk, is_mount in zip(disks, mounted, strict=True):
            if is_mount:
                subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.slow
def test_the_whole_workflow_ends_whatever_its_folders_are_called(tree: Tree) -> None:
    assert "baseline" in (tree.results / "report/table.txt").read_text()
    assert (tree.results / "targets/teacher/train/part-00000.parquet").stat().st_size > 0


@pytest.mark.slow
def test_results_lie_on_another_file_system_and_the_corpus_on_a_read_only_one(tree: Tree) -> None:
    if not tree.mounted:
        pytest.skip("no right to mount a tmpfs: results and corpus lay on the working directory's file system")
    assert len({tree.work.stat().st_dev, tree.results.stat().st_dev, tree.corpus.stat().st_dev}) == 3
    assert os.statvfs(tree.corpus).f_flag & os.ST_RDONLY


@pytest.mark.slow
def test_a_second_run_there_has_nothing_to_do(tree: Tree) -> None:
    assert "Nothing to be done" in run_snakemake(tree.work, "--dry-run", over=tree.settings).stdout


@pytest.mark.slow
def test_results_may_be_an_absolute_path(tree: Tree) -> None:
    elsewhere = tree.base / "disk" / f"absolute {HOSTILE}"
    over = yaml.safe_dump(yaml.safe_load(tree.settings) | {"results": str(elsewhere)}, allow_unicode=True)
    run = run_snakemake(tree.work, "prepare", "--show-failed-logs", over=over)
    assert run.returncode == 0, run.stdout[-8000:]
    assert (elsewhere / "data/summary.json").is_file()
    assert "Nothing to be done" in run_snakemake(tree.work, "--dry-run", "prepare", over=over).stdout


@pytest.mark.slow
def test_no_name_is_carried_out(tree: Tree) -> None:
    assert not [*tree.base.rglob("pwned"), *Path.cwd().rglob("pwned")]


@pytest.mark.slow
def test_nothing_is_written_but_results_and_snakemakes_records(tree: Tree) -> None:
    made = {*listing(tree.work, tree.corpus)} - {*tree.before}
    assert made == {str(tree.work / "over.yaml")}


def test_commands_are_read_by_a_shell_as_they_were_meant(tmp_path: Path) -> None:
    """Of every rule: bash hands a `kdtrans` that writes its arguments into the job's log just those of the rule."""
    given = [tmp_path / f"{name} {HOSTILE}" for name in ("text", "lm.arpa", "other.pt")]
    for path in given:
        path.touch()
    text, arpa, other = map(str, given)
    systems = {
        "baseline": {},
        "first": {"kd": {"weight": 1.0}},
        "averaged": {"kd": {"weight": 1.0}, "targets": "both"},
        "full": {"kd": {"weight": 1.0, "loss": "full_lattice"}},
    }
    over = {
        "results": HOSTILE,
        "lm": {"texts": [text], "arpa": arpa},
        "target_sets": {"both": {"teachers": ["teacher", other], "along": "teacher"}},
        "systems": systems | {"kd_unlabelled": None},
        "sweep": {"full": {"kd.weight": [0.5]}},
        "decode": {
            "searches": {"greedy_320ms": None, "rescored": {"type": "beam", "lm": "lstm", "rescore": "beam_lm"}}
        },
    }
    fetched = over | {"corpus": {"name": "librispeech", "labelled": [f"part {HOSTILE}"]}, "lm": {}}
    planned = []
    for settings, targets in [(over, ["all", "sweep"]), (fetched, ["download"])]:
        arguments = ["--dry-run", "--printshellcmds", *targets]
        planned += commands(run_snakemake(tmp_path, *arguments, over=yaml.safe_dump(settings)).stdout)
    wanted = {log: words for *words, _, log, _ in map(shlex.split, planned)}  # ... > log 2>&1
    stages = "synth download prepare tokenizer check lm lstm-lm train-teacher gate dump verify train-student tune-lm"
    assert {words[2] for words in wanted.values()} == {
        *stages.split(),
        "decode",
        "rescore",
        "score",
        "align",
        "report",
        "choose",
    }

    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/kdtrans"
    program.write_text("#!/bin/bash\nprintf '%s\\0' exec kdtrans \"$@\"\n")
    program.chmod(0o755)
    for log in wanted:
        (tmp_path / log).parent.mkdir(parents=True, exist_ok=True)
    script = "".join(f"({command})\n" for command in planned)
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, env={"PATH": f"{program.parent}:/usr/bin:/bin"}, check=True)
    for log, words in wanted.items():
        found = (tmp_path / log).read_text().removesuffix("\0").split("\0")
        assert found == words
        # A name is whole in one word, or not in it.
        assert all(HOSTILE in word for word in found if not re.fullmatch(r"[\w./=-]+", word)), found
    assert not [*tmp_path.rglob("pwned")]


@pytest.mark.parametrize("key", ["results", "corpus.root", "tokenizer.model", "lm.arpa"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a\nb", r"'\\n' breaks lines"),
        ("a\tb", r"'\\t' breaks lines"),
        ("a\x1bb", "breaks lines"),
        ("a\u2028b", "breaks lines"),
        ("a{b}", "{ as the sign of a pattern"),
        ("a}b", "} as the sign of a pattern"),
        ("<a>", "< as the sign of a pattern"),
        ("-a", "would pass for an option"),
        ("./-a", "would pass for an option"),
        ("~/a", r"\$\{HOME\}"),
        (" a", "starts or ends with a space"),
        ("a/b ", "starts or ends with a space"),
    ],
)
def test_a_name_that_cannot_be_carried_is_refused(key: str, name: str, said: str) -> None:
    section, _, last = key.rpartition(".")
    values = {section: {last: name}} if section else {last: name}
    with pytest.raises(ConfigError, match=f"^test: {key}: .*{said}"):
        validate(Config, values, "test")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"results": "."}, "results: the working directory itself"),
        ({"results": ""}, "results: '' is empty"),
        ({"lm": {"texts": ["a.txt", "b{}.txt"]}}, "lm.texts.1: "),
        ({"targets": {"teachers": ["teacher", "-a.pt"]}}, "targets.teachers.1: "),
        ({"corpus": {"labelled": ["a", "-b"]}}, "corpus.labelled.1: "),
        ({"corpus": {"test": {"test": ["a\n"]}}}, "corpus.test.test.0: "),
    ],
)
def test_a_refusal_names_the_key(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^test: {said}"):
        validate(Config, values, "test")


def test_a_refused_name_stops_before_any_job(tmp_path: Path) -> None:
    run = run_snakemake(tmp_path, "--dry-run", over="results: 'a{b}'")
    assert run.returncode != 0
    assert "configuration: results: 'a{b}': Snakemake reads { as the sign of a pattern" in run.stdout


@pytest.mark.parametrize(("name", "path"), [("./a//b/", "a/b"), ("/a/", "/a"), ("../a", "../a"), ("日本 *?[é]", None)])
def test_a_path_is_written_one_way(name: str, path: str | None) -> None:
    assert validate(Config, {"results": name}, "test").results == (path or name)


def test_an_empty_root_is_none() -> None:
    assert validate(Config, {"corpus": {"root": ""}}, "test").corpus.root is None
