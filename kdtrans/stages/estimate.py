"""Before a dump: how much disk and time it will take, measured on a sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.table import Table

SEED = 1  # of the sample


@dataclass(frozen=True)
class Corpus:
    """What is to be dumped."""

    hours: float
    utterances: int
    shards: int


class Cost(NamedTuple):
    """What its targets take."""

    bytes: float  # of the shards and index.arrow
    hours: float  # of one process
    nodes: float


@dataclass(frozen=True)
class Sample:
    """What the targets of some utterances took."""

    hours: float
    paths: int
    nodes: int
    bytes: int  # of their shard
    empty_bytes: int  # of a shard without targets: it does not grow with the audio
    real_time: float  # seconds of audio a second of dumping

    @property
    def bytes_per_hour(self) -> float:
        """Of audio, but for what every shard has."""
        return (self.bytes - self.empty_bytes) / self.hours

    def cost(self, corpus: Corpus) -> Cost:
        """What the whole corpus will take, if it is as the sample is."""
        from kdtrans.contracts import TARGETS_INDEX

        row = sum(field.type.bit_width // 8 for field in TARGETS_INDEX)
        times = corpus.hours / self.hours
        return Cost(
            bytes=corpus.shards * self.empty_bytes + corpus.hours * self.bytes_per_hour + times * self.paths * row,
            hours=corpus.hours / self.real_time,
            nodes=times * self.nodes,
        )


def main(
    config: Path,
    model: list[Path],
    tokenizer: Path,
    cuts: list[Path],
    hours: float = 60000.0,
    sample: int = 64,
    out: Path | None = None,
    lm: Path | None = None,
) -> int:
    """Dump the targets of a random sample and say what those of the whole corpus, and of a larger one, will take.

    Args:
        config: YAML of the targets (TargetsConfig); a set that follows another is measured as if it searched.
        model: the teacher's model.pt; several: their mean.
        tokenizer: sentencepiece model.
        cuts: manifest shards or their folder.
        hours: of audio of the larger corpus, taken to be as this one is.
        sample: utterances that are dumped to measure; the more, the closer.
        out: folder for the shards, whose free disk is checked; it need not exist.
        lm: language model of the kind that search.lm names; needed if it names one.
    """
    import sys

    from rich.console import Console

    if sample < 1 or not 0 < hours < float("inf"):
        raise ValueError(f"sample is {sample}, hours is {hours:g}: give more than 0")
    corpus, lines = _draw(cuts, sample)
    measured = _measure(config, model, tokenizer, lines, lm)
    larger = Corpus(
        hours=hours,
        utterances=round(corpus.utterances * hours / corpus.hours),
        shards=max(round(corpus.shards * hours / corpus.hours), 1),
    )
    free = None if out is None else _free_bytes(out)
    console = Console()
    console.print(
        f"{len(lines)} of {corpus.utterances:,} utterances: {measured.bytes_per_hour / 1e6:.2f} MB/h, "
        f"{measured.real_time:.1f} x real time, {measured.nodes / measured.hours:,.0f} nodes/h",
        highlight=False,
    )
    console.print(_table(measured, {"this corpus": corpus, f"{hours:,.0f} h like it": larger}, free))
    needed = measured.cost(corpus).bytes
    if free is not None and needed > free:
        print(
            f"kdtrans estimate: error: the targets need {_size(needed)}, {out} has {_size(free)} free: free some disk, "
            "name another folder, or lower targets.top_k or raise targets.min_probability",
            file=sys.stderr,
        )
        return 1
    return 0


def _draw(cuts: Iterable[Path], count: int) -> tuple[Corpus, list[str]]:
    """The size of a corpus, and the manifest lines of `count` of its utterances, each as likely as any (reservoir)."""
    import random

    from kdtrans.contracts import manifest_files, parse_cut, read_manifest_lines

    generator = random.Random(SEED)
    files = manifest_files(cuts)
    seconds, seen, drawn = 0.0, 0, list[str]()
    for path in files:
        for number, line in enumerate(read_manifest_lines(path), 1):
            seconds += parse_cut(line, f"{path}:{number}")["duration"]
            seen += 1
            if len(drawn) < count:
                drawn.append(line)
            elif (place := generator.randrange(seen)) < count:
                drawn[place] = line
    if seconds <= 0:
        raise ValueError(f"{', '.join(map(str, cuts))}: no audio is in these manifests")
    return Corpus(seconds / 3600, seen, len(files)), drawn


def _measure(config: Path, model: list[Path], tokenizer: Path, lines: list[str], lm: Path | None) -> Sample:
    """Dump utterances as the workflow will, into a folder that is removed again."""
    import gzip
    import sys
    from contextlib import redirect_stdout
    from tempfile import TemporaryDirectory

    from kdtrans.artifacts import read_json
    from kdtrans.stages import dump
    from kdtrans.targets.shards import read_shard_footer, write_shard

    with TemporaryDirectory() as folder:
        manifest, shard, empty = (Path(folder) / name for name in ("cuts.jsonl.gz", "part.parquet", "empty.parquet"))
        with gzip.open(manifest, "wt", encoding="utf-8") as file:
            file.writelines(lines)
        with redirect_stdout(sys.stderr):
            dump.main(config, model, manifest, tokenizer, shard, lm)
        record = read_json(f"{shard}.run.json")
        write_shard([], read_shard_footer(shard), empty)
        return Sample(
            hours=record["audio_seconds"] / 3600,
            paths=record["paths"],
            nodes=record["nodes"],
            bytes=shard.stat().st_size,
            empty_bytes=empty.stat().st_size,
            real_time=record["audio_per_second"],
        )


def _table(measured: Sample, corpora: dict[str, Corpus], free: int | None) -> Table:
    from rich import box
    from rich.table import Table

    table = Table("", *corpora, box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    costs = [(corpus, measured.cost(corpus)) for corpus in corpora.values()]
    table.add_row("audio", *(f"{corpus.hours:,.1f} h" for corpus, _ in costs))
    table.add_row("utterances", *(f"{corpus.utterances:,}" for corpus, _ in costs))
    table.add_row("shards", *(f"{corpus.shards:,}" for corpus, _ in costs))
    table.add_row("nodes", *(f"{cost.nodes:,.0f}" for _, cost in costs))
    table.add_row("targets on disk", *(_size(cost.bytes) for _, cost in costs))
    table.add_row("one process here", *(f"{cost.hours:,.1f} h" for _, cost in costs))
    if free is not None:
        table.add_row(
            f"free disk {_size(free)}", *("enough" if cost.bytes <= free else "too little" for _, cost in costs)
        )
    return table


def _free_bytes(folder: Path) -> int:
    """Free disk where a folder is, or will be."""
    import shutil

    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _size(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"
