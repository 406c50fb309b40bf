"""Collect the results of several runs of the workflow into one document."""

from __future__ import annotations

from pathlib import Path


def main(summaries: list[str], out: Path, machine: str | None = None, date: str | None = None) -> None:
    """Write OUT.json and OUT.md: every system of every finished run, on its test sets.

    Args:
        summaries: NAME=report/summary.json of each run of the workflow; those not there yet are left out.
        out: the document's path without suffix.
        machine: what the runs were made on, in words; this machine where it is not given.
        date: when they were made, YYYY-MM-DD; today where it is not given.
    """
    import os
    import platform
    import time

    from kdtrans.artifacts import write_json, write_text
    from kdtrans.report.study import markdown, read_rows

    rows = []
    for entry in summaries:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--summaries '{entry}': expected NAME=path/summary.json")
        if not Path(path).exists():
            print(f"{name}: {path} does not exist yet, left out")
            continue
        rows += read_rows(name, Path(path))
    if not rows:
        raise ValueError("none of the summaries has a score on a test set: finish a run of the workflow first")
    # This is what a run record would hold, in the documents themselves: they travel without one.
    facts = {
        "command": f"kdtrans study --summaries {' '.join(summaries)} --out {out}",
        "date": date or time.strftime("%Y-%m-%d"),
        "machine": machine or f"{platform.machine()}, {os.cpu_count()} CPUs",
    }
    write_json(f"{out}.json", {**facts, "rows": rows})
    write_text(f"{out}.md", markdown(rows, **facts))
    print(f"{out}.json, {out}.md: {len(rows)} rows")
