"""One real run of the whole workflow on the tiny configuration, shared by the tests of this folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.pipeline.workflow import Snakemake, run_snakemake


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of the run: results/ and Snakemake's own records land in it."""
    return tmp_path_factory.mktemp("workflow")


@pytest.fixture(scope="session")
def snakemake(folder: Path) -> Snakemake:
    """A function that runs Snakemake in `folder`."""
    return partial(run_snakemake, folder)


@pytest.fixture(scope="session")
def results(folder: Path, snakemake: Snakemake) -> Path:
    """The results folder after the run; a failed job's log is shown."""
    run = snakemake("--show-failed-logs")
    assert run.returncode == 0, run.stdout[-8000:]
    return folder / "results"
