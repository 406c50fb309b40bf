"""Target shards: the teacher's best paths and the distributions at their nodes, in Parquet (contracts.TARGETS).

Shapes: N = T + U path nodes, K stored classes a node.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from kdtrans.contracts import (
    BLANK,
    FRAME_SHIFT_MS,
    TARGETS,
    TARGETS_VERSION,
    TOPOLOGY,
    ContractError,
    TargetsFooter,
    read_footer,
    read_table,
    write_table,
)
from kdtrans.lattice.path import nodes
from kdtrans.losses.distillation import NodeTargets
from kdtrans.targets.filters import repetition

ROW_GROUP = 64  # utterances: small enough to fetch a few, large enough to compress


@dataclass(frozen=True)
class Target:
    """A path of one utterance and the distributions along it, as numpy arrays."""

    utt_id: str
    rank: int
    weight: float  # posterior among the targets of its utterance
    origin: str
    num_frames: int
    path: np.ndarray  # (N,) uint16
    topk_ids: np.ndarray  # (N, K) uint16
    topk_logp: np.ndarray  # (N, K) float16
    path_logp: float
    total_logp: float
    text: str

    @property
    def labels(self) -> np.ndarray:
        """The labels that the path spells."""
        return self.path[self.path != BLANK]

    @property
    def confidence(self) -> float:
        """Posterior of the path among all paths of its labels."""
        return float(np.exp(min(self.path_logp - self.total_logp, 0.0)))

    def node_targets(self, frame_offset: int) -> NodeTargets:
        """As tensors, with t counted on the student's grid: `frame_offset` teacher frames are dropped at the start."""
        path_N = torch.from_numpy(self.path.astype(np.int64))
        t_N, u_N = nodes(path_N)
        return NodeTargets(
            utterance_N=torch.zeros_like(t_N),
            t_N=t_N - frame_offset,
            u_N=u_N,
            ids_NK=torch.from_numpy(self.topk_ids.astype(np.int64)),
            logp_NK=torch.tensor(self.topk_logp),
        )


def write_shard(targets: list[Target], footer: TargetsFooter, path: Path) -> None:
    """Write a whole shard; encodings that DuckDB, pandas and polars all read."""
    rows = {
        "utt_id": [t.utt_id for t in targets],
        "rank": [t.rank for t in targets],
        "weight": [t.weight for t in targets],
        "origin": [t.origin for t in targets],
        "num_frames": [t.num_frames for t in targets],
        "path": [t.path for t in targets],
        "topk_ids": [t.topk_ids.ravel() for t in targets],
        "topk_logp": [t.topk_logp.ravel() for t in targets],
        "path_logp": [t.path_logp for t in targets],
        "total_logp": [t.total_logp for t in targets],
        "text": [t.text for t in targets],
        "confidence": [t.confidence for t in targets],
        "frames_per_label": [t.num_frames / max(len(t.labels), 1) for t in targets],
        "repetition": [repetition(t.labels) for t in targets],
    }
    metadata = {key: "" if value is None else str(value) for key, value in asdict(footer).items()}
    write_table(
        pa.table(rows, schema=TARGETS),
        path,
        metadata,
        row_group_size=ROW_GROUP,
        # Ids repeat: a dictionary saves a tenth of the shard. Byte-stream-split log-probs would save another tenth, but
        # DuckDB does not read half floats in that encoding.
        use_dictionary=["origin", "path.list.element", "topk_ids.list.element"],
    )


def read_shard_footer(path: Path) -> TargetsFooter:
    """A shard's provenance.

    Raises:
        ContractError: when the footer lacks an entry or names another schema version, topology, blank or frame shift.
    """
    found = read_footer(path)
    try:
        footer = TargetsFooter(**{f.name: _parse(found[f.name], str(f.type)) for f in fields(TargetsFooter)})
    except (KeyError, ValueError) as error:
        raise ContractError(f"{path}: the footer is not that of a target shard ({error})") from None
    expected = {
        "schema_version": TARGETS_VERSION,
        "blank": BLANK,
        "topology": TOPOLOGY,
        "frame_shift_ms": FRAME_SHIFT_MS,
    }
    for key, value in expected.items():
        if getattr(footer, key) != value:
            raise ContractError(
                f"{path}: {key} is {getattr(footer, key)}, this version reads {value}: dump the targets again"
            )
    return footer


def read_shard(path: Path) -> tuple[TargetsFooter, pa.Table]:
    """A shard's provenance and rows, both checked; raises ContractError naming the file."""
    footer = read_shard_footer(path)
    return footer, read_table(path, TARGETS)


class TargetStore:
    """The targets of every utterance in a set of shards.

    Raises:
        ContractError: when a shard comes from another teacher, tokenizer or vocabulary than expected, or was made in
            another way than the first one, naming both.
    """

    def __init__(self, paths: list[Path], teacher_sha256: str, tokenizer_sha256: str, vocab_size: int) -> None:
        self._tables: list[pa.Table] = []
        self._rows: dict[str, list[tuple[int, int]]] = {}  # shard and row of each rank
        expected = {"teacher_sha256": teacher_sha256, "tokenizer_sha256": tokenizer_sha256, "vocab_size": vocab_size}
        for path in paths:
            footer, table = read_shard(path)
            if not self._tables:
                self.top_k, self.frame_offset = footer.top_k, footer.frame_offset
                expected |= {key: getattr(footer, key) for key in ("top_k", "frame_offset", "lm_sha256", "lm_weight")}
            for key, value in expected.items():
                if getattr(footer, key) != value:
                    raise ContractError(
                        f"{path}: {key} is {getattr(footer, key)}, expected {value}: dump this shard again"
                    )
            self._add(table, path)

    def __contains__(self, utt_id: str) -> bool:
        return utt_id in self._rows

    def __getitem__(self, utt_id: str) -> list[Target]:
        """An utterance's targets, best first."""
        return [self.target(utt_id, rank) for rank in range(len(self._rows[utt_id]))]

    def target(self, utt_id: str, rank: int) -> Target:
        """One of an utterance's targets."""
        shard, row = self._rows[utt_id][rank]
        return row_to_target(self._tables[shard], row, self.top_k)

    def _add(self, table: pa.Table, path: Path) -> None:
        here = len(self._tables)
        for row, (utt_id, rank) in enumerate(zip(table["utt_id"].to_pylist(), table["rank"].to_pylist(), strict=True)):
            rows = self._rows.setdefault(utt_id, [])
            if rows and rows[0][0] != here:
                raise ContractError(f"{path}: utterance {utt_id} is in an earlier shard too")
            if rank != len(rows):
                raise ContractError(
                    f"{path}: utterance {utt_id} has rank {rank} where {len(rows)} should follow: dump this shard again"
                )
            rows.append((here, row))
        self._tables.append(table)


def row_to_target(table: pa.Table, row: int, top_k: int) -> Target:
    """One row of a shard; raises ContractError when its lists disagree in length."""

    def values(column: str) -> np.ndarray:
        return np.asarray(table[column][row].values)

    utt_id, path = table["utt_id"][row].as_py(), values("path")
    ids, logp = values("topk_ids"), values("topk_logp")
    if not len(ids) == len(logp) == len(path) * top_k:
        raise ContractError(
            f"utterance {utt_id}: {len(ids)} ids and {len(logp)} log-probs for {len(path)} nodes x {top_k}"
        )
    return Target(
        utt_id=utt_id,
        rank=table["rank"][row].as_py(),
        weight=table["weight"][row].as_py(),
        origin=table["origin"][row].as_py(),
        num_frames=table["num_frames"][row].as_py(),
        path=path,
        topk_ids=ids.reshape(-1, top_k),
        topk_logp=logp.reshape(-1, top_k),
        path_logp=table["path_logp"][row].as_py(),
        total_logp=table["total_logp"][row].as_py(),
        text=table["text"][row].as_py(),
    )


def _parse(text: str, annotation: str) -> Any:
    if text == "" and "None" in annotation:
        return None
    return {"int": int, "float": float}.get(annotation, str)(text)
