"""Transducer losses side by side, forward and backward in fp32 on a CPU: `kdtrans bench loss`.

Two kinds: with logits given, ours beside those of k2, fast_rnnt and torchaudio; with the joiner in front, the whole
grid, fused and not, the banded loss, and pruned losses. Every loss is a process of its own (bench/loss_work.py), since
k2's may need another Python: environment variable KDTRANS_K2_PYTHON. Time is CPU time, so that other programs do not
count; the losses take turns. Memory is the growth of a fresh process's peak resident memory.

Shapes: B utterances, T frames, U labels, J joiner width, V vocabulary.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen

import torch
from torch import Tensor

from kdtrans.bench.loss_work import MARGIN, PRUNED, WIDTH, J, Size, path_cells
from kdtrans.bench.table import Bench, Conditions, Measurement
from kdtrans.bench.trained_banded import trained_banded
from kdtrans.contracts import BLANK
from kdtrans.lattice.path import nodes
from kdtrans.lattice.recursion import viterbi
from kdtrans.losses.backends import BACKENDS, NATIVE
from kdtrans.losses.band import path_band
from kdtrans.losses.fused import fused_transducer_loss
from kdtrans.losses.transducer import node_log_probs

SIZES = {"small": Size(8, 200, 40, 256), "large": Size(4, 400, 80, 500)}
PEERS = [backend for backend in BACKENDS if backend != NATIVE]
OURS_JOINED = ["unfused", "chunked", "banded", NATIVE + PRUNED]
PEERS_PRUNED = ["k2" + PRUNED, "fast_rnnt" + PRUNED]
EVERY = [NATIVE, *PEERS, *OURS_JOINED, *PEERS_PRUNED]
K2_PYTHON = "KDTRANS_K2_PYTHON"
REPEATS = 5
LIMITS = {
    "native_vs_k2_time": "<= 0.55",
    "native_vs_fast_rnnt_time": "<= 0.55",
    "native_vs_torchaudio_time": "<= 0.55",
    "native_vs_k2_memory": "<= 0.3",
    "native_vs_fast_rnnt_memory": "<= 0.3",
    "grad_error": "<= 1e-5",
    "chunked_time": "<= 1.15",
    "chunked_memory": "<= 0.25",
    "banded_vs_pruned_time": "<= 0.6",
    "banded_loss_gap": "<= 0.01 of the full loss",
    "banded_loss_gap_trained": "<= 0.01 of the full loss",
    "banded_vs_pruned_time_trained": "<= 0.6",
}


def bench_loss(quick: bool, results: Path | None = None) -> Bench:
    """Measure all losses that are installed; a ratio is that of the size and threads where it is worst.

    Args:
        quick: the small size on one thread only, to end within a minute on two idle cores.
        results: a results folder, on whose distilled student the banded loss is measured, too.
    """
    rows, worst = [], dict[str, float]()
    for size in ["small"] if quick else ["small", "large"]:
        for threads in [1] if quick else [1, 2]:
            measured = measure(EVERY, SIZES[size], threads)
            rows += rows_of(measured, {"size": size, **SIZES[size]._asdict(), "threads": threads})
            worst = {key: max(value, worst.get(key, value)) for key, value in (worst | ratios(measured)).items()}
    gap = banded_loss_gap()
    rows, worst = [*rows, gap], worst | {gap.name: gap.median}
    if results is not None:
        trained_rows, trained_ratios = trained_banded(results, WIDTH, MARGIN)
        rows, worst = rows + trained_rows, worst | trained_ratios
    return Bench("loss", rows, worst, LIMITS)


@dataclass(frozen=True)
class Measured:
    """What is known of one loss at one size."""

    seconds: Sequence[float]  # CPU seconds of each repeat; empty where it is missing
    memory: float = 0.0  # MB
    grad_error: float | None = None
    missing: str = ""  # why

    @property
    def time(self) -> float:
        return sorted(self.seconds)[len(self.seconds) // 2]


def measure(names: list[str], size: Size, threads: int, repeats: int = REPEATS) -> dict[str, Measured]:
    """Memory, gradient error and time of every loss at one size; other libraries' may be missing."""
    with at_work(names, size, threads) as workers:
        first = {name: _answer(worker) for name, worker in workers.items()}
        present = [name for name, line in first.items() if line]
        seconds = dict[str, list[float]]((name, []) for name in names)
        for _ in range(repeats):
            for name in present:
                seconds[name].append(float(_answer(workers[name], ask=True)))
        found = {name: Measured(seconds[name], **json.loads(first[name])) for name in present}
        for name in set(names) - set(present):
            found[name] = Measured([], missing=_complaint(workers[name]))
    for name in names:
        if found[name].missing and name.removesuffix(PRUNED) not in PEERS:
            raise OSError(f"{name} at {size} failed: {found[name].missing}")
    return {name: found[name] for name in names}


def rows_of(measured: dict[str, Measured], shared: Conditions) -> list[Measurement]:
    """As they stand in the table; every row names the peers that are missing, and the first one says why they are."""
    missing = {name: it.missing for name, it in measured.items() if it.missing and name in PEERS}
    if missing:
        shared = shared | {"missing": " ".join(missing)}
    rows: list[Measurement] = []
    for name, it in measured.items():
        if it.missing:
            continue
        own: Conditions = {} if name in BACKENDS else {"J": J}
        if name == "banded" or name.endswith(PRUNED):
            own["width"] = WIDTH
        if name == "banded":
            own["margin"] = MARGIN
        why: Conditions = {"why": "; ".join(missing.values())} if missing and not rows else {}
        rows.append(Measurement(f"{name} time", "CPU s", it.seconds, own | shared | why))
        rows.append(Measurement(f"{name} memory", "MB", [it.memory], own | shared))
        if it.grad_error is not None:
            rows.append(Measurement(f"{name} grad_error", "", [it.grad_error], shared))
    return rows


def ratios(measured: dict[str, Measured]) -> dict[str, float]:
    """Ours by others; without those that are missing."""
    time = {name: it.time for name, it in measured.items() if not it.missing}
    memory = {name: measured[name].memory for name in time}
    found = {}
    for peer in (peer for peer in PEERS if peer in time):
        found[f"native_vs_{peer}_time"] = time[NATIVE] / time[peer]
        found[f"native_vs_{peer}_memory"] = memory[NATIVE] / memory[peer]
    found["grad_error"] = measured[NATIVE].grad_error or 0.0
    found["chunked_time"] = time["chunked"] / time["unfused"]
    found["chunked_memory"] = memory["chunked"] / memory["unfused"]
    found["banded_vs_full_time"] = time["banded"] / time["chunked"]
    found["banded_vs_native_pruned_time"] = time["banded"] / time[NATIVE + PRUNED]
    if pruned := [time[peer] for peer in PEERS_PRUNED if peer in time]:
        found["banded_vs_pruned_time"] = time["banded"] / min(pruned)
        found["native_pruned_vs_pruned_time"] = time[NATIVE + PRUNED] / min(pruned)
    return found


# ------------------------------------------------------------------------------------------------------------- workers
@contextmanager
def at_work(names: list[str], size: Size, threads: int) -> Iterator[dict[str, Popen[str]]]:
    """A process for every loss; all start at once, and end with the block."""
    # The other Python has no kdtrans installed; waiting threads would burn the CPU time that is measured.
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH")) if part)
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    workers = {}
    try:
        for name in names:
            python = os.environ.get(K2_PYTHON, sys.executable) if name.startswith("k2") else sys.executable
            command = [python, "-m", "kdtrans.bench.loss_work", name, *map(str, size), str(threads)]
            workers[name] = Popen(command, text=True, env=environment, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        yield workers
    finally:
        for worker in workers.values():
            worker.kill()
            worker.communicate()


def _answer(worker: Popen[str], ask: bool = False) -> str:
    """The worker's next line, empty if it has ended."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    if ask:
        print(file=worker.stdin, flush=True)
    return worker.stdout.readline()


def _complaint(worker: Popen[str]) -> str:
    """What a worker that has ended said last."""
    assert worker.stderr is not None
    lines = worker.stderr.read().strip().splitlines()
    return lines[-1].removeprefix("ValueError: ") if lines else "no message"


# --------------------------------------------------------------------------------------------------------------- truth
def banded_loss_gap() -> Measurement:
    """How much the banded loss exceeds the full one where a model is sure of its labels and half sure of their frames.

    Random logits have no path. Here enc carries how many labels are expected by each frame, rising over some frames,
    and pred how many there are: the more are missing, the more probable is the label. The band follows the Viterbi
    path.
    """
    torch.manual_seed(0)
    B, T, U, V = SIZES["small"]
    labels, frames, lengths = torch.randint(1, V, (B, U)), torch.full((B,), T), torch.full((B,), U)
    emission = torch.randint(T, (B, U)).sort(1).values
    enc = (torch.arange(T)[:, None] - emission[:, None]).div(1.5).sigmoid().sum(2, keepdim=True)
    last = torch.nn.functional.pad(labels, (0, 1), value=BLANK)  # nothing follows the last label
    pred = torch.stack([torch.arange(U + 1).expand(B, -1), last], 2).double()

    def join(expected_C: Tensor, here_C: Tensor) -> Tensor:
        missing_C = expected_C[..., 0] - here_C[..., 0]
        logits_CV = torch.full((*missing_C.shape, V), -8.0, dtype=torch.float64)
        logits_CV.scatter_(-1, here_C[..., 1, None].long(), 6.0 * (missing_C[..., None] - 0.5))
        logits_CV[..., BLANK] = 0.0
        return logits_CV

    enc = enc.double()
    blank, label = node_log_probs(join(enc[:, :, None], pred[:, None].expand(-1, T, -1, -1)), labels)
    path, _ = viterbi(blank, label, labels, frames, lengths)
    emission = torch.stack([nodes(one)[0][one != BLANK] for one in path])
    cells = path_cells(labels, frames, lengths, emission)
    full, banded = (
        fused_transducer_loss(join, (), enc, pred, labels, frames, lengths, band_BTU=band).sum()
        for band in (None, path_band(cells, frames, lengths, T, U + 1, WIDTH, MARGIN))
    )
    conditions: Conditions = {"grid": "peaky, synthetic", "width": WIDTH, "margin": MARGIN}
    conditions |= {"nats an utterance": round(float(full) / B, 2)}
    return Measurement("banded_loss_gap", "", [float(banded / full) - 1.0], conditions)
