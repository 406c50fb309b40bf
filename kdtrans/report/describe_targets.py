"""What target shards hold: one shard, a folder of them, and one utterance's path as text over time.

Shapes: N = T + U path nodes, K stored classes a node.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdtrans.artifacts import read_json
from kdtrans.contracts import BLANK, ContractError
from kdtrans.report.describe import FIRST_ROWS, Description
from kdtrans.report.stored_paths import ShardReader, StoredPath, entropy, tail_mass

CONFIDENCE_EDGES = (0.0, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 0.6, 0.9, 1.0)
HIGH_TAIL = 0.01
FIRST_SHARDS = 20
ALTERNATIVES = 3
BAR = 32  # characters
EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass
class Totals:
    """Sums over target shards, gathered a row group at a time; those of two shards add up."""

    shards: int = 0
    bytes: int = 0
    utterances: int = 0
    paths: int = 0
    nodes: int = 0
    labels: int = 0  # of the best paths, as seconds
    seconds: float = 0.0
    tail: float = 0.0  # summed over nodes
    entropy: float = 0.0  # summed over nodes, nats
    stored: int = 0  # classes that are not left out
    high_tails: int = 0  # nodes with more than HIGH_TAIL
    confidence: float = 0.0  # summed over the best paths
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(len(CONFIDENCE_EDGES) - 1, dtype=np.int64))
    origins: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Totals) -> Totals:
        return Totals(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})

    @classmethod
    def of_shard(cls, shard: ShardReader) -> Totals:
        """Read a shard through."""
        return sum((cls._of_table(shard, table) for table in shard.tables()), cls(1, shard.path.stat().st_size))

    @classmethod
    def _of_table(cls, shard: ShardReader, table: pa.Table) -> Totals:
        best = table.filter(pc.equal(table["rank"], 0))
        confidence = np.clip(best["confidence"].to_numpy(zero_copy_only=False).astype(np.float64), 0.0, 1.0)
        frames = int(best["num_frames"].to_numpy().sum(dtype=np.int64))
        logp_NK = shard.logp(table)
        tail_N = tail_mass(logp_NK)
        return cls(
            utterances=len(best),
            paths=len(table),
            nodes=len(logp_NK),
            labels=int(pc.list_value_length(best["path"]).to_numpy().sum(dtype=np.int64)) - frames,
            seconds=frames * shard.shift_s,
            tail=float(tail_N.sum()),
            entropy=float(entropy(logp_NK).sum()),
            stored=int(np.isfinite(logp_NK).sum()),
            high_tails=int((tail_N > HIGH_TAIL).sum()),
            confidence=float(np.nansum(confidence)),
            histogram=np.histogram(confidence[np.isfinite(confidence)], CONFIDENCE_EDGES)[0],
            origins=Counter(best["origin"].to_pylist()),
        )

    def facts(self) -> dict[str, str]:
        """What they say, line by line."""
        nodes, utterances = max(self.nodes, 1), max(self.utterances, 1)
        facts = {
            "utterances": f"{self.utterances:,} ({self.paths:,} paths)",
            "hours": f"{self.seconds / 3600:.3f}",
            "nodes": f"{self.nodes:,}, of {self.stored / nodes:.2f} stored classes on average",
            "size": f"{self.bytes / 1e6:.2f} MB{self._per_hour()}",
            "label rate": f"{self.labels / self.seconds:.2f} a second" if self.seconds else "none",
            "origin": ", ".join(f"{count:,} {name}" for name, count in sorted(self.origins.items())) or "none",
            "tail mass": f"mean {self.tail / nodes:.5f}, above {HIGH_TAIL:g} at {self.high_tails / nodes:.2%} of nodes",
            "entropy": f"mean {self.entropy / nodes:.4f} nats a node",
            "confidence": f"mean {self.confidence / utterances:.4f}, utterances by confidence:",
        }
        return facts | {"": "\n".join(bars(self.histogram, CONFIDENCE_EDGES))}

    def line(self) -> str:
        """They in one line."""
        hours = f"{self.seconds / 3600:.3f} hours"
        return f"{self.utterances:,} utterances, {hours}, {self.nodes:,} nodes, {self.bytes / 1e6:.2f} MB"

    def _per_hour(self) -> str:
        return f", {self.bytes / 1e6 / (self.seconds / 3600):.2f} MB for an hour of audio" if self.seconds else ""


def describe_targets(path: Path, pieces: Sequence[str] | None = None) -> Description:
    """Provenance, size and quality of a target shard, and its first paths.

    Args:
        path: the shard.
        pieces: the piece of each token id, to show paths as text; ids without it.
    """
    shard = ShardReader.open(path)
    totals = Totals.of_shard(shard)
    best = islice((row for row in shard.paths() if row.rank == 0), FIRST_ROWS)
    rows = [[row.utt_id, row.origin, f"{row.confidence:.3g}", row.text, emissions(row, pieces)] for row in best]
    header = ["utt_id", "origin", "confidence", "text", "path: seconds:token"]
    facts = totals.facts() | shard.footer
    return Description("targets", totals.line(), facts, header, rows, "first best paths")


def describe_target_folder(folder: Path, shards: Sequence[Path]) -> Description:
    """All shards of a folder as a whole, a line for each of the first ones, and what its index.json says of them.

    Args:
        folder: where index.json is looked for.
        shards: the shards; they are read one after another.
    """
    totals = Totals()
    rows: list[list[str]] = []
    broken: list[str] = []
    footers: dict[str, set[str]] = {}
    for path in shards:
        try:
            shard = ShardReader.open(path)
            found = Totals.of_shard(shard)
        except ContractError as error:
            broken.append(str(error))
            continue
        totals += found
        for key, value in shard.footer.items():
            footers.setdefault(key, set()).add(value)
        if len(rows) < FIRST_SHARDS:
            amounts = f"{found.utterances:,}", f"{found.seconds / 3600:.3f}", f"{found.nodes:,}"
            means = f"{found.tail / max(found.nodes, 1):.5f}", f"{found.confidence / max(found.utterances, 1):.4f}"
            rows.append([path.stem, *amounts, f"{found.bytes / 1e6:.2f}", *means])
    facts = {"shards": f"{totals.shards:,}" + (f", and {len(broken):,} broken" if broken else "")}
    if broken:
        facts["broken"] = "\n".join(broken[:FIRST_SHARDS])
    facts |= {"index.json": index_verdict(folder, shards), **totals.facts()}
    facts |= {key: _one_or_count(values) for key, values in footers.items()}
    title = "shards" if len(rows) == totals.shards else f"the first {len(rows)} of {totals.shards:,} shards"
    header = ["shard", "utterances", "hours", "nodes", "MB", "tail mass", "confidence"]
    return Description("targets", f"{totals.shards:,} shards, {totals.line()}", facts, header, rows, title)


def index_verdict(folder: Path, shards: Sequence[Path]) -> str:
    """Whether the folder's index.json, which `kdtrans verify` writes, knows these shards and their sizes."""
    index = folder / "index.json"
    if not index.exists():
        return "none: these shards have not been verified"
    listed = {Path(entry["path"]).name: int(entry["bytes"]) for entry in read_json(index).get("shards", [])}
    here = {path.name: path.stat().st_size for path in shards}
    problems = {
        "not in it": [name for name in here if name not in listed],
        "missing here": [name for name in listed if name not in here],
        "of another size": [name for name in here if name in listed and here[name] != listed[name]],
    }
    told = [f"{len(names):,} {what} ({', '.join(names[:3])})" for what, names in problems.items() if names]
    if told:
        return f"does not fit these shards: {'; '.join(told)}: run kdtrans verify"
    return f"verified, {len(listed):,} shards of the same sizes as here"


def describe_path(row: StoredPath, pieces: Sequence[str] | None = None) -> Description:
    """One path over time: what is emitted when, how probable, and what the teacher would have said else.

    Runs of blanks are one line. The node of the highest entropy is a line of its own, marked with *.

    Args:
        row: the path.
        pieces: the piece of each token id; ids without it.
    """
    surest, names = int(row.entropies.argmax()), _names(pieces)
    rows = []
    for first, last in _runs(row.path_N, surest):
        start, end = row.frames[first] * row.shift_s, (row.frames[last] + 1) * row.shift_s
        blank = row.path_N[first] == BLANK
        rows.append(
            [
                "*" if first == surest else "",
                f"{start:.2f}-{end:.2f}" if blank else f"{start:.2f}",
                names(row.path_N[first]),
                _probabilities(row.own_p[first : last + 1]),
                _alternatives(row, first, names) if first == last else "",
                f"{row.entropies[first : last + 1].max():.3f}",
            ]
        )
    facts = {
        "utterance": row.utt_id,
        "rank": f"{row.rank}, weight {row.weight:.4f}, {row.origin}",
        "text": row.text,
        "seconds": f"{row.seconds:.2f}, {row.labels} labels, {row.labels / max(row.seconds, 1e-9):.2f} a second",
        "confidence": f"{row.confidence:.3g}",
        "tail mass": f"mean {row.tails.mean():.5f}, highest {row.tails.max():.5f}",
        "entropy": f"mean {row.entropies.mean():.4f} nats a node, highest {row.entropies[surest]:.3f} (*)",
    }
    header = ["", "seconds", "emits", "p", "alternatives", "entropy"]
    return Description("target", row.text, facts, header, rows, f"path of rank {row.rank}")


def find_paths(shards: Iterable[ShardReader], utt_id: str) -> tuple[ShardReader, list[StoredPath]]:
    """The shard that has an utterance, and all its paths, best first.

    Raises:
        ValueError: naming the three ids most like the one asked for.
    """
    tried = []
    for shard in shards:
        if any(utt_id in table["utt_id"].to_pylist() for table in shard.tables(["utt_id"])):
            return shard, sorted(shard.paths(utt_id), key=lambda row: row.rank)
        tried.append(shard)
    ids = dict.fromkeys(chain.from_iterable(_ids(shard) for shard in tried))
    near = ", ".join(f"'{found}'" for found in heapq.nlargest(3, ids, key=lambda found: likeness(found, utt_id)))
    where = str(tried[0].path) if len(tried) == 1 else f"any of {len(tried):,} shards"
    raise ValueError(f"utterance '{utt_id}' is not in {where}; the nearest ids are {near or 'none'}")


def likeness(one: str, other: str) -> float:
    """How alike two ids are, 0 to 1: Dice's coefficient of their pairs of characters, cheap enough for millions."""
    one_pairs, other_pairs = set(pairwise(f" {one} ")), set(pairwise(f" {other} "))
    return 2 * len(one_pairs & other_pairs) / (len(one_pairs) + len(other_pairs))


def bars(counts: Sequence[int] | np.ndarray, edges: Sequence[float]) -> list[str]:
    """A histogram as lines of block characters, the longest BAR of them wide."""
    most = max(int(max(counts)), 1)
    lines = []
    for count, (low, high) in zip(map(int, counts), pairwise(edges), strict=True):
        eighths = -(-count * BAR * 8 // most)  # rounded up: one utterance is seen
        bar = EIGHTHS[-1] * (eighths // 8) + EIGHTHS[eighths % 8].strip()
        lines.append(f"{low:>6g} - {high:<6g} {bar} {count:,}")
    return lines


def emissions(row: StoredPath, pieces: Sequence[str] | None = None, most: int = 8) -> str:
    """A path over time: the second at which each token is emitted, and the token."""
    emitted, names = np.flatnonzero(row.path_N != BLANK), _names(pieces)
    parts = [f"{row.frames[node] * row.shift_s:.2f}:{names(row.path_N[node])}" for node in emitted[:most]]
    return " ".join(parts) + (f" ... ({len(emitted)} tokens)" if len(emitted) > most else "")


def _ids(shard: ShardReader) -> Iterator[str]:
    return chain.from_iterable(table["utt_id"].to_pylist() for table in shard.tables(["utt_id"]))


def _names(pieces: Sequence[str] | None) -> Any:
    """Token id -> what to call it."""
    return lambda token: "blank" if token == BLANK else pieces[token] if pieces else str(token)


def _runs(path_N: np.ndarray, alone: int) -> Iterator[tuple[int, int]]:
    """First and last node of each run of blanks, and each label and the node `alone` by itself."""
    joins = np.array([False, *((path_N[1:] == BLANK) & (path_N[:-1] == BLANK))])
    joins[[node for node in (alone, alone + 1) if node < len(path_N)]] = False
    starts = np.flatnonzero(~joins)
    return zip(starts.tolist(), [*(starts[1:] - 1).tolist(), len(path_N) - 1], strict=True)


def _probabilities(p_N: np.ndarray) -> str:
    """One probability or the range of several; where the path's token is among the classes left out, so."""
    if np.isnan(p_N).all():
        return "left out"
    low, high = f"{np.nanmin(p_N):.2f}", f"{np.nanmax(p_N):.2f}"
    return low if low == high else f"{low}-{high}"


def _alternatives(row: StoredPath, node: int, names: Any) -> str:
    stored = zip(row.ids_NK[node], np.exp(row.logp_NK[node]), strict=True)
    others = [f"{names(token)} {p:.2g}" for token, p in stored if p > 0 and token != row.path_N[node]]
    return ", ".join(others[:ALTERNATIVES])


def _one_or_count(values: set[str]) -> str:
    return next(iter(values)) if len(values) == 1 else f"{len(values)} different values, {min(values)} to {max(values)}"
