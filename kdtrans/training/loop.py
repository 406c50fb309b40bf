"""The training loop of teacher and student: visible, resumable, and the same number of updates for everyone.

All randomness of a batch (dropout, masks) is seeded by (seed, update, place in the update), and the order of batches is
a function of (seed, epoch): a resumed run gives the same numbers as one that was never stopped, bit for bit on CPU, and
several processes give those of one, but for rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kdtrans.config import TrainingConfig
from kdtrans.data.batches import Batch, Position, TrainingBatches
from kdtrans.models.transducer import Transducer
from kdtrans.training.checkpoint import load_torch, newest_checkpoint, save_checkpoint
from kdtrans.training.evaluate import DevScores
from kdtrans.training.optimizers import ParameterGroup, build_optimizers
from kdtrans.training.processes import ALONE, Processes
from kdtrans.training.progress import Meter, TrainingLog, summed
from kdtrans.training.schedule import WeightAverage, tri_stage
from kdtrans.training.stopping import Stop

Losses = dict[str, Tensor]  # 'loss' is what is minimised; the others are reported


class Stateful(Protocol):
    """What learns something beside the weights, to be kept with them."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: tensors and plain values."""

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a kept state."""


class StoppedError(Exception):
    """The run has left before its end, and a checkpoint is written: run the same command again to go on."""


@dataclass(frozen=True)
class Best:
    """The averaged weights with the lowest dev WER so far; of equal ones, as a small dev set has, the lowest loss."""

    step: int = 0
    dev_wer: float = float("inf")  # %
    dev_loss: float = float("inf")
    average: dict[str, Tensor] = field(default_factory=dict)  # in main memory


@dataclass
class Trainer:
    """One run.

    Args:
        model: what is trained.
        groups: optimiser parameter groups; `lr_scale` multiplies the learning rate, `freeze_updates` freezes at first.
        batches: training data.
        compute: the losses of one batch at an update, counted from 0.
        evaluate: scores on dev of the model it is given.
        config: how.
        folder: where checkpoints and metrics live.
        stop: says when to leave with StoppedError.
        tracker: what `compute` measures while training, kept in the checkpoints; None for nothing.
        processes: those that train together; they share the batches of an update, so that their number changes rounding
            and nothing else. `training.accumulate` is a multiple of it.
    """

    model: Transducer
    groups: list[ParameterGroup]
    batches: TrainingBatches
    compute: Callable[[Transducer, Batch, int], Losses]
    evaluate: Callable[[Transducer], DevScores]
    config: TrainingConfig
    folder: Path
    stop: Stop = field(default_factory=Stop)
    tracker: Stateful | None = None
    processes: Processes = ALONE

    def run(self) -> None:
        """Train to the end; `best` is the result.

        Raises:
            StoppedError: when it had to leave.
            ValueError: at a loss or gradient that is not a number, naming the update and its utterances.
        """
        self.optimizers = build_optimizers(self.model, self.groups, self.config)
        self.average = WeightAverage(self.model, self.config.ema_decay)
        step, position, self.best, spent = self._resume()
        self._started = time.monotonic() - spent
        is_first = self.processes.is_first
        log = TrainingLog(self.folder, self.config.updates, step) if is_first else None
        self._device = next(self.model.parameters()).device
        stream = self.batches.stream(position, self._device)
        meter = Meter(step)

        while step < self.config.updates:
            position = self._update(step, stream, meter)
            step += 1

            if step % self.config.log_every == 0:
                rates = {"lr": self.optimizers[0].param_groups[0]["lr"]}
                meters = self.processes.gathered(meter)
                if log:
                    log.training(step, summed(meters), rates, self.seconds())
                meter = Meter(step)
            if step % self.config.evaluate_every == 0 or step == self.config.updates:
                paused = time.monotonic()
                if log:
                    self._evaluate(step, log)
                meter.started += time.monotonic() - paused  # the rate is that of training
            # A signal may reach one process before the others.
            reason = next(filter(None, self.processes.gathered(self.stop.reason())), None)
            if step % self.config.checkpoint_every == 0 or step == self.config.updates or reason:
                position = self.processes.gathered(position)[-1]  # the last one's batch is the last of the update
                if is_first:
                    self._save(step, position)
            if reason and step < self.config.updates:
                raise StoppedError(f"stopped by {reason} at update {step} of {self.config.updates}, which is kept")
        if log:
            log.close()

    def _update(self, step: int, stream: Iterator[Batch], meter: Meter) -> Position:
        """One update from this process's share of its batches; returns the position after the last of them."""
        self.model.train()
        self._prepare_groups(step)
        utt_ids: list[str] = []
        for place in range(self.processes.rank, self.config.accumulate, self.processes.count):
            # By the batch's place, not the process's: any number of processes draws the same.
            torch.manual_seed(self.config.seed * 1_000_003 + step + place * 2**40)
            batch = next(stream)
            losses = self.compute(self.model, batch.to(self._device), step)
            values = _read(losses)
            _check_finite(values, batch.utt_ids, step)
            (losses["loss"] / self.config.accumulate).backward()
            utt_ids += batch.utt_ids
            meter.add(batch, {name: value / self.config.accumulate for name, value in values.items()})
        self.processes.sum_gradients(self.model.parameters())
        grad_norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm))
        _check_finite({"grad_norm": grad_norm}, utt_ids, step)
        meter.grad_norm += grad_norm
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update(self.model, step)
        if self.tracker and self.processes.count > 1:  # each has seen its own batches: the first one's are told to all
            self.tracker.load(self.processes.from_first(self.tracker.state()))
        return batch.position

    def _evaluate(self, step: int, log: TrainingLog) -> None:
        """Score the average on dev; it becomes the best if its WER is the lowest so far, or as low with less loss."""
        scores = self._evaluate_average()
        log.dev(step, scores)
        if (scores.wer, scores.loss) < (self.best.dev_wer, self.best.dev_loss):
            copied = {name: value.to("cpu", copy=True) for name, value in self.average.state.items()}
            self.best = Best(step, scores.wer, scores.loss, copied)

    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return time.monotonic() - self._started

    def _prepare_groups(self, step: int) -> None:
        """Set this update's learning rates, and thaw what was frozen at first."""
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = self.config.lr * group.get("lr_scale", 1.0) * tri_stage(step, self.config)
            for parameter in group["params"]:
                parameter.requires_grad_(step >= group.get("freeze_updates", 0))

    def _evaluate_average(self) -> DevScores:
        """Scores of the averaged weights; the model's own are put back."""
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.state)
        self.model.eval()
        scores = self.evaluate(self.model)
        self.model.load_state_dict(own)
        return scores

    def _save(self, step: int, position: Position) -> None:
        content = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average.state,
            "step": step,
            "position": list(position),
            "best": vars(self.best),
            "seconds": self.seconds(),
            "tracker": self.tracker.state() if self.tracker else None,
        }
        save_checkpoint(self.folder, content)

    def _resume(self) -> tuple[int, Position, Best, float]:
        """Continue from the newest checkpoint if there is one: update, position in the batches, best, seconds."""
        found = newest_checkpoint(self.folder) if self.processes.is_first else None
        path = self.processes.from_first(found and found[0])
        if path is None:
            return 0, (0, 0), Best(), 0.0
        content = found[1] if found else load_torch(path)
        self.model.load_state_dict(content["model"])
        for optimizer, state in zip(self.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.average.load(content["average"])
        if self.tracker:
            self.tracker.load(content["tracker"])
        if self.processes.is_first:
            print(f"resuming at update {content['step']} of {self.config.updates}", flush=True)
        epoch, index = content["position"]
        return content["step"], (epoch, index), Best(**content["best"]), content["seconds"]


def _read(losses: Losses) -> dict[str, float]:
    """Their values, in one transfer: a GPU waits for this process at each."""
    device = losses["loss"].device
    read = torch.stack([value.detach().to(device, torch.float64) for value in losses.values()]).tolist()
    return dict(zip(losses, read, strict=True))


def _check_finite(values: dict[str, float], utt_ids: list[str], step: int) -> None:
    """Stop at the first loss or gradient that is not a number: averages would hide it and the weights be lost."""
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    if bad:
        raise ValueError(
            f"update {step}: {', '.join(f'{name} is {value}' for name, value in bad.items())} for utterances "
            f"{', '.join(utt_ids)}; the checkpoint before is untouched: "
            "lower training.lr or look at these utterances"
        )
