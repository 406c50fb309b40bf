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
    TARGETS_READ,
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

LISTS = ("path", "topk_ids", "topk_logp")
# How the rows lie in the file: readable by DuckDB, pandas and polars, and chosen in docs/target-size.md.
LAYOUT: dict[str, Any] = {
    "row_group_size": 32,  # utterances: few enough to fetch one, enough to compress
    "compression_level": 6,
    # Ids repeat: a dictionary saves a third of them. Log-probs gain nothing by one, and are read faster without.
    # Byte-stream-split saves as little, and DuckDB does not read half floats in it.
    "use_dictionary": ["origin", "path.list.element", "topk_ids.list.element"],
    "write_statistics": [name for name in TARGETS.names if name not in LISTS],  # a list's minimum serves no query
}


@dataclass(frozen=True)
class Target:
    """A path of one utterance and the distributions along it, as numpy arrays."""

    utt_id: str
    rank: int
    weight: float  # posterior among the targets of its utterance
    origin: str
    num_frames: int
    path: np.ndarray  # (N,) uint16
    topk_ids: np.ndarray  # (N, K) uint16, most probable first; 0 where a class is left out
    topk_logp: np.ndarray  # (N, K) float16; -inf where a class is left out
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
    """Write a whole shard."""
    metadata = {key: "" if value is None else str(value) for key, value in asdict(footer).items()}
    write_table(shard_table(targets), path, metadata, **LAYOUT)


def shard_table(targets: list[Target]) -> pa.Table:
    """Targets as the rows of a shard (contracts.TARGETS)."""
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
    return pa.table(rows, schema=TARGETS)


def read_shard_footer(path: Path) -> TargetsFooter:
    """A shard's provenance.

    Raises:
        ContractError: when the footer lacks an entry or names another schema version, topology, blank or frame shift.
    """
    found = read_footer(path)
    if found.get("schema_version") == "2":
        found = {"min_probability": "0", "logp_step": "0"} | found
    expected = {
        "schema_version": TARGETS_READ,
        "blank": (BLANK,),
        "topology": (TOPOLOGY,),
        "frame_shift_ms": (FRAME_SHIFT_MS,),
    }
    # Before the rest is parsed: what another version's footer holds is its own affair.
    for key, values in expected.items():
        if key in found and found[key] not in map(str, values):
            raise ContractError(
                f"{path}: {key} is {found[key]}, this version reads {' and '.join(map(str, values))}: "
                "delete the shard and run snakemake, or kdtrans dump, to make it anew"
            )
    try:
        return TargetsFooter(**{f.name: _parse(found[f.name], str(f.type)) for f in fields(TargetsFooter)})
    except (KeyError, ValueError) as error:
        raise ContractError(f"{path}: the footer is not that of a target shard ({error})") from None


def read_shard(path: Path) -> tuple[TargetsFooter, pa.Table]:
    """A shard's provenance and rows, both checked, pages by their checksums; raises ContractError naming the file."""
    footer = read_shard_footer(path)
    return footer, read_table(path, TARGETS)


def row_to_target(table: pa.Table, row: int, top_k: int) -> Target:
    """One row of a shard; raises ContractError when its lists disagree in length."""

    def values(column: str) -> np.ndarray:
        return np.from_dlpack(table[column][row].values)  # to_numpy would import pandas

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
