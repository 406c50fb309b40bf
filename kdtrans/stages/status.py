"""List every artifact of the workflow and its state."""

from __future__ import annotations

from pathlib import Path


def main(config: list[Path] | None = None, all: bool = False, json: bool = False) -> None:
    """List every artifact: present, stale and why, missing, running; its seconds and size. Nothing is changed.

    Stale is what `snakemake` would make again: its settings differ, a file that it was made from has changed, or that
    is stale itself; and what has no readable run record. `older code`: a module that its stage runs has changed since,
    comments and docstrings aside, for which Snakemake makes nothing again.

    Args:
        config: files laid over config.yaml, as snakemake's --configfile takes them.
        all: a line for each artifact, target shards too, instead of one for each series.
        json: print the rows as JSON, one for each artifact.
    """
    from json import dumps

    from kdtrans.config import load
    from kdtrans.layout import Layout
    from kdtrans.report.status import Survey
    from kdtrans.report.status_table import status_text

    over = config or []
    layout = Layout(load(over))
    rows = Survey(layout.artifacts()).rows()
    if json:
        print(dumps([row.to_json() for row in rows], indent=1))
    else:
        print(status_text(rows, layout.results, [str(path) for path in over], all))
