"""The index of a set of target shards: where each target lies, and what a sampler asks before it reads one.  No torch.

`index.json` describes the set and lists its shards; `index.arrow` beside it (contracts.TARGETS_INDEX) has a row a
target, sorted by key and rank in one record batch, so that a lookup is a binary search in a memory-mapped column.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kdtrans.artifacts import sha256_file, write_json, write_whole
from kdtrans.contracts import TARGETS, TARGETS_INDEX, ContractError, TargetsFooter, whole_parquet

# What all shards of a set have in common; index.json repeats it.
PROVENANCE = (
    *("schema_version", "teacher_sha256", "tokenizer_sha256", "vocab_size", "top_k", "min_probability", "logp_step"),
    *("frame_offset", "lm_sha256", "lm_weight"),
)


@dataclass(frozen=True)
class IndexedShard:
    """What the index says of a shard."""

    path: Path
    utterances: int
    nodes: int
    bytes: int
    hours: float
    tail_mass: float  # mean over nodes
    confidence: float  # mean over the best targets of its utterances
    origin: dict[str, int]  # utterances by what found their labels
    sha256: str
    footer_sha256: str
    rows: pa.Table  # contracts.TARGETS_INDEX in the shard's order; `shard` is set when the index is written


def utterance_key(utt_id: str) -> int:
    """The key of an utterance in index.arrow: the first 8 bytes, little-endian, of its id's BLAKE2b hash."""
    return int.from_bytes(hashlib.blake2b(utt_id.encode()).digest()[:8], "little")


def footer_sha256(file: BinaryIO) -> str:
    """Hash of a Parquet file's last (footer length + 8) bytes: says cheaply whether it is the file that was indexed.

    Args:
        file: open for reading and seekable; pyarrow's and fsspec's files do as well.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 8, 0))
    length = int.from_bytes(file.read(4), "little") + 8
    file.seek(max(size - length, 0))
    return hashlib.sha256(file.read(min(length, size))).hexdigest()


# ------------------------------------------------------------------------------------------------------------- writing
def row_groups(path: Path) -> Iterator[pa.Table]:
    """The rows of a shard, a row group at a time, page checksums checked.

    Raises:
        ContractError: naming the shard, when it is not whole or its columns are not those of a target shard.
    """
    with whole_parquet(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        if not file.schema_arrow.equals(TARGETS, check_metadata=False):
            raise ContractError(f"{path}: columns are {file.schema_arrow.names}, expected {TARGETS.names}")
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def index_shard(
    path: Path, footer: TargetsFooter, groups: Iterable[pa.Table], sha256: str | None = None
) -> IndexedShard:
    """Describe a shard from its row groups, which pass by one at a time.

    Args:
        path: the shard.
        footer: its provenance.
        groups: its row groups, in order, as `row_groups` gives them.
        sha256: hash of the file, if it is known; None: it is read for it.
    """
    rows, origin = [], Counter[str]()
    nodes, frames, utterances, tail_mass, confidence = 0, 0, 0, 0.0, 0.0
    for number, table in enumerate(groups):
        lengths = _numpy(pc.list_value_length(table["path"])).astype(np.int64)
        is_best = _numpy(table["rank"]) == 0
        logp_NK = _numpy(table["topk_logp"].combine_chunks().flatten()).astype(np.float32).reshape(-1, footer.top_k)
        nodes += int(lengths.sum())
        utterances += int(is_best.sum())
        frames += int(_numpy(table["num_frames"])[is_best].sum())
        tail_mass += float(np.clip(1 - np.exp(logp_NK).sum(1), 0, 1).sum())
        confidence += float(_numpy(table["confidence"])[is_best].sum(dtype=np.float64))
        origin.update(table["origin"].filter(pa.array(is_best)).to_pylist())
        rows.append(_index_rows(table, number, lengths))
    with open(path, "rb") as file:
        footer_hash = footer_sha256(file)
    return IndexedShard(
        path=path,
        utterances=utterances,
        nodes=nodes,
        bytes=path.stat().st_size,
        hours=frames * footer.frame_shift_ms / 3.6e6,
        tail_mass=tail_mass / max(nodes, 1),
        confidence=confidence / max(utterances, 1),
        origin=dict(origin),
        sha256=sha256 or sha256_file(path),
        footer_sha256=footer_hash,
        rows=pa.concat_tables([TARGETS_INDEX.empty_table(), *rows]).combine_chunks(),
    )


def write_index(out: Path, footer: TargetsFooter, shards: list[IndexedShard]) -> None:
    """Write index.arrow and then index.json.

    Memory: about 100 bytes a target.

    Args:
        out: index.json; index.arrow gets the same name with that suffix. An old one is removed first, so that it never
            stands beside another's index.arrow.
        footer: of any of the shards, which agree in PROVENANCE.
        shards: in the order that the index counts them in.
    """
    out.unlink(missing_ok=True)
    rows = sorted_rows(shards)
    arrow = out.with_suffix(".arrow")
    with write_whole(arrow) as temporary, pa.ipc.new_file(str(temporary), TARGETS_INDEX) as writer:
        writer.write_batch(rows)
    write_json(out, _describe(out, footer, shards) | {"index_sha256": sha256_file(arrow)})


def sorted_rows(shards: list[IndexedShard]) -> pa.RecordBatch:
    """The rows of all shards (contracts.TARGETS_INDEX), by key and then rank."""
    position = TARGETS_INDEX.get_field_index("shard")
    tables = [TARGETS_INDEX.empty_table()]
    for number, shard in enumerate(shards):
        numbers = pa.array(np.full(len(shard.rows), number, np.uint32))
        tables.append(shard.rows.set_column(position, TARGETS_INDEX.field("shard"), numbers))
    rows = pa.concat_tables(tables)
    order = pa.array(np.lexsort((_numpy(rows["rank"]), _numpy(rows["key"]))))
    columns = [rows[name].combine_chunks().take(order) for name in TARGETS_INDEX.names]
    return pa.RecordBatch.from_arrays(columns, schema=TARGETS_INDEX)


def _index_rows(table: pa.Table, group: int, lengths: np.ndarray) -> pa.Table:
    """The index's rows of one row group, whose paths have `lengths` nodes."""
    count = len(table)
    columns = {
        "key": np.array([utterance_key(utt_id) for utt_id in table["utt_id"].to_pylist()], np.uint64),
        "rank": table["rank"],
        "shard": np.zeros(count, np.uint32),
        "row_group": np.full(count, group, np.uint16),
        "row": np.arange(count, dtype=np.uint16),
        "weight": table["weight"],
        "num_frames": table["num_frames"],
        "num_labels": (lengths - _numpy(table["num_frames"])).astype(np.uint16),
        "confidence": table["confidence"],
        "repetition": table["repetition"],
    }
    return pa.table(columns, schema=TARGETS_INDEX)


def _describe(out: Path, footer: TargetsFooter, shards: list[IndexedShard]) -> dict[str, Any]:
    """The content of index.json: provenance, totals and means, and the shards."""
    nodes, utterances = sum(s.nodes for s in shards), sum(s.utterances for s in shards)
    origin = sum((Counter(s.origin) for s in shards), Counter[str]())
    return {key: getattr(footer, key) for key in PROVENANCE} | {
        "utterances": utterances,
        "paths": sum(len(s.rows) for s in shards),
        "hours": round(sum(s.hours for s in shards), 4),
        "nodes": nodes,
        "bytes": sum(s.bytes for s in shards),
        "mean_tail_mass": sum(s.tail_mass * s.nodes for s in shards) / max(nodes, 1),
        "mean_confidence": sum(s.confidence * s.utterances for s in shards) / max(utterances, 1),
        "origin": dict(origin),
        "shards": [
            {
                "path": os.path.relpath(s.path, out.parent),
                "utterances": s.utterances,
                "nodes": s.nodes,
                "bytes": s.bytes,
                "hours": round(s.hours, 4),
                "sha256": s.sha256,
                "footer_sha256": s.footer_sha256,
            }
            for s in shards
        ],
    }


# ------------------------------------------------------------------------------------------------------------- reading
def read_rows(source: pa.NativeFile | pa.Buffer, name: str) -> pa.RecordBatch:
    """The rows of index.arrow; nothing is copied from a memory map.

    Args:
        source: pa.memory_map(path), or the bytes of a remote file.
        name: the file's name, for messages.

    Raises:
        ContractError: when it is not a whole index.
    """
    try:
        reader = pa.ipc.open_file(source)
        if not reader.schema.equals(TARGETS_INDEX) or reader.num_record_batches != 1:
            raise ContractError(f"{name}: columns are {reader.schema.names}, expected {TARGETS_INDEX.names}")
        return reader.get_batch(0)
    except (pa.ArrowException, OSError) as error:
        raise ContractError(f"{name} is not a whole index ({error}): run `kdtrans verify` again") from None


def rows_with_key(key_R: np.ndarray, key: int) -> range:
    """The rows of a key in the sorted column `key`: the targets of one utterance, best first."""
    wanted = np.uint64(key)  # a plain int above 2**63 would turn the column into floats
    return range(int(np.searchsorted(key_R, wanted)), int(np.searchsorted(key_R, wanted, side="right")))


def _numpy(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
