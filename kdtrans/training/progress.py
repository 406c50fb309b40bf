"""What a person sees of a long run: a progress bar on a terminal, plain lines in a log file, metrics in files."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kdtrans.artifacts import naming
from kdtrans.data.batches import Batch
from kdtrans.training.evaluate import DevScores


class MetricsLog:
    """metrics.jsonl (one row a log step) and TensorBoard events, both continued by a resumed run."""

    def __init__(self, folder: Path, start: int) -> None:
        self._path = folder / "metrics.jsonl"
        # Rows of updates that a killed run made after its last checkpoint are made again: drop them.
        kept = [row for row in read_metrics(self._path) if row["step"] <= start]
        with naming(self._path):
            self._path.write_text("".join(json.dumps(row) + "\n" for row in kept))
            self._events = EventFile(folder / "tensorboard", start)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add one row; raises OSError naming the file when the disk is full."""
        with naming(self._path):
            with open(self._path, "a", encoding="utf-8") as file:
                row = {"step": step, **{name: round(value, 6) for name, value in values.items()}}
                file.write(json.dumps(row) + "\n")
            self._events.write(step, values)


class EventFile:
    """A file of TensorBoard events, written in this thread: a full disk is then an error of the run, in its place.

    Args:
        folder: one folder a run, however often it is resumed.
        start: updates that are done; what was written of later ones is hidden by TensorBoard.
    """

    def __init__(self, folder: Path, start: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(open(folder / name, "wb", buffering=0))  # noqa: SIM115 - for as long as the run
        begins = SessionLog(status=SessionLog.START)
        for event in (Event(file_version="brain.Event:2"), Event(step=start + 1, session_log=begins)):
            self._add(event)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add the values of an update."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(Event(step=step, summary=Summary(value=scalars)))

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; a last line cut short by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


@dataclass
class Meter:
    """What one process has seen since the last line of the log."""

    since: int  # updates
    sums: dict[str, float] = field(default_factory=dict)  # of each loss, over the updates
    grad_norm: float = 0.0  # the same in all processes
    audio_s: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def add(self, batch: Batch, losses: dict[str, float]) -> None:
        """Take in a batch and its part of the update's losses."""
        self.audio_s += batch.seconds
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


def summed(meters: list[Meter]) -> Meter:
    """The meters of all processes as one; the clock is the first one's."""
    first, *others = meters
    for other in others:
        first.audio_s += other.audio_s
        for name, value in other.sums.items():
            first.sums[name] = first.sums.get(name, 0.0) + value
    return first


class TrainingLog:
    """What one training run tells: rows of metrics, and lines or a bar for a person."""

    def __init__(self, folder: Path, updates: int, start: int) -> None:
        self._metrics = MetricsLog(folder, start)
        self._reporter = Reporter(folder.parent.name, updates, start)

    def training(self, step: int, meter: Meter, rates: dict[str, float], seconds: float) -> None:
        """Means over the updates since the last time, learning rates, and seconds of training so far."""
        updates = step - meter.since
        means = {name: value / updates for name, value in meter.sums.items()}
        speed = meter.audio_s / (time.monotonic() - meter.started)
        row = means | {"grad_norm": meter.grad_norm / updates} | rates
        self._metrics.write(step, row | {"audio_per_second": speed, "seconds": seconds})
        facts = " ".join(f"{name} {value:.3f}" for name, value in means.items())
        self._reporter.update(step, f"{facts} {speed:.0f}x real time")

    def dev(self, step: int, scores: DevScores) -> None:
        """WER and loss of dev."""
        self._metrics.write(step, {"dev_wer": scores.wer, "dev_loss": scores.loss})
        self._reporter.update(step, f"dev WER {scores.wer:.2f} % loss {scores.loss:.3f}")

    def close(self) -> None:
        self._reporter.close()


class Reporter:
    """Shows progress: a bar with rate and time left on a terminal, a line with the same facts elsewhere."""

    def __init__(self, title: str, total: int, start: int = 0) -> None:
        self.title, self.total, self._start, self._started = title, total, start, time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns)
            self._task = self._bar.add_task(title, total=total, completed=start)
            self._bar.start()

    def update(self, done: int, facts: str = "") -> None:
        """Report that `done` of the total are done; a plain line is printed only when there are facts to tell."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=f"{self.title} {facts}")
        elif facts:
            rate = (done - self._start) / max(time.monotonic() - self._started, 1e-9)
            left = (self.total - done) / rate if rate else float("inf")
            print(f"{self.title} {done}/{self.total} {facts} | {rate:.2f}/s, {left:.0f} s left", flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
