"""The cost benchmark's works run at tiny sizes in fresh processes, and its picture shows what was measured."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from kdtrans.bench import cost
from kdtrans.bench.cost import WORKS, Point, Sizes, bench_cost, fresh_processes, measure_point
from kdtrans.bench.cost_plot import SIDE, draw

TINY = {"B": 1, "T": 8, "U": 2, "V": 16, "beam": 2}


@pytest.mark.parametrize("work", WORKS)
def test_every_work_runs(work: str) -> None:
    point = measure_point(work, {dimension: TINY[dimension] for dimension in WORKS[work][0]}, repeats=2)
    assert len(point.time) == 2
    assert min(point.time) > 0


def test_a_point_is_measured_in_a_process_of_its_own() -> None:
    sizes = {"B": 1, "T": 50, "U": 10, "V": 4096}  # its logits take 9 MB: memory that the other must not have left
    with fresh_processes() as submit:
        first, second = (submit("loss, whole grid", sizes, 1) for _ in range(2))
    assert first.memory[0] == pytest.approx(second.memory[0], rel=0.3)


def of_known_growth(submitted: list[Sizes]) -> Callable[[], object]:
    @contextmanager
    def measure() -> Iterator[Callable[[str, Sizes, int], Point]]:
        def submit(work: str, sizes: Sizes, repeats: int) -> Point:
            submitted.append(sizes)
            seconds = sizes["T"] ** 2 * sizes["B"] * 1e-6
            return Point([seconds, seconds, 9 * seconds][:repeats], [float(sizes["V"])])

        yield submit

    return measure


def test_exponents_and_picture_are_of_what_grew(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[Sizes] = []
    monkeypatch.setattr(cost, "fresh_processes", of_known_growth(submitted))
    monkeypatch.setattr(cost, "WORKS", {"dump": WORKS["dump"], "decode": WORKS["decode"]})
    monkeypatch.setattr(cost, "REPEATS", 3)
    bench = bench_cost(False)
    assert len(submitted) == 4 * (4 + 5)
    assert bench.ratios["dump_time_T"] == pytest.approx(2)
    assert bench.ratios["dump_time_B"] == pytest.approx(1)
    assert bench.ratios["decode_time_beam"] == pytest.approx(0)
    assert bench.ratios["decode_memory_V"] == pytest.approx(1)
    assert len(bench_cost(True).rows) == len(bench.rows) / 2

    image = ET.fromstring(draw(bench.rows))
    lines = list(image.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 2 * (4 + 5)
    ends = {line.get("points", "").split()[-1] for line in lines}
    assert f"{SIDE:.1f},0.0" in ends, "linear growth ends in the corner"
    assert f"{SIDE:.1f},{SIDE:.1f}" in ends, "what does not grow stays on the axis"
