"""One real run of the whole workflow on the tiny configuration, shared by the tests of this folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
Snakemake = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of the run: results/ and Snakemake's own records land in it."""
    return tmp_path_factory.mktemp("workflow")


@pytest.fixture(scope="session")
def snakemake(folder: Path) -> Snakemake:
    """A function that runs Snakemake in `folder`; `over` is a configuration laid over the tiny one."""

    def run(*arguments: str, over: str = "{}") -> subprocess.CompletedProcess[str]:
        (folder / "over.yaml").write_text(over)
        configs = [REPOSITORY / "config.yaml", REPOSITORY / "workflow/configs/tiny.yaml", folder / "over.yaml"]
        command = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile", "--directory", folder]
        return subprocess.run(
            [*map(str, [*command, "--configfile", *configs]), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )

    return run


@pytest.fixture(scope="session")
def results(folder: Path, snakemake: Snakemake) -> Path:
    """The results folder after the run; a failed job's log is shown."""
    run = snakemake("--show-failed-logs")
    assert run.returncode == 0, run.stdout[-8000:]
    return folder / "results"
