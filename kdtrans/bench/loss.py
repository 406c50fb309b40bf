"""Transducer losses side by side, forward and backward in fp32 on one thread: `kdtrans bench loss`.

Two kinds: with logits given, ours beside those of torchaudio, k2 and fast_rnnt, where they are installed; with the
joiner in front, the whole grid's beside the fused one and the banded one. Time is CPU time, so that other programs do
not count; the losses take turns. Memory is the growth of peak resident memory in a fresh process for each.

Shapes: B utterances, T frames, U labels, J joiner width, V vocabulary.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdtrans.bench.measure import cpu_seconds, resident_mb
from kdtrans.bench.table import Bench, Measurement
from kdtrans.contracts import BLANK
from kdtrans.lattice.path import nodes, path_from_frames
from kdtrans.lattice.recursion import viterbi
from kdtrans.losses.band import path_band
from kdtrans.losses.fused import fused_transducer_loss
from kdtrans.losses.grid import Cells
from kdtrans.losses.transducer import node_log_probs, transducer_loss
from kdtrans.models.transducer import Joiner

J, WIDTH, MARGIN = 256, 5, 4


class Size(NamedTuple):
    """Of a batch whose utterances are all as long."""

    B: int
    T: int
    U: int
    V: int


SIZES = {"tiny": Size(2, 10, 4, 16), "small": Size(8, 200, 40, 256), "large": Size(4, 400, 80, 500)}
PEERS = {"torchaudio": "torchaudio.functional", "k2": "k2", "fast_rnnt": "fast_rnnt"}
JOINED = ("unfused", "chunked", "banded")
LIMITS = {
    "native_vs_torchaudio_time": "<= 0.55",
    "native_vs_k2_time": "<= 0.55",
    "native_vs_fast_rnnt_time": "<= 0.55",
    "native_vs_k2_memory": "<= 0.3",
    "native_vs_fast_rnnt_memory": "<= 0.3",
    "grad_error": "<= 1e-5",
    "chunked_time": "<= 1.15",
    "chunked_memory": "<= 0.25",
    "banded_loss_gap": "<= 0.01 of the full loss",
}
Conditions = dict[str, str | int | float]
Work = Callable[[], Tensor]  # forward and backward; the gradient of the first input


def bench_loss(quick: bool) -> Bench:
    """Measure all losses that are installed; a ratio is that of the size where it is worst.

    Args:
        quick: the small size only, to end within a minute on two idle cores.
    """
    torch.set_num_threads(1)
    sizes, peers = (["small"] if quick else ["small", "large"]), installed_peers()
    rows, worst = [], dict[str, float]()
    for size in sizes:
        measured, ratios = measure(size, peers, repeats=5)
        rows += measured
        worst = {key: max(value, worst.get(key, value)) for key, value in ratios.items()}
    gap = banded_loss_gap()
    return Bench("loss", [*rows, gap], worst | {gap.name: gap.median}, LIMITS)


def measure(size: str, peers: list[str], repeats: int) -> tuple[list[Measurement], dict[str, float]]:
    """Time, memory and gradient error of every loss at one size, and the ratios of ours to others."""
    conditions: Conditions = {"size": size, **SIZES[size]._asdict(), "threads": 1}
    if missing := [peer for peer in PEERS if peer not in peers]:
        conditions["not installed"] = " ".join(missing)
    names = ["native", *peers, *JOINED]
    memory = {name: in_a_fresh_process(name, size) for name in names}
    seconds: dict[str, list[float]] = {}
    for group in (["native", *peers], JOINED):
        works = {name: make_work(name, size) for name in group}
        for work in works.values():
            work()  # memory is allocated before the clock runs
        for _ in range(repeats):
            for name, work in works.items():
                seconds.setdefault(name, []).append(cpu_seconds(work))
    rows = []
    for name in names:
        own: Conditions = {"J": J} if name in JOINED else {}
        if name == "banded":
            own |= {"width": WIDTH, "margin": MARGIN}
        rows.append(Measurement(f"{name} time", "CPU s", seconds[name], own | conditions))
        rows.append(Measurement(f"{name} memory", "MB", [memory[name]], own | conditions))
    time = {row.name.removesuffix(" time"): row.median for row in rows if row.name.endswith(" time")}
    ratios = {f"native_vs_{peer}_time": time["native"] / time[peer] for peer in peers}
    ratios |= {f"native_vs_{peer}_memory": memory["native"] / memory[peer] for peer in peers}
    errors = {name: gradient_error(name, size) for name in ["native", *peers]}
    rows += [Measurement(f"{name} grad_error", "", [error], conditions) for name, error in errors.items()]
    ratios |= {
        "grad_error": errors["native"],
        "chunked_time": time["chunked"] / time["unfused"],
        "chunked_memory": memory["chunked"] / memory["unfused"],
        "banded_vs_full_time": time["banded"] / time["chunked"],
        "banded_vs_unfused_time": time["banded"] / time["unfused"],
    }
    return rows, ratios


# -------------------------------------------------------------------------------------------------------------- losses
def make_work(name: str, size: str) -> Work:
    """One loss on random inputs, the same for all losses of a size."""
    B, T, U, V = SIZES[size]
    torch.manual_seed(0)
    labels, frames, lengths = torch.randint(1, V, (B, U)), torch.full((B,), T), torch.full((B,), U)
    if name in JOINED:
        joiner = Joiner(1, 1, J, V)
        enc, pred = torch.randn(B, T, J, requires_grad=True), torch.randn(B, U + 1, J, requires_grad=True)
        emission = torch.randint(T, (B, U)).sort(1).values
        return lambda: _joined(name, joiner, enc, pred, (labels, frames, lengths), emission)
    loss, logits = _loss_of_logits(name), torch.randn(B, T, U + 1, V, requires_grad=True)
    return lambda: torch.autograd.grad(loss(logits, labels, frames, lengths), logits)[0]


def installed_peers() -> list[str]:
    """Those of PEERS that can be imported here."""
    found = []
    for peer, module in PEERS.items():
        try:
            importlib.import_module(module)
        except (ImportError, OSError):  # OSError: there, but built for another torch
            continue
        found.append(peer)
    return found


def _loss_of_logits(name: str) -> Callable[..., Tensor]:
    """A function of logits, labels, frames and lengths to the batch's summed loss."""
    if name == "native":
        return lambda *batch: transducer_loss(*batch).sum()
    peer = importlib.import_module(PEERS[name])
    if name == "torchaudio":

        def torchaudio_loss(logits: Tensor, *batch: Tensor) -> Tensor:
            loss: Tensor = peer.rnnt_loss(logits, *(part.int() for part in batch), blank=BLANK, reduction="sum")
            return loss

        return torchaudio_loss

    def k2_loss(logits: Tensor, labels: Tensor, frames: Tensor, lengths: Tensor) -> Tensor:
        zeros = torch.zeros_like(frames)
        boundary = torch.stack([zeros, zeros, lengths, frames], 1)
        loss: Tensor = peer.rnnt_loss(logits, labels, BLANK, boundary, reduction="sum")
        return loss

    return k2_loss


def _joined(
    name: str, joiner: Joiner, enc: Tensor, pred: Tensor, grid: tuple[Tensor, Tensor, Tensor], emission: Tensor
) -> Tensor:
    """The loss with the joiner in front, and the gradients of its inputs and weights; that of the encoder output."""
    if name == "unfused":
        loss = transducer_loss(joiner(enc[:, :, None], pred[:, None]), *grid)
    else:
        band = band_along(*grid, emission, WIDTH, MARGIN) if name == "banded" else None
        loss = fused_transducer_loss(joiner, joiner.output.parameters(), enc, pred, *grid, band_BTU=band)
    return torch.autograd.grad(loss.sum(), (enc, pred, *joiner.output.parameters()))[0]


def band_along(
    labels_BU: Tensor, frames_B: Tensor, lengths_B: Tensor, emission_BU: Tensor, width: int, margin: int
) -> Tensor:
    """The band (B, T, U + 1) around the paths that emit the labels on the frames `emission_BU`."""
    paths = path_from_frames(labels_BU, emission_BU, frames_B, lengths_B)
    found = [(torch.full_like(path, b), *nodes(path)) for b, path in enumerate(paths)]
    cells = Cells(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    return path_band(cells, frames_B, lengths_B, int(frames_B.max()), labels_BU.shape[1] + 1, width, margin)


# --------------------------------------------------------------------------------------------------------------- truth
def gradient_error(name: str, size: str) -> float:
    """Greatest difference of a logit's gradient in fp32 from one that is fp64 throughout; gradients are within 1."""
    _, T, U, V = SIZES[size]
    torch.manual_seed(1)
    logits = torch.randn(1, T, U + 1, V, requires_grad=True)  # one utterance: the fp64 twin is large
    batch = (torch.randint(1, V, (1, U)), torch.tensor([T]), torch.tensor([U]))
    wide = logits.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(transducer_loss(wide, *batch).sum(), wide)
    (ours,) = torch.autograd.grad(_loss_of_logits(name)(logits, *batch), logits)
    return float((ours - exact).abs().max())


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
    blank, label, _ = node_log_probs(join(enc[:, :, None], pred[:, None].expand(-1, T, -1, -1)), labels)
    path, _ = viterbi(blank, label, labels, frames, lengths)
    emission = torch.stack([nodes(one)[0][one != BLANK] for one in path])
    full, banded = (
        fused_transducer_loss(join, (), enc, pred, labels, frames, lengths, band_BTU=band).sum()
        for band in (None, band_along(labels, frames, lengths, emission, WIDTH, MARGIN))
    )
    conditions: Conditions = {"grid": "peaky, synthetic", "width": WIDTH, "margin": MARGIN}
    conditions |= {"nats an utterance": round(float(full) / B, 2)}
    return Measurement("banded_loss_gap", "", [float(banded / full) - 1.0], conditions)


# -------------------------------------------------------------------------------------------------------------- memory
def in_a_fresh_process(name: str, size: str) -> float:
    """What `peak_growth_mb` says of a loss, in a process of its own."""
    command = [sys.executable, "-m", "kdtrans.bench.loss", name, size]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if run.returncode != 0:
        raise OSError(f"{name} at size {size} failed: {(run.stderr.strip().splitlines() or ['no message'])[-1]}")
    growth: float = json.loads(run.stdout)
    return growth


def peak_growth_mb(work: Callable[[], Any]) -> float:
    """By how much the peak of resident memory exceeds what is resident before the work, 10^6 bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: importing may have had a higher one
    before = resident_mb()
    work()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024 / 1e6 - before


def main(name: str, size: str) -> float:
    """Growth of peak memory by one loss; its code and libraries are loaded by a tiny one before."""
    torch.set_num_threads(1)
    make_work(name, "tiny")()
    return peak_growth_mb(make_work(name, size))


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
