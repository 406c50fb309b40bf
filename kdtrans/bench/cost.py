"""How time and memory grow with a batch: `kdtrans bench cost`.

Losses, the dump's part behind the teacher's encoder, and decoding, where one dimension grows and the others stay. Time
is CPU time of one thread; memory is the growth of peak resident memory in a fresh process.

Shapes: B utterances, T encoder frames, U labels, J joiner width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from statistics import median
from typing import NamedTuple, cast

import torch

from kdtrans.bench import loss_work, peaky
from kdtrans.bench.measure import cpu_seconds, peak_growth_mb
from kdtrans.bench.table import Bench, Measurement
from kdtrans.bench.targets import labelled_cut
from kdtrans.config import SearchConfig, TargetsConfig
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.search.search import search
from kdtrans.targets.make import targets_of_encoded

Sizes = dict[str, int]
FACTORS = (1, 2, 4, 8)
REPEATS = 5


class Point(NamedTuple):
    """What one work costs at one size."""

    time: list[float]  # CPU seconds of each repeat
    memory: list[float]  # MB, once


def bench_cost(quick: bool) -> Bench:
    """Measure every work along each of its dimensions; a ratio is the exponent of size between the last two factors.

    Args:
        quick: the base and four times it only, once: to end within a minute on two idle cores.
    """
    factors, repeats = ((1, 4), 1) if quick else (FACTORS, REPEATS)
    rows, exponents = list[Measurement](), dict[str, float]()
    with fresh_processes() as submit:
        for work, (base, _) in WORKS.items():
            for dimension in base:
                points = [submit(work, _grown(base, dimension, factor), repeats) for factor in factors]
                rows += _rows(work, base, dimension, factors, points)
                step = math.log(factors[-1] / factors[-2])
                for quantity in ("time", "memory"):
                    before, after = (median(getattr(point, quantity)) for point in points[-2:])
                    exponents[f"{_key(work)}_{quantity}_{dimension}"] = math.log(after / before) / step
    return Bench("cost", rows, exponents, dict.fromkeys(exponents, "linear is 1"))


def _grown(base: Sizes, dimension: str, factor: int) -> Sizes:
    return base | {dimension: factor * base[dimension]}


def _rows(
    work: str, base: Sizes, dimension: str, factors: tuple[int, ...], points: list[Point]
) -> Iterator[Measurement]:
    """Time and memory at each factor of one dimension."""
    for factor, point in zip(factors, points, strict=True):
        conditions: dict[str, str | int | float] = {"along": dimension, "factor": factor}
        conditions |= _grown(base, dimension, factor)
        yield Measurement(f"{work}, time", "CPU s", point.time, conditions)
        yield Measurement(f"{work}, memory", "MB", point.memory, conditions)


def _key(work: str) -> str:
    return work.replace(", ", "_").replace(" ", "_")


# ----------------------------------------------------------------------------------------------------------- processes
@contextmanager
def fresh_processes() -> Iterator[Callable[[str, Sizes, int], Point]]:
    """What measures one point in a process that has done nothing else; they are forked from one that has torch."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as executor:
        yield lambda work, sizes, repeats: executor.submit(measure_point, work, sizes, repeats).result()


def measure_point(work: str, sizes: Sizes, repeats: int) -> Point:
    """Cost of one work in this process: the first run gives memory, further ones the time."""
    torch.set_num_threads(1)
    base, make = WORKS[work]
    make({dimension: min(size, 16 if dimension == "V" else 4) for dimension, size in base.items()})()  # loads code
    run = make(sizes)
    memory = [peak_growth_mb(run)]
    return Point([cpu_seconds(run) for _ in range(repeats)], memory)


# --------------------------------------------------------------------------------------------------------------- works
def _loss(name: str) -> Callable[[Sizes], Callable[[], object]]:
    """Forward and backward of a loss with the joiner in front."""
    return lambda sizes: loss_work.make_work(name, loss_work.Size(**sizes))


class _Numbers:
    """A tokenizer whose texts are the tokens' numbers."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


def _dump(sizes: Sizes) -> Callable[[], object]:
    """Targets of labelled audio, encoder output given: lattice, Viterbi, gather, top-k, encoding."""
    B, T, U, V = (sizes[dimension] for dimension in "BTUV")
    teacher, _ = peaky.network(V, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    enc_BTE = torch.randn(B, T, peaky.J)
    texts = [_Numbers().decode(torch.randint(2, V, (U,)).tolist()) for _ in range(B)]
    cuts = [labelled_cut(f"utterance-{b}", text, T * peaky.FRAME_S) for b, text in enumerate(texts)]
    tokenizer = cast(Tokenizer, _Numbers())
    return lambda: targets_of_encoded(teacher, cuts, enc_BTE, torch.full((B,), T), tokenizer, TargetsConfig())


def _decode(sizes: Sizes) -> Callable[[], object]:
    """Beam search with the searches' defaults on speech with about U labels an utterance, encoder output given."""
    generator = torch.Generator().manual_seed(0)
    model, signs_VJ = peaky.network(sizes["V"], generator)
    lengths_B = torch.full((sizes["B"],), sizes["T"])
    enc_BTJ, _ = peaky.speech(signs_VJ, lengths_B, sizes["T"] / sizes["U"], generator)
    return lambda: search(model, enc_BTJ, lengths_B, SearchConfig(type="beam", beam=sizes["beam"]))


LATTICE = {"B": 4, "T": 150, "U": 30, "V": 256}
WORKS: dict[str, tuple[Sizes, Callable[[Sizes], Callable[[], object]]]] = {
    "loss, whole grid": (LATTICE, _loss("chunked")),
    "loss, banded": (LATTICE, _loss("banded")),
    "loss, pruned": (LATTICE, _loss("native" + loss_work.PRUNED)),
    "dump": (LATTICE, _dump),
    "decode": ({"B": 32, "T": 100, "U": 10, "V": 256, "beam": 4}, _decode),
}
