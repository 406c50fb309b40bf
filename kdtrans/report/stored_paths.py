"""The rows of a target shard as arrays, read a row group at a time; targets.shards without torch, for reading only.

Shapes: N = T + U path nodes, K stored classes a node.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdtrans.contracts import BLANK, FRAME_SHIFT_MS, TARGETS, TARGETS_READ, TARGETS_VERSION, ContractError, read_footer


@dataclass(frozen=True)
class StoredPath:
    """A teacher's path of one utterance and the distributions at its nodes."""

    utt_id: str
    rank: int  # 0 = best
    weight: float  # posterior among the utterance's paths
    origin: str
    text: str
    confidence: float  # posterior of the path among those of its labels
    num_frames: int
    shift_s: float  # seconds a frame
    path_N: np.ndarray  # tokens with blanks
    ids_NK: np.ndarray  # stored classes, most probable first
    logp_NK: np.ndarray  # float64, nats; -inf: left out, in the tail

    @cached_property
    def frames(self) -> np.ndarray:
        """Frame of each node (N,): the blanks before it."""
        return np.cumsum(self.path_N == BLANK) - (self.path_N == BLANK)

    @cached_property
    def tails(self) -> np.ndarray:
        """Probability (N,) that the stored classes leave to all others."""
        return tail_mass(self.logp_NK)

    @cached_property
    def entropies(self) -> np.ndarray:
        """Entropy (N,) of the stored classes and the tail, nats."""
        return entropy(self.logp_NK)

    @cached_property
    def own_p(self) -> np.ndarray:
        """Probability (N,) of the path's own token; nan where it is not stored."""
        own_NK = (self.ids_NK == self.path_N[:, None]) & np.isfinite(self.logp_NK)
        return np.where(own_NK.any(1), np.exp(self.logp_NK).max(1, where=own_NK, initial=0.0), np.nan)

    @property
    def seconds(self) -> float:
        return self.num_frames * self.shift_s

    @property
    def labels(self) -> int:
        """Number of labels that the path spells."""
        return int((self.path_N != BLANK).sum())


def tail_mass(logp_NK: np.ndarray) -> np.ndarray:
    """What the stored classes leave to all others (N,); never below 0, whatever fp16 rounds."""
    return np.clip(1.0 - np.exp(logp_NK).sum(1), 0.0, 1.0)


def entropy(logp_NK: np.ndarray) -> np.ndarray:
    """Entropy (N,) of the stored classes and one class for the tail, nats: a lower bound of the whole's."""
    tail_N = tail_mass(logp_NK)
    p_NC = np.column_stack([np.exp(logp_NK), tail_N])
    return -(p_NC * np.log(p_NC, out=np.zeros_like(p_NC), where=p_NC > 0)).sum(1)


@dataclass(frozen=True)
class ShardReader:
    """A target shard that is known to be readable: its footer, and its rows on demand.

    Args:
        path: the file.
        footer: provenance, text by key.
        top_k: classes a node, K.
        shift_s: seconds a frame.
    """

    path: Path
    footer: dict[str, str]
    top_k: int
    shift_s: float

    @classmethod
    def open(cls, path: Path) -> ShardReader:
        """Read the footer.

        Raises:
            ContractError: naming the file, when it is not whole, not a target shard, or of a version not read here.
        """
        footer = read_footer(path)
        version = footer.get("schema_version", str(TARGETS_VERSION))
        if version not in map(str, TARGETS_READ):
            reads = " and ".join(map(str, TARGETS_READ))
            raise ContractError(
                f"{path}: schema_version is {version}, this version reads {reads}: "
                "delete the shard and run snakemake, or kdtrans dump, to make it anew"
            )
        schema = pq.read_schema(path)
        if not schema.equals(TARGETS, check_metadata=False):
            raise ContractError(f"{path}: columns are {schema.names}, expected {TARGETS.names}: dump the targets again")
        try:
            top_k, shift_ms = int(footer["top_k"]), int(footer.get("frame_shift_ms", FRAME_SHIFT_MS))
        except (KeyError, ValueError) as error:
            raise ContractError(
                f"{path}: the footer's top_k or frame_shift_ms is missing or no number ({error})"
            ) from None
        return cls(path, footer, top_k, shift_ms / 1000)

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The row groups one after another, so that memory does not grow with the shard; None: all columns."""
        try:
            with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise ContractError(f"{self.path} is damaged ({error}): delete it and dump it again") from None

    def paths(self, utt_id: str | None = None) -> Iterator[StoredPath]:
        """The rows, in order; with `utt_id`, those of this utterance only."""
        for table in self.tables():
            ids = table["utt_id"].to_pylist()
            yield from (self._path(table, row) for row in range(len(ids)) if utt_id is None or ids[row] == utt_id)

    def logp(self, table: pa.Table) -> np.ndarray:
        """The log-probabilities (N, K), float64, at all nodes of a row group."""
        logp, nodes = _flat(table, "topk_logp"), len(_flat(table, "path"))
        if len(logp) != nodes * self.top_k:
            raise ContractError(f"{self.path}: {len(logp)} log-probs for {nodes} nodes x {self.top_k}")
        return logp.astype(np.float64).reshape(-1, self.top_k)

    def _path(self, table: pa.Table, row: int) -> StoredPath:
        path_N, ids, logp = (np.asarray(table[name][row].values) for name in ("path", "topk_ids", "topk_logp"))
        utt_id = table["utt_id"][row].as_py()
        if not len(ids) == len(logp) == len(path_N) * self.top_k:
            raise ContractError(
                f"{self.path}: utterance {utt_id} has {len(ids)} ids and {len(logp)} log-probs for {len(path_N)} nodes "
                f"x {self.top_k}: delete the shard and dump it again"
            )
        return StoredPath(
            utt_id=utt_id,
            rank=table["rank"][row].as_py(),
            weight=_number(table, "weight", row),
            origin=table["origin"][row].as_py(),
            confidence=_number(table, "confidence", row),
            num_frames=table["num_frames"][row].as_py(),
            text=table["text"][row].as_py() or "",
            shift_s=self.shift_s,
            path_N=path_N.astype(np.int64),
            ids_NK=ids.reshape(-1, self.top_k),
            logp_NK=logp.astype(np.float64).reshape(-1, self.top_k),
        )


def _flat(table: pa.Table, column: str) -> np.ndarray:
    return table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _number(table: pa.Table, column: str, row: int) -> float:
    value = table[column][row].as_py()
    return float("nan") if value is None else value
