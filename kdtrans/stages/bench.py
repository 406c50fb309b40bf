"""Measure what the project promises, on this machine."""

from __future__ import annotations

from pathlib import Path

from kdtrans.artifacts import write_whole

# name -> module and function that runs it
BENCHES = {
    "cost": ("kdtrans.bench.cost", "bench_cost"),
    "decode": ("kdtrans.bench.decode", "bench_decode"),
    "gpu": ("kdtrans.bench.gpu", "bench_gpu"),
    "loss": ("kdtrans.bench.loss", "bench_loss"),
    "targets": ("kdtrans.bench.targets", "bench_targets"),
    "train": ("kdtrans.bench.train", "bench_train"),
}
READ_RESULTS = ("decode", "loss", "targets")  # take a results folder


def main(
    name: str,
    /,
    *,
    quick: bool = False,
    json: Path | None = None,
    results: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Run one benchmark and print what it measured, every number with the conditions that it holds under.

    Args:
        name: loss: transducer losses beside others'; train: a training step; decode: searches; targets: shards; cost:
            how losses, dump and decoding grow with a batch; gpu: what LibriSpeech's presets take of a GPU.
        quick: end within a minute on two cores: fewer repeats, and a smaller corpus to read, as the table says.
        json: write measurements and ratios there too.
        results: a results folder, whose models are measured (decode, loss, targets); without it, what comes with
            the project.
        plot: draw the costs there, as SVG (cost).
    """
    if name not in BENCHES:
        raise ValueError(f"there is no benchmark '{name}'; there are: {', '.join(BENCHES)}")
    if results is not None and name not in READ_RESULTS:
        raise ValueError(f"bench {name} measures sizes that it names itself: leave --results out")
    if plot is not None and name != "cost":
        raise ValueError(f"bench {name} has no plot, only cost has one: leave --plot out")
    import importlib

    module, function = BENCHES[name]
    run = getattr(importlib.import_module(module), function)
    bench = run(quick, results) if name in READ_RESULTS else run(quick)
    print(bench.text(), flush=True)
    if json is not None:
        bench.write(json)
    if plot is not None:
        from kdtrans.bench.cost_plot import draw

        with write_whole(plot) as temporary:
            temporary.write_text(draw(bench.rows))
