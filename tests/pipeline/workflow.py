"""Running Snakemake from the tests of this folder, and reading what it plans."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import snakemake.cli

REPOSITORY = Path(__file__).parents[2]
CONFIGS = ("config.yaml", "workflow/configs/tiny.yaml")


class Snakemake(Protocol):
    """The fixture of conftest.py: `over` is a configuration laid over the tiny one."""

    def __call__(self, *arguments: str, over: str = "{}") -> subprocess.CompletedProcess[str]: ...


def run_snakemake(
    folder: Path, *arguments: str, over: str = "{}", repository: Path = REPOSITORY
) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in a folder on the tiny configuration with another laid over it.

    A dry run is forked from this process, which has imported Snakemake: that takes several times as long as to plan.
    That of another copy of the repository is not, so that it imports its own kdtrans.
    """
    (folder / "over.yaml").write_text(over, encoding="utf-8")
    configs = [*(repository / name for name in CONFIGS), folder / "over.yaml"]
    # Arguments in front: what follows --configfile would pass for another file.
    settings = ["--snakefile", repository / "Snakefile", "--directory", folder, "--configfile", *configs]
    words = [*arguments, *map(str, settings)]
    if "--dry-run" in arguments and repository == REPOSITORY:
        return _forked(words, folder / "dry-run.txt")
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *words],
        env=os.environ | {"PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )


def _forked(words: list[str], printed: Path) -> subprocess.CompletedProcess[str]:
    child = multiprocessing.get_context("fork").Process(target=_dry_run, args=(words, printed))
    child.start()
    child.join(timeout=300)
    child.kill()
    assert child.exitcode is not None, "the dry run has not ended in 300 s"
    text = printed.read_text(encoding="utf-8")
    printed.unlink()
    return subprocess.CompletedProcess(words, child.exitcode, stdout=text)


def _dry_run(words: list[str], printed: Path) -> None:
    with printed.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        snakemake.cli.main(words)


def jobs(dry_run_output: str) -> dict[str, int]:
    """Rule -> number of jobs, from the table that a dry run prints."""
    table = dry_run_output.partition("Job stats:")[2].partition("total")[0]
    rows = re.findall(r"^(\w+)\s+(\d+)$", table, flags=re.MULTILINE)
    return {rule: int(count) for rule, count in rows if rule != "all"}


def commands(dry_run_output: str) -> list[str]:
    """The commands of the jobs, from a dry run with --printshellcmds."""
    return re.findall(r"^Shell command: (exec .*)$", dry_run_output, flags=re.MULTILINE)
