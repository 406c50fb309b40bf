"""The whole workflow on a real SLURM, by the profile as it is."""

from __future__ import annotations

from tests.slurm.harness import Workflow


def test_the_whole_workflow_is_green_and_then_finished(whole: Workflow) -> None:
    assert (whole.results / "report/index.html").stat().st_size > 10_000
    assert whole.run("--dry-run") == 0
    assert "Nothing to be done" in whole.tail()
