"""What LibriSpeech's presets take of this machine's GPU, in time and memory: `kdtrans bench gpu`.

A batch is as long as the preset's and full of utterances of 15 s; audio is noise and weights are random, which takes as
long as speech and trained ones. A rate is seconds of audio a second; a time is of the whole update, optimiser included,
with the batch at hand: what loaders and the file system cost is not in it. Memory is the peak that torch has reserved.

Shapes: B utterances, F feature frames, C channels, T encoder frames, U labels.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchaudio
import yaml
from lhotse import MonoCut

from kdtrans.bench.table import Bench, Conditions, Measurement
from kdtrans.bench.train import KD, NO_KD, Work, apply_gradients, random_supervisions
from kdtrans.config import KdConfig, StudentConfig, TargetsConfig, TeacherConfig, TrainingConfig
from kdtrans.contracts import SAMPLE_RATE
from kdtrans.data.batches import Batch, collate
from kdtrans.lattice.recursion import viterbi
from kdtrans.losses.fused import arc_scores
from kdtrans.models.build import build_student, teacher_groups
from kdtrans.models.predictor import build_predictor
from kdtrans.models.pretrained.bundle import BundleEncoder
from kdtrans.models.transducer import Transducer
from kdtrans.training.losses import transducer_losses
from kdtrans.training.optimizers import build_optimizers
from kdtrans.training.schedule import WeightAverage

PRESETS = Path(__file__).parents[2] / "workflow/configs"
SECONDS, FRAMES, LABELS = 15.0, 375, 75  # of an utterance; 5 pieces a second, as 256 pieces have LibriSpeech
VOCABULARY = 256
GPU = torch.device("cuda")


def bench_gpu(quick: bool) -> Bench:
    """Measure teacher and students on the GPU.

    Args:
        quick: three updates of each instead of ten.

    Raises:
        ValueError: where there is no GPU.
    """
    if not torch.cuda.is_available():
        raise ValueError("bench gpu measures a GPU, and torch sees none here")
    repeats, rows = 3 if quick else 10, list[Measurement]()
    for size in ("10m", "30m"):
        rows += measure(f"student {size} with KD", partial(student, size, KD), repeats)
        rows += measure(f"student {size}", partial(student, size, NO_KD), repeats)
        rows += measure(f"student {size}, whole grid", partial(student, size, NO_KD, "full"), repeats)
        rows += measure(f"student {size}, bf16", partial(student, size, NO_KD, "fused", "bf16"), repeats)
    rows += measure("teacher, fine-tuned", fine_tuning, repeats)
    rows += measure("teacher, Viterbi paths of labels", aligning, repeats)
    return Bench("gpu", rows, {}, {})


def measure(name: str, make: Callable[[], tuple[Work, float]], repeats: int) -> list[Measurement]:
    """Seconds, rate and memory of a work.

    Args:
        name: of the work.
        make: gives the work, and the seconds of audio in it.
        repeats: how often it is timed, behind two times that are not.
    """
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    where: Conditions = {"GPU": torch.cuda.get_device_name()}
    try:
        work, audio = make()
        times = [_seconds(work) for _ in range(2 + repeats)][2:]
    except torch.OutOfMemoryError:
        there = torch.cuda.get_device_properties(GPU).total_memory / 1e9
        return [Measurement(f"{name}: out of memory, there is", "GB", [there], where)]
    where |= {"audio s": round(audio)}
    return [
        Measurement(name, "x real time", [audio / seconds for seconds in times], where),
        Measurement(f"{name}: time", "s", times, where),
        Measurement(f"{name}: memory", "GB", [torch.cuda.max_memory_reserved() / 1e9], where),
    ]


def _seconds(work: Work) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


# ------------------------------------------------------------------------------------------------------------- works
def student(size: str, kd: KdConfig, loss: str = "fused", precision: str = "auto") -> tuple[Work, float]:
    """An update of a student."""
    section = preset("librispeech-100h")["student"] | preset(f"student-{size}")["student"]
    section["training"] |= {"loss": loss, "precision": precision}
    config = StudentConfig.model_validate(section)
    model = build_student(config, VOCABULARY).to(GPU).train()
    batch = batch_of(model, config.training.max_duration_s)
    return updates(model, [{"params": list(model.parameters())}], batch, config.training, kd), batch.seconds


def fine_tuning() -> tuple[Work, float]:
    """An update of the teacher, whose encoder has thawed."""
    config, model = teacher()
    groups = [group | {"freeze_updates": 0} for group in teacher_groups(model, config)]
    batch, training = batch_of(model, config.training.max_duration_s), config.training
    return updates(model.train(), groups, batch, training, NO_KD), batch.seconds * training.accumulate


def aligning() -> tuple[Work, float]:
    """What a dump does of audio with text, but for reading and writing: encoder, grid, Viterbi path."""
    _, model = teacher()
    model.eval()
    targets = TargetsConfig.model_validate(preset("librispeech-100h")["targets"])
    batch = batch_of(model, targets.max_duration_s)

    @torch.inference_mode()
    def work() -> None:
        enc_BTE, frames_B = model.encode(batch.features_BFC, batch.lengths_B)
        outputs = model.project_encoder(enc_BTE), model.project_predictor(model.predictor(batch.labels_BU))
        grid = batch.labels_BU, frames_B, batch.label_lengths_B
        blank_BTU, label_BTU = arc_scores(model.joiner, *outputs, *grid)
        viterbi(blank_BTU, label_BTU, *grid)

    return work, batch.seconds


def updates(
    model: Transducer, groups: list[dict[str, Any]], batch: Batch, config: TrainingConfig, kd: KdConfig
) -> Work:
    """One update after another, as `training.loop` makes them, of one batch."""
    optimizers, average = build_optimizers(model, groups, config), WeightAverage(model, config.ema_decay)

    def work() -> None:
        for _ in range(config.accumulate):
            losses = transducer_losses(model, batch, config, kd)
            (losses["loss"] / config.accumulate).backward()
        apply_gradients(model, optimizers, average, config.clip_norm)

    return work


# ---------------------------------------------------------------------------------------------------------- material
def preset(name: str) -> dict[str, Any]:
    """A file of workflow/configs as it stands."""
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"{path} is not there: run it in a clone of the project")
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def teacher() -> tuple[TeacherConfig, Transducer]:
    """The preset's teacher with random weights."""
    config = TeacherConfig.model_validate(preset("librispeech-100h")["teacher"])
    encoder = BundleEncoder(torchaudio.models.wav2vec2_large_lv60k(), True, config)
    predictor = build_predictor(VOCABULARY, config.predictor)
    return config, Transducer(encoder, predictor, config.joiner_dim, VOCABULARY).to(GPU)


def batch_of(model: Transducer, seconds: float) -> Batch:
    """Utterances of 15 s, with random labels and targets along paths of theirs, on the GPU."""
    count = int(seconds / SECONDS)
    read = random_supervisions(count, FRAMES, LABELS, VOCABULARY, TargetsConfig().top_k)
    features_FC = model.encoder.extract(torch.randn(round(SECONDS * SAMPLE_RATE)))
    cuts = [MonoCut(str(number), 0.0, SECONDS, 0) for number in range(count)]
    return collate(cuts, read, lambda _: features_FC).to(GPU)
