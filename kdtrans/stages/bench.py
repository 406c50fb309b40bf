"""Measure what the project promises, on this machine."""

from __future__ import annotations

from pathlib import Path

NAMES = ("loss", "targets")


def main(name: str, /, *, quick: bool = False, json: Path | None = None, results: Path | None = None) -> None:
    """Run one benchmark and print what it measured, every number with the conditions that it holds under.

    Args:
        name: loss: transducer losses beside others'; targets: size, truth, making and reading of target shards.
        quick: end within a minute on two cores: fewer repeats, and a smaller corpus to read, as the table says.
        json: write measurements and ratios there too.
        results: a results folder, whose teacher is measured; without it, a sample that comes with the project.
    """
    if name not in NAMES:
        raise ValueError(f"there is no benchmark '{name}'; there are: {', '.join(NAMES)}")
    if name == "loss":
        if results is not None:
            raise ValueError("bench loss measures sizes that it names itself: leave --results out")
        from kdtrans.bench.loss import bench_loss

        bench = bench_loss(quick)
    else:
        from kdtrans.bench.targets import bench_targets

        bench = bench_targets(quick, results)
    print(bench.text(), flush=True)
    if json is not None:
        bench.write(json)
