"""A student's training step, part by part, and what one-best distillation adds to it: `kdtrans bench train`.

Time is CPU time, so that other programs do not count; what is compared takes turns in one process. Memory is the growth
of peak resident memory in a fresh process for each. A ratio is the median of the turns' ratios.

Batches are noise of a real batch's shape. Distillation's cost depends on how many nodes there are, and the labels'
paths of `an4` are real: those of the project's sample.

Shapes: B utterances, T encoder frames (40 ms), U labels, V vocabulary, J joiner width, N path nodes, K stored classes.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
from lhotse import MonoCut
from torch import Tensor
from torch.optim import Optimizer

from kdtrans.bench.measure import cpu_seconds, peak_growth_mb
from kdtrans.bench.table import Bench, Conditions, Measurement
from kdtrans.bench.targets import SAMPLE
from kdtrans.config import KdConfig, StudentConfig, TargetsConfig
from kdtrans.contracts import FRAME_SHIFT_MS, SAMPLE_RATE
from kdtrans.data.batches import Batch, Supervision, collate
from kdtrans.lattice.path import nodes, path_from_frames
from kdtrans.losses.distillation import NodeTargets, gather_logits, one_best_loss
from kdtrans.models.build import build_student
from kdtrans.models.transducer import Transducer
from kdtrans.targets.shards import read_shard, row_to_target
from kdtrans.targets.sizes import encoded
from kdtrans.training.losses import ctc_loss, path_losses, run_student, transducer_losses, transducer_part
from kdtrans.training.optimizers import build_optimizers
from kdtrans.training.schedule import WeightAverage


class Size(NamedTuple):
    """Of a batch whose utterances are all as long, and the student that learns from it."""

    B: int
    T: int
    U: int
    V: int
    student: str


AN4 = "an4"  # the size of the sample's longest utterances
SIZES = {
    "tiny": Size(2, 10, 4, 16, "tiny"),
    "small": Size(8, 200, 40, 256, "1 M"),
    "reference": Size(8, 250, 60, 500, "10 M"),
    "large": Size(4, 400, 80, 500, "10 M"),
}
STUDENTS: dict[str, dict[str, Any]] = {
    "tiny": {"encoder": {"dim": 8, "layers": 1, "heads": 2, "ffn_dim": 8, "subsampling_channels": 2}, "joiner_dim": 8},
    "1 M": {  # workflow/configs/an4.yaml
        "encoder": {"dim": 128, "layers": 4, "heads": 4, "ffn_dim": 384, "subsampling_channels": 16},
        "predictor": {"type": "stateless", "dim": 128},
        "joiner_dim": 128,
    },
    "10 M": {  # workflow/configs/student-10m.yaml
        "encoder": {"dim": 256, "layers": 8, "heads": 4, "ffn_dim": 640, "conv_kernel": 15, "subsampling_channels": 64},
        "predictor": {"type": "lstm", "dim": 256},
        "joiner_dim": 256,
    },
}
AN4_UTTERANCES = 8
KD, NO_KD = KdConfig(weight=1.0), KdConfig()
LIMITS = {
    "kd_time_overhead": "<= 1.05",
    "kd_memory_overhead": "<= 1.05",
    "gathered_vs_indexed_time": "<= 0.025 (40 x faster), at T 250, U 60; it goes with 1 / T + 1 / U",
    "gathered_vs_indexed_memory": "<= 0.1, there too",
}
Work = Callable[[], object]


def bench_train(quick: bool) -> Bench:
    """Measure the step, part by part, with and without distillation, and distillation alone in two ways.

    Args:
        quick: to end within a minute on two idle cores: one student, of 1 M parameters, and no other loss or precision.
    """
    rows, ratios = list[Measurement](), dict[str, float]()
    torch.set_num_threads(1)
    for size in ["small"] if quick else ["small", AN4, "large"]:
        for threads in (1, 2):
            rows += measure_parts(size, threads, repeats=5)
        if not quick:
            rows += measure_steps(size, repeats=9) + measure_loss(size, repeats=5)
        rows += measure_memory(size, "kd_memory_overhead", ("kd step", "plain step"))
    for size in ["reference"] if quick else ["reference", "large"]:
        rows += measure_gathering(size, repeats=5)
        rows += measure_memory(size, "gathered_vs_indexed_memory", ("kd gathered", "kd indexed"))
    if not quick:
        rows += measure_precision("small", repeats=5) + measure_precision("large", repeats=5)
    for row in rows:
        if row.name in LIMITS:  # judged where it is worst
            ratios[row.name] = max(row.median, ratios.get(row.name, 0.0))
    return Bench("train", rows, ratios, LIMITS)


# ---------------------------------------------------------------------------------------------------------------- step
class Job:
    """A student, noise to learn from, and its updates as `training.loop` makes them."""

    def __init__(self, size: str, precision: str = "auto", loss: str = "fused") -> None:
        self.supervisions, vocab_size, student = material(size)
        torch.manual_seed(0)
        config = StudentConfig.model_validate(STUDENTS[student] | {"training": {"precision": precision, "loss": loss}})
        self.training = config.training
        self.model = build_student(config, vocab_size).train()
        self.optimizers = build_optimizers(self.model, [{"params": list(self.model.parameters())}], self.training)
        self.average = WeightAverage(self.model, self.training.ema_decay)
        frames = [int(one.targets.t_N[-1]) + 1 for one in self.supervisions if one.targets is not None]
        seconds = [num_frames * FRAME_SHIFT_MS / 1000 for num_frames in frames]
        self.cuts = [MonoCut(str(i), 0.0, duration, 0) for i, duration in enumerate(seconds)]
        self.waveforms = {cut.id: torch.randn(round(cut.duration * SAMPLE_RATE)) for cut in self.cuts}
        self.batch = self.load()
        self.conditions: Conditions = {
            "size": size,
            "B": len(frames),
            "T": max(frames),
            "U": self.batch.labels_BU.shape[1],
            "V": vocab_size,
            "student": student,
            "threads": torch.get_num_threads(),
        }

    def load(self) -> Batch:
        """Features of all waveforms, and a batch of them: what an epoch does where no cache has them."""
        return collate(self.cuts, self.supervisions, lambda cut: self.model.encoder.extract(self.waveforms[cut.id]))

    def step(self, kd: KdConfig) -> None:
        """One update."""
        torch.manual_seed(0)  # the same masks in all
        transducer_losses(self.model, self.batch, self.training, kd)["loss"].backward()
        self.update()

    def update(self) -> None:
        """What comes after the gradients."""
        apply_gradients(self.model, self.optimizers, self.average, self.training.clip_norm)

    def parts(self) -> dict[str, float]:
        """CPU seconds of each part of one update."""
        seconds = dict[str, float]()

        def timed(part: str, work: Callable[[], Any]) -> Any:
            started = time.process_time()
            result = work()
            seconds[part] = time.process_time() - started
            return result

        torch.manual_seed(0)
        model, config = self.model, self.training
        batch = timed("data", self.load)
        student = timed("encoder", lambda: run_student(model, batch, config))
        loss = timed("joiner and loss", lambda: transducer_part(student, batch, config).sum())
        ctc = timed("CTC", lambda: ctc_loss(model.ctc(student.enc_BTE.float()), student.frames_B, batch))
        kd = timed("KD", lambda: path_losses(student, batch, KD, 0)["loss_kd"])
        # Down to what it shares with the other losses; from there on it costs nothing.
        joined = (student.enc_BTJ, student.pred_BUJ)
        *gradients, weight, bias = timed("KD backward", lambda: torch.autograd.grad(kd, (*joined, *student.parameters)))
        model.joiner.output.weight.grad, model.joiner.output.bias.grad = weight, bias
        total = (loss + config.ctc_weight * ctc) / len(batch.utt_ids)
        timed("backward", lambda: torch.autograd.backward((total, *joined), (None, *gradients)))
        timed("optimiser", self.update)
        return seconds


def apply_gradients(model: Transducer, optimizers: list[Optimizer], average: WeightAverage, clip_norm: float) -> None:
    """What an update does after the gradients."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    average.update(model, 0)


def measure_parts(size: str, threads: int, repeats: int) -> list[Measurement]:
    """CPU seconds of every part of a step with distillation, and the step over what is left of it without.

    Inside a step, for from one step to the next the time of the other parts differs by more than distillation takes.
    """
    torch.set_num_threads(threads)
    job = Job(size)
    job.parts()  # memory is allocated before the clock runs
    turns = [job.parts() for _ in range(repeats)]
    torch.set_num_threads(1)
    totals = [sum(turn.values()) for turn in turns]
    overheads = [total / (total - turn["KD"] - turn["KD backward"]) for total, turn in zip(totals, turns, strict=True)]
    return [
        *(Measurement(f"step: {part}", "CPU s", [turn[part] for turn in turns], job.conditions) for part in turns[0]),
        Measurement("step", "CPU s", totals, job.conditions),
        Measurement("kd_time_overhead", "", overheads, job.conditions),
    ]


def measure_steps(size: str, repeats: int) -> list[Measurement]:
    """The same from whole steps, with and without distillation in turns: truer, and vaguer."""
    job = Job(size)
    seconds = take_turns({"with": partial(job.step, KD), "without": partial(job.step, NO_KD)}, repeats)
    ratios = [a / b for a, b in zip(seconds["with"], seconds["without"], strict=True)]
    rows = [Measurement(f"step {name} KD", "CPU s", values, job.conditions) for name, values in seconds.items()]
    return [*rows, Measurement("step with KD / without", "", ratios, job.conditions)]


def measure_loss(size: str, repeats: int) -> list[Measurement]:
    """The time of a step with the fused, and with the banded loss, over that of one that joins the grid at once."""
    jobs = {loss: Job(size, loss=loss) for loss in ("fused", "banded", "full")}
    seconds = take_turns({loss: partial(job.step, KD) for loss, job in jobs.items()}, repeats)
    return [
        Measurement(
            f"{loss}_vs_full_time",
            "",
            [a / b for a, b in zip(seconds[loss], seconds["full"], strict=True)],
            jobs[loss].conditions,
        )
        for loss in ("fused", "banded")
    ]


def measure_precision(size: str, repeats: int) -> list[Measurement]:
    """The time of a step in bf16 over that of one in fp32."""
    jobs = {precision: Job(size, precision) for precision in ("bf16", "fp32")}
    seconds = take_turns({precision: partial(job.step, KD) for precision, job in jobs.items()}, repeats)
    ratios = [a / b for a, b in zip(seconds["bf16"], seconds["fp32"], strict=True)]
    return [Measurement("bf16_vs_fp32_time", "", ratios, jobs["bf16"].conditions)]


def take_turns(works: dict[str, Work], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each, one after the other in every turn."""
    for work in works.values():
        work()  # memory is allocated before the clock runs
    turns = [{name: cpu_seconds(work) for name, work in works.items()} for _ in range(repeats)]
    return {name: [turn[name] for turn in turns] for name in works}


# -------------------------------------------------------------------------------------------------------- distillation
def measure_gathering(size: str, repeats: int) -> list[Measurement]:
    """One-best distillation alone, forward and backward: nodes gathered before the joiner, or indexed in its grid."""
    seconds = take_turns({name: make_work(f"kd {name}", size) for name in ("gathered", "indexed")}, repeats)
    ratios = [a / b for a, b in zip(seconds["gathered"], seconds["indexed"], strict=True)]
    conditions: Conditions = {"size": size, **SIZES[size]._asdict(), "threads": 1}
    return [
        *(Measurement(f"KD {name} time", "CPU s", values, conditions) for name, values in seconds.items()),
        Measurement("gathered_vs_indexed_time", "", ratios, conditions),
    ]


def distillation(size: str, indexed: bool) -> Work:
    """Forward and backward of the one-best loss through the joiner of a new student."""
    supervisions, vocab_size, student = material(size)
    torch.manual_seed(0)
    model = build_student(StudentConfig.model_validate(STUDENTS[student]), vocab_size)
    width = model.joiner.output.in_features
    parts = [one.targets for one in supervisions if one.targets is not None]
    utterance_N = torch.cat([torch.full((len(part),), b) for b, part in enumerate(parts)])
    stacked = [torch.cat([getattr(part, name) for part in parts]) for name in ("t_N", "u_N", "ids_NK", "logp_NK")]
    targets = NodeTargets(utterance_N, *stacked)
    columns = max(len(one.labels) for one in supervisions) + 1
    enc_BTJ = torch.randn(len(parts), int(targets.t_N.max()) + 1, width, requires_grad=True)
    pred_BUJ = torch.randn(len(parts), columns, width, requires_grad=True)
    learned = (enc_BTJ, pred_BUJ, *model.joiner.output.parameters())

    def work() -> tuple[Tensor, ...]:
        if indexed:
            logits_NV = model.grid(enc_BTJ, pred_BUJ)[targets.utterance_N, targets.t_N, targets.u_N]
        else:
            logits_NV = gather_logits(model.joiner, enc_BTJ, pred_BUJ, targets)
        return torch.autograd.grad(one_best_loss(logits_NV, targets, KD, len(parts)), learned)

    return work


# ------------------------------------------------------------------------------------------------------------- material
def material(size: str) -> tuple[list[Supervision], int, str]:
    """What a batch is taught, V, and which student learns it."""
    k = TargetsConfig().top_k
    if size == AN4:
        if not SAMPLE.is_file():
            raise ValueError(f"{SAMPLE} is not there: run it in a clone of the project")
        footer, table = read_shard(SAMPLE)
        targets = [row_to_target(table, row, footer.top_k) for row in range(len(table))]
        longest = sorted(targets, key=lambda target: -target.num_frames)[:AN4_UTTERANCES]
        stored = encoded(longest, k, TargetsConfig().min_probability, TargetsConfig().logp_step)
        read = [Supervision(tuple(target.labels.tolist()), target.node_targets(0)) for target in stored]
        return read, footer.vocab_size, "1 M"
    B, T, U, V, student = SIZES[size]
    return random_supervisions(B, T, U, V, k), V, student


def random_supervisions(B: int, T: int, U: int, V: int, k: int) -> list[Supervision]:
    """B utterances of T frames with U random labels, and the k best of random distributions along paths of theirs."""
    generator = torch.Generator().manual_seed(0)
    labels_BU = torch.randint(1, V, (B, U), generator=generator)
    emission_BU = torch.randint(T, (B, U), generator=generator).sort(1).values
    paths_BN = path_from_frames(labels_BU, emission_BU, torch.full((B,), T), torch.full((B,), U))
    read = []
    for labels_U, path_N in zip(labels_BU, paths_BN, strict=True):
        top = (3.0 * torch.randn(len(path_N), V, generator=generator)).log_softmax(1).topk(k, dim=1)
        targets_N = NodeTargets(torch.zeros_like(path_N), *nodes(path_N), top.indices, top.values)
        read.append(Supervision(tuple(labels_U.tolist()), targets_N))
    return read


# -------------------------------------------------------------------------------------------------------------- memory
def measure_memory(size: str, ratio: str, names: tuple[str, str]) -> list[Measurement]:
    """Growth of the peak memory by two works, and the first over the second."""
    conditions: Conditions = {"size": size, "threads": 1}
    megabytes = in_fresh_processes(names, size)
    rows = [Measurement(f"{name} memory", "MB", [mb], conditions) for name, mb in zip(names, megabytes, strict=True)]
    return [*rows, Measurement(ratio, "", [megabytes[0] / megabytes[1]], conditions)]


def make_work(name: str, size: str) -> Work:
    """One of what memory is measured of."""
    if name in ("kd gathered", "kd indexed"):
        return distillation(size, indexed=name == "kd indexed")
    return partial(Job(size).step, {"kd step": KD, "plain step": NO_KD}[name])


def in_fresh_processes(names: tuple[str, str], size: str) -> list[float]:
    """What `peak_growth` says of each work, in a process of its own; they run side by side, for memory is no time."""
    with ProcessPoolExecutor(len(names), multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        return list(processes.map(peak_growth, names, [size] * len(names)))


def peak_growth(name: str, size: str) -> float:
    """Growth of peak memory by one work, 10^6 bytes; its code and libraries are loaded by a tiny one before."""
    torch.set_num_threads(1)
    make_work(name, "tiny")()
    return peak_growth_mb(make_work(name, size))
