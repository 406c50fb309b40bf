"""A results folder as a finished run leaves it, without what takes a run: every file holds its own name."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdtrans.artifacts import sha256_file
from kdtrans.code import code_of
from kdtrans.config import Config, merge
from kdtrans.layout import Artifact, Layout
from kdtrans.report.status import Row, Survey

SMALL = {
    "corpus": {"num_shards": 3},
    "systems": {"hard": None, "kd": None},
    "targets": {"search": {"type": "beam", "lm": "lstm"}, "lm_weight": 0.2},
}


def layout_of(*over: dict[str, Any]) -> Layout:
    """The layout of SMALL with some settings laid over it."""
    values: dict[str, Any] = {}
    for one in (Config().model_dump(mode="json"), SMALL, *over):
        values = merge(values, one)
    return Layout(Config.model_validate(values))


def by_path(layout: Layout) -> dict[str, Row]:
    """The rows of a survey by path below the results folder."""
    rows = Survey(layout.artifacts()).rows()
    return {row.artifact.path.removeprefix(f"{layout.results}/"): row for row in rows}


def unlike(layout: Layout, state: str = "present") -> dict[str, tuple[str, ...]]:
    """Path -> why, of the artifacts that are in another state."""
    return {path: row.why for path, row in by_path(layout).items() if row.state != state}


@dataclass
class Maker:
    """Makes artifacts in the working directory, each newer than those before."""

    clock: int = 1_700_000_000
    made: set[str] = field(default_factory=set)

    def make_all(self, layout: Layout) -> None:
        """Make every artifact that this one has not made."""
        for artifact in layout.artifacts():
            if artifact.path not in self.made:
                self.make(artifact)

    def make(self, artifact: Artifact) -> None:
        """Write an artifact's files and its run record."""
        for file in artifact.files:
            self.write(file, file)
        record = {
            "stage": artifact.stage,
            "created": "2026-11-25T22:52:42Z",
            "seconds": 3.5,
            "config": artifact.settings,
            "inputs": {path: sha256_file(path) for path in artifact.inputs},
            "code": code_of(artifact.stage),
        }
        Path(f"{artifact.path}.run.json").write_text(json.dumps(record))
        self.made.add(artifact.path)

    def write(self, file: str, text: str) -> None:
        """Write a file that is newer than all before."""
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(text)
        self.clock += 1
        os.utime(file, (self.clock, self.clock))


def edit_record(path: str, **changes: Any) -> None:
    """Change entries of a run record; None takes one away."""
    file = Path(f"{path}.run.json")
    record = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))
