"""From examples to model.pt: what the two training stages share."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lhotse import MonoCut
from torch import Tensor

from kdtrans.artifacts import run_record, sha256_file
from kdtrans.config import KdConfig, StudentConfig, TeacherConfig, TrainingConfig, training_identity
from kdtrans.contracts import FRAME_SHIFT_MS
from kdtrans.data.batches import BatchOrder, Change, Example, Extract, FeatureCache, TrainingBatches
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.losses.backends import loss_of_logits
from kdtrans.models.transducer import Transducer
from kdtrans.training.checkpoint import (
    CHECKPOINT_VERSION,
    claim,
    hand_back,
    keep_finished,
    pick_device,
    save_model,
)
from kdtrans.training.evaluate import dev_evaluation
from kdtrans.training.examples import visits_for_words
from kdtrans.training.loop import StoppedError, Trainer
from kdtrans.training.losses import transducer_losses
from kdtrans.training.optimizers import ParameterGroup
from kdtrans.training.precision import choose_products
from kdtrans.training.processes import Processes, SharedOrder, joined
from kdtrans.training.shift import ShiftTracker
from kdtrans.training.stopping import Stop

RESUME_ME = 75  # EX_TEMPFAIL: the workflow's driver starts the job again


def train_model(
    *,
    kind: str,
    model: Transducer,
    groups: list[ParameterGroup],
    config: TeacherConfig | StudentConfig,
    kd: KdConfig,
    unlabelled_ratio: float | None,
    examples: list[Example],
    dropped: Counter[str],
    dev: list[MonoCut],
    tokenizer: Tokenizer,
    checkpoints: Path,
    out: Path,
    inputs: list[Path],
    deadline: float | None,
    teacher: Transducer | None = None,
    change: Change | None = None,
) -> int:
    """Train, or resume, in a claimed checkpoint folder and write the model with its run record.

    Returns:
        0, or RESUME_ME when time.monotonic() has passed the deadline, or after SIGTERM or Ctrl-C.

    Raises:
        ValueError: when there is nothing to train on.
    """
    training = config.training
    if not examples:
        raise ValueError(
            f"there is no utterance to train on: left out here: {dict(dropped) or 'none'} (see student.filters); "
            "what was dropped before is in data/summary.json"
        )
    loss_of_logits(training.backend)  # or it says here how to install it
    stop = Stop(deadline)
    with joined(training.accumulate) as processes, _claimed(checkpoints, identity_of(config, inputs), processes):
        if processes.from_first(processes.is_first and hand_back(checkpoints, out)):
            if processes.is_first:
                print(
                    f"{out} was finished before, with these settings, data and code; "
                    f"to train it anew all the same, remove {checkpoints}",
                    flush=True,
                )
            return 0
        device = pick_device()
        model.to(device)
        choose_products(training.precision, device, model.encoder.dim)
        order = _order(examples, training, unlabelled_ratio, processes)
        if processes.is_first:
            _introduce(model, examples, dropped)
            if kd.compares_grids:
                largest = largest_grids(examples, order, tokenizer.vocab_size)
                print(f"the grids of teacher and student take {largest / 1e9:.2f} GB in the largest batch", flush=True)
        measured = round(kd.shift_phase * training.updates) * training.accumulate // processes.count
        shift = ShiftTracker(measured) if kd.shift == "auto" else kd.shift
        trainer = Trainer(
            model=model,
            groups=groups,
            batches=training_batches(examples, order, model, training, teacher, change),
            compute=lambda network, batch, step: transducer_losses(network, batch, training, kd, teacher, shift, step),
            evaluate=dev_evaluation(dev, tokenizer, model, training.max_duration_s),
            config=training,
            folder=checkpoints,
            stop=stop,
            tracker=shift if isinstance(shift, ShiftTracker) else None,
            processes=processes,
        )
        try:
            if not processes.is_first:
                with stop.heeding_signals():
                    trainer.run()
                return 0
            with (
                stop.heeding_signals(),
                run_record(out, f"train-{kind}", config.model_dump(mode="json"), inputs) as record,
            ):
                trainer.run()
                state, step, wer = trainer.best.average, trainer.best.step, trainer.best.dev_wer
                identity = save_model(out, kind, config, state, tokenizer, step=step, dev_wer=wer)
                record |= {"parameters": model.num_parameters, "fingerprint": identity}
                record |= {"hours": hours_of(examples), "dropped": dict(dropped), "step": step, "dev_wer": wer}
                record |= {"training_seconds": round(trainer.seconds(), 2), "processes": processes.count}
                if isinstance(shift, ShiftTracker):
                    record |= {"kd_shift": shift.frames}
        except StoppedError as reason:
            if processes.is_first:
                print(f"{reason}; run the same command to go on", file=sys.stderr)
            return RESUME_ME
        keep_finished(checkpoints, out)
    print(f"kept update {step} of {training.updates}: dev WER {wer:.2f} %", flush=True)
    return 0


def _claimed(folder: Path, identity: dict[str, Any], processes: Processes) -> AbstractContextManager[None]:
    """The first process claims the folder (`checkpoint.claim`) for all."""
    return claim(folder, identity) if processes.is_first else nullcontext()


def _order(
    examples: list[Example], config: TrainingConfig, unlabelled_ratio: float | None, processes: Processes
) -> SharedOrder:
    seconds, labelled = [e.cut.duration for e in examples], [e.labelled for e in examples]
    visits = visits_for_words(examples, config.word_share)
    return SharedOrder(
        seconds, labelled, config.max_duration_s, unlabelled_ratio, config.seed, visits, processes=processes
    )


def _introduce(model: Transducer, examples: list[Example], dropped: Counter[str]) -> None:
    hours = hours_of(examples)
    print(
        f"{model.num_parameters / 1e6:.2f} M parameters, {len(examples)} utterances, "
        f"{hours['labelled']:.2f} h labelled, {hours['unlabelled']:.2f} h unlabelled, "
        f"left out: {dict(dropped) or 'none'}",
        flush=True,
    )


def hours_of(examples: list[Example]) -> dict[str, float]:
    """Hours of `labelled` and of `unlabelled` audio."""
    seconds = {"labelled": 0.0, "unlabelled": 0.0}
    for example in examples:
        seconds["labelled" if example.labelled else "unlabelled"] += example.cut.duration
    return {part: total / 3600 for part, total in seconds.items()}


def training_batches(
    examples: list[Example],
    order: BatchOrder,
    model: Transducer,
    config: TrainingConfig,
    teacher: Transducer | None,
    change: Change | None = None,
) -> TrainingBatches:
    """The stream of batches, with the teacher's outputs where it runs beside the student."""
    if teacher is None:
        # Every loader process keeps a cache of its own.
        features = FeatureCache(model.encoder.extract, config.cache_gb / max(config.workers, 1))
        return TrainingBatches(examples, order, features, config.workers, change=change)
    # In this process, as forked ones cannot use the GPU; the two caches share the memory.
    teacher.to(pick_device())
    features = FeatureCache(model.encoder.extract, config.cache_gb / 2)
    outputs = FeatureCache(teacher_outputs(teacher), config.cache_gb / 2)
    return TrainingBatches(examples, order, features, teacher=outputs, change=change)


def teacher_outputs(teacher: Transducer) -> Extract:
    """A function from a waveform (S,) to the teacher's projected encoder output (T, J), float16, in main memory."""
    device = next(teacher.parameters()).device

    @torch.no_grad()
    def extract(waveform_S: Tensor) -> Tensor:
        features_FC = teacher.encoder.extract(waveform_S)
        # Alone, so that no padding can change it.
        enc_BTE, _ = teacher.encode(features_FC[None].to(device), torch.tensor([len(features_FC)], device=device))
        return teacher.project_encoder(enc_BTE)[0].half().cpu()

    return extract


def largest_grids(examples: list[Example], order: BatchOrder, vocab_size: int) -> int:
    """Bytes of the teacher's and the student's fp32 logits over the grid, in the largest batch of the first epoch."""

    def cells(batch: list[int]) -> float:
        frames = max(examples[i].cut.duration for i in batch) * 1000 / FRAME_SHIFT_MS
        labels = max(labelling.num_labels for i in batch for labelling in examples[i].labellings)
        return len(batch) * frames * (labels + 1)

    return round(2 * max(map(cells, order.epoch(0))) * vocab_size * 4)


def identity_of(config: TeacherConfig | StudentConfig, inputs: list[Path]) -> dict[str, Any]:
    """What the checkpoints of a run belong to: all settings and files that change a number of the trained weights."""
    return {
        "checkpoint_version": CHECKPOINT_VERSION,
        "config": training_identity(config.model_dump(mode="json")),
        # No mapping by name: the first shards of train and dev have the same.
        "inputs": [f"{sha256_file(path)}  {path.name}" for path in inputs],
    }
