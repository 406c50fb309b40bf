"""The banded loss on a trained student: part of `kdtrans bench loss --results R`.

How much it exceeds the full loss, and its time beside the pruned losses of libraries that this Python has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from kdtrans.bench.loss_work import PRUNED
from kdtrans.bench.measure import cpu_seconds
from kdtrans.bench.table import Conditions, Measurement
from kdtrans.config import StudentConfig, TrainingConfig
from kdtrans.data.batches import Batch, FeatureCache, collate
from kdtrans.data.manifest import read_cuts
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.losses.backends import BACKENDS, NATIVE, installed_backends, pruned_loss
from kdtrans.models.transducer import SimpleJoiner, Transducer
from kdtrans.targets.store import TargetStore
from kdtrans.training.checkpoint import load_model, read_model
from kdtrans.training.examples import student_examples
from kdtrans.training.losses import band_of, run_student, transducer_part

UTTERANCES, BATCH, REPEATS = 200, 20, 5
LIBRARIES = [backend for backend in BACKENDS if backend != "torchaudio"]  # those that have a pruned loss
FULL, BANDED = "full", "banded"


def trained_banded(results: Path, width: int, margin: int) -> tuple[list[Measurement], dict[str, float]]:
    """Loss and time on training audio, along the teacher's paths.

    Args:
        results: a results folder; of its students that learn from paths and do not stream, the first by name.
        width: of the band, labels.
        margin: of the band, frames.

    Returns:
        Rows, and the ratios banded_loss_gap_trained and, where a library with a pruned loss is installed,
        banded_vs_pruned_time_trained.

    Raises:
        ValueError: when there is no such student.
    """
    tokenizer = Tokenizer(results / "tokenizer" / "tokenizer.model")
    path, config = _first_student(results)
    model: Transducer = load_model(path, tokenizer).eval()
    batches = _batches(results, model, config, tokenizer)
    banded = TrainingConfig(loss="banded", band_width=width, band_margin=margin)
    libraries = [library for library in LIBRARIES if library in installed_backends()]
    losses, seconds = dict[str, float](), dict[str, list[float]]()
    for batch in batches:
        work = _works(model, batch, banded, config.kd.shift if isinstance(config.kd.shift, int) else 0, libraries)
        for kind, run in work.items():
            losses[kind] = losses.get(kind, 0.0) + run()
        for repeat in range(REPEATS):
            for kind, run in work.items():
                times = seconds.setdefault(kind, [0.0] * REPEATS)
                times[repeat] += cpu_seconds(run)

    utterances = sum(len(batch.utt_ids) for batch in batches)
    shared: Conditions = {"student": path.parent.name, "utterances": utterances, "width": width, "margin": margin}
    shared["threads"] = torch.get_num_threads()
    if missing := [library for library in LIBRARIES if library not in libraries]:
        shared["missing"] = " ".join(missing)
    nats: Conditions = {"nats an utterance": round(losses[FULL] / utterances, 3)}
    gap = losses[BANDED] / losses[FULL] - 1.0
    rows = [Measurement("banded_loss_gap_trained", "", [gap], shared | nats)]
    rows += [Measurement(f"{kind} time, trained", "CPU s", times, shared) for kind, times in seconds.items()]
    ratios = {"banded_loss_gap_trained": gap}
    if peers := [median(seconds[library + PRUNED]) for library in libraries if library != NATIVE]:
        ratios["banded_vs_pruned_time_trained"] = median(seconds[BANDED]) / min(peers)
    return rows, ratios


def _first_student(results: Path) -> tuple[Path, StudentConfig]:
    """The first one by name that learns from paths and does not stream."""
    for path in sorted((results / "systems").glob("*/model.pt")):
        config = StudentConfig.model_validate(read_model(path)["config"])
        if config.kd.distils_paths and config.encoder.streaming is None:
            return path, config
    raise ValueError(f"{results}/systems: no trained student that learns from paths and does not stream")


def _batches(results: Path, model: Transducer, config: StudentConfig, tokenizer: Tokenizer) -> list[Batch]:
    index = results / "targets" / config.targets / "train" / "index.json"
    store = TargetStore(index, tokenizer.sha256, tokenizer.vocab_size)
    cuts = read_cuts([results / "data" / "train" / "cuts.00000.jsonl.gz"])
    examples = student_examples(cuts, tokenizer, config, store)[0][:UTTERANCES]
    features = FeatureCache(model.encoder.extract, 0.0)
    return [
        collate([one.cut for one in some], [one.labellings[0].read() for one in some], features)
        for some in (examples[start : start + BATCH] for start in range(0, len(examples), BATCH))
    ]


def _works(
    model: Transducer, batch: Batch, banded: TrainingConfig, shift: int, libraries: list[str]
) -> dict[str, Callable[[], float]]:
    """Each loss of a batch, forward and backward down to what encoder and predictor put out; they return its sum.

    The simple joiner of the pruned losses is untrained: it finds other nodes than a trained one, but no fewer.
    """
    with torch.no_grad():
        student = run_student(model, batch, banded)
        predicted = model.predictor(batch.labels_BU)
    inputs = [part.detach().requires_grad_() for part in (student.enc_BTJ, student.pred_BUJ)]
    outputs = [part.detach().requires_grad_() for part in (student.enc_BTE, predicted)]
    student = replace(student, enc_BTJ=inputs[0], pred_BUJ=inputs[1])
    grid = (batch.labels_BU, student.frames_B, batch.label_lengths_B)
    simple = SimpleJoiner(outputs[0].shape[2], outputs[1].shape[2], model.joiner.output.out_features)

    def full() -> float:
        return learnt(transducer_part(student, batch, banded))

    def along_path() -> float:
        return learnt(transducer_part(student, batch, banded, band_of(student, batch, banded, shift)))

    def pruned(library: str) -> float:
        simple_B, pruned_B = pruned_loss(library)(
            *(student.join, student.parameters, *inputs, *simple(*outputs), *grid), width=banded.band_width
        )
        return learnt(simple_B + pruned_B, *outputs, *simple.parameters())

    def learnt(loss_B: Tensor, *others: Tensor) -> float:
        torch.autograd.grad(loss_B.sum(), (*inputs, *student.parameters, *others))
        return float(loss_B.detach().sum())

    return {FULL: full, BANDED: along_path} | {library + PRUNED: partial(pruned, library) for library in libraries}
