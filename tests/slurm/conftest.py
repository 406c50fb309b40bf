"""The cluster, and one run of the whole workflow on it, which the other tests start from."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.harness import REPOSITORY, FaultTable, Workflow

CLUSTER = Path(__file__).parent / "cluster.sh"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only `make test-slurm` runs these: they want root, install Debian packages and take most of an hour."""
    if os.environ.get("KDTRANS_SLURM"):
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="on a SLURM of its own: make test-slurm"))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A running cluster's script; what it started is stopped afterwards."""
    base = tmp_path_factory.mktemp("cluster")
    os.environ |= {"BASE": str(base), "SLURM_CONF": str(base / "etc/slurm.conf")}
    try:
        subprocess.run([CLUSTER, "up"], check=True, timeout=600)
        yield CLUSTER
    finally:
        subprocess.run([CLUSTER, "down"], check=True, timeout=120)
        del os.environ["SLURM_CONF"], os.environ["BASE"]


@pytest.fixture(scope="session")
def whole(cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The tiny workflow, run whole on the cluster; prints jobs and seconds."""
    folder = tmp_path_factory.mktemp("whole") / "work"
    folder.mkdir()
    workflow = Workflow(folder)
    started = time.monotonic()
    status = workflow.run()
    seconds = time.monotonic() - started
    text = workflow.log.read_text(errors="replace")
    assert status == 0, workflow.tail()
    submitted = len(re.findall(r"has been submitted with SLURM jobid", text))
    (total,) = re.findall(r"^total\s+(\d+)$", text, flags=re.MULTILINE)[:1]
    print(
        f"\nthe whole workflow: {total} jobs, {submitted} of them through SLURM, {seconds:.0f} s, "
        f"{60 * submitted / seconds:.1f} SLURM jobs a minute"
    )
    assert submitted > 10
    return workflow


@pytest.fixture(scope="session")
def faults() -> Iterator[FaultTable]:
    """The fault table, printed at the end."""
    table = FaultTable(REPOSITORY / "results/slurm/faults.json")
    yield table
    print("\n\n" + "\n".join(table.lines()))
