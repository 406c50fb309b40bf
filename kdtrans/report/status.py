"""What there is of a configuration's artifacts: present, stale and why, missing, being made."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kdtrans.artifacts import is_claimed, sha256_file
from kdtrans.code import code_of
from kdtrans.layout import Artifact

PRESENT, OLDER_CODE, STALE, MISSING, RUNNING = STATES = ("present", "older code", "stale", "missing", "running")
MOST_NAMED = 5  # of several files or modules
UNSET = "unset"


@dataclass(frozen=True)
class Row:
    """One artifact as it is found."""

    artifact: Artifact
    state: str  # of STATES
    why: tuple[str, ...] = ()  # why it is stale, what it lacks, or how far it has come
    seconds: float = 0.0  # that making it took, all attempts of a training together
    size: int = 0  # bytes of its files
    created: str = ""  # UTC, as in the run record
    remade: bool = False  # missing, stale or running for a reason that makes what follows stale too

    def to_json(self) -> dict[str, Any]:
        """The row for machines."""
        names = {name: getattr(self.artifact, name) for name in ("phase", "rule", "stage", "path")}
        facts = {"seconds": self.seconds, "bytes": self.size, "created": self.created}
        return names | {"state": self.state, "why": list(self.why)} | facts


@dataclass(frozen=True)
class Record:
    """What run.json says, as far as it is compared."""

    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]  # file -> SHA-256
    code: dict[str, str] | None  # None: written before code was recorded
    seconds: float
    created: str

    @classmethod
    def read(cls, artifact: Artifact) -> Record:
        """Read the record beside an artifact.

        Raises:
            FileNotFoundError: when there is none.
            ValueError: when it is damaged.
        """
        content = json.loads(Path(f"{artifact.path}.run.json").read_text(encoding="utf-8"))
        try:
            # The record of a resumed training counts the last attempt, training_seconds all of them.
            seconds = max(float(content["seconds"]), float(content.get("training_seconds", 0)))
            code = None if content.get("code") is None else dict(content["code"])
            artifact.deciding(content["config"])  # of a training without training's settings: damaged too
            facts = dict(content["config"]), dict(content["inputs"]), code, seconds, str(content["created"])
            return cls(content["stage"], *facts)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"damaged: {error!r}") from None


class Files:
    """Dates, sizes and hashes of files, each looked up once."""

    def __init__(self) -> None:
        self._stats: dict[str, os.stat_result | None] = {}
        self._hashes: dict[str, str] = {}

    def stat(self, path: str) -> os.stat_result | None:
        """Date and size of a file; None where it is not."""
        if path not in self._stats:
            try:
                self._stats[path] = os.stat(path)
            except OSError:
                self._stats[path] = None
        return self._stats[path]

    def sha256(self, path: str) -> str:
        """Hash of a file's bytes; none of a file that a running job has just removed."""
        if path not in self._hashes:
            try:
                self._hashes[path] = sha256_file(path)
            except FileNotFoundError:
                self._hashes[path] = ""
        return self._hashes[path]


@dataclass
class Survey:
    """The state of every artifact.

    An input is hashed only where it is newer than what was made from it, as then alone it can have changed since:
    models and shards are large. Snakemake, too, reruns for a newer input. It compares dates alone where a file is
    larger than 1 MB; here, what was made anew with the same bytes is no change.
    """

    artifacts: list[Artifact]
    files: Files = field(default_factory=Files)
    _rows: dict[str, Row] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """A row for each artifact, in their order."""
        return [self.row(artifact) for artifact in self.artifacts]

    def row(self, artifact: Artifact) -> Row:
        """The state of one artifact."""
        if artifact.path not in self._rows:
            self._rows[artifact.path] = self._examine(artifact)
        return self._rows[artifact.path]

    @cached_property
    def _makers(self) -> dict[str, Artifact]:
        return {file: artifact for artifact in self.artifacts for file in artifact.files}

    @cached_property
    def _members(self) -> Counter[str]:
        return Counter(artifact.series or artifact.path for artifact in self.artifacts)

    def _examine(self, artifact: Artifact) -> Row:
        stats = {file: self.files.stat(file) for file in artifact.files}
        size = sum(stat.st_size for stat in stats.values() if stat)
        if is_claimed(artifact.path) or (artifact.checkpoints and is_claimed(artifact.checkpoints)):
            return Row(artifact, RUNNING, progress(artifact, running=True), size=size, remade=True)
        if lacking := [file for file, stat in stats.items() if stat is None]:
            why = progress(artifact, running=False) if artifact.path in lacking else (f"lacks {named(lacking)}",)
            return Row(artifact, MISSING, why, size=size, remade=True)
        upstream = list(self._upstream(artifact))
        try:
            record = Record.read(artifact)
        except (ValueError, OSError) as error:
            unknown = "no run record" if isinstance(error, FileNotFoundError) else "record damaged"
            return Row(artifact, STALE, (unknown, *upstream), size=size, remade=bool(upstream))
        changes = [*changed_settings(artifact, record), *self._changed_inputs(artifact, record), *upstream]
        code = changed_code(artifact, record)
        state = STALE if changes else OLDER_CODE if code else PRESENT
        return Row(artifact, state, (*changes, *code), record.seconds, size, record.created, bool(changes))

    def _upstream(self, artifact: Artifact) -> Iterator[str]:
        """The artifacts that it is made from and that are made first, those of a series counted."""
        makers = {self._makers[path].path: self._makers[path] for path in _read_by(artifact) if path in self._makers}
        found = [row for row in map(self.row, makers.values()) if row.remade]
        for (state, name), count in Counter((row.state, self._named(row.artifact)) for row in found).items():
            yield f"{state}: {name}" if count == 1 else f"{state}: {count:,} of {name}"

    def _named(self, artifact: Artifact) -> str:
        """Its series where it has others beside it, else itself."""
        return artifact.series if self._members[artifact.series] > 1 else artifact.path

    def _changed_inputs(self, artifact: Artifact, record: Record) -> Iterator[str]:
        made = self.files.stat(artifact.path)
        assert made is not None  # or it is missing
        inputs = {path: self.files.stat(path) for path in _read_by(artifact)}
        newer = {path for path, stat in inputs.items() if stat and stat.st_mtime_ns > made.st_mtime_ns}
        known = [path for path in artifact.inputs if path in record.inputs]
        reasons = {
            "not there": [path for path, stat in inputs.items() if stat is None and path not in self._makers],
            "changed since": [p for p in known if p in newer and self.files.sha256(p) != record.inputs[p]],
            "newer": [path for path in artifact.dated if path in newer],
            "new input": [path for path in artifact.inputs if path not in record.inputs],
            "no input any more": sorted(record.inputs.keys() - set(artifact.inputs)),
        }
        for reason, paths in reasons.items():
            if paths:
                yield f"{reason}: {named(paths)}"


def _read_by(artifact: Artifact) -> tuple[str, ...]:
    return (*artifact.inputs, *artifact.dated)


def changed_settings(artifact: Artifact, record: Record) -> list[str]:
    """The settings with which an artifact would be made otherwise, as `key old -> new`."""
    if record.stage != artifact.stage:
        return [f"made by {record.stage}, now by {artifact.stage}"]
    then, now = artifact.deciding(record.config), artifact.deciding(artifact.settings)
    if then == now:
        return []
    keys = flat(now).keys() | flat(then).keys()
    old, new = flat(record.config), flat(artifact.settings)
    ordered = [key for key in {**new, **old} if key in keys and old.get(key, UNSET) != new.get(key, UNSET)]
    return [f"{key} {old.get(key, UNSET)} -> {new.get(key, UNSET)}" for key in ordered]


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """{a: {b: null}} -> {"a.b": "null"}."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return found


def changed_code(artifact: Artifact, record: Record) -> list[str]:
    """The modules that are not as they were; at most one line."""
    if record.code is None:
        return ["code: not recorded"]
    now = code_of(artifact.stage)
    if record.code == now:
        return []
    changed = sorted(file for file in now.keys() | record.code.keys() if now.get(file) != record.code.get(file))
    return [f"code changed: {named(changed)}"]


def progress(artifact: Artifact, running: bool) -> tuple[str, ...]:
    """How far a training has come, by its last two rows of metrics.jsonl; nothing where it has not begun.

    Args:
        artifact: any.
        running: a trainer is at work; otherwise it has been stopped, and will resume if it has left a checkpoint.
    """
    folder = artifact.checkpoints
    if folder is None or not (running or Path(folder, "last.pt").exists()):
        return ()
    rows = list(_training_rows(Path(folder, "metrics.jsonl")))
    if not rows:
        return ()
    step, updates = rows[-1]["step"], artifact.settings["training"]["updates"]
    if not running:
        return (f"stopped after update {step:,} of {updates:,}, to be resumed",)
    words = [f"update {step:,} of {updates:,}"]
    before = rows[-2] if len(rows) > 1 else {"step": 0, "seconds": 0.0}
    steps, seconds = step - before["step"], rows[-1]["seconds"] - before["seconds"]
    if steps > 0 and seconds > 0:
        words += [f"{steps / seconds:.2f} updates/s", f"{(updates - step) * seconds / steps / 60:.0f} min left"]
    return (", ".join(words),)


def _training_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of metrics.jsonl that have the time of their update; a line that is being written is left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            return
        if isinstance(row, dict) and {"step", "seconds"} <= row.keys():
            yield row


def named(paths: Iterable[str]) -> str:
    """Names, at most MOST_NAMED of them."""
    names = list(paths)
    left = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {left:,} more" if left > 0 else "")
