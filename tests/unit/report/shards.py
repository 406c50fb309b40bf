"""Small target shards for the tests of what is shown of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kdtrans import contracts

FOOTER = {"schema_version": "3", "vocab_size": "5", "teacher_sha256": "ab" * 32, "created": "2026-11-22T17:51:04Z"}
PATH = [0, 2, 0, 0, 3, 4, 0]  # 4 frames, 3 labels
HOSTILE = '<script>failures.push("script ran")</script>'


def target(utt_id: str, text: str = "one two", confidence: float = 0.5, **values: Any) -> dict[str, Any]:
    """A row whose last node has only one of k = 2 classes; PATH where no other is given."""
    path = values.pop("path", PATH)
    logp = np.log(np.tile([0.75, 0.2], (len(path), 1)))
    ids = np.stack([np.array(path), np.where(np.array(path) == 0, 2, 0)], 1)
    logp[-1, 1], ids[-1, 1] = -np.inf, 0
    labels = sum(token != 0 for token in path)
    row = {
        "utt_id": utt_id,
        "rank": 0,
        "weight": 1.0,
        "origin": "viterbi",
        "num_frames": len(path) - labels,
        "path": path,
        "topk_ids": ids.ravel(),
        "topk_logp": logp.ravel().astype(np.float16),
        "path_logp": -1.0,
        "total_logp": -0.5,
        "text": text,
        "confidence": confidence,
        "frames_per_label": 1.0,
        "repetition": 0.0,
    }
    return row | values


def write(path: Path, rows: list[dict[str, Any]], footer: dict[str, str] | None = None, group: int = 2) -> Path:
    """Write a shard with k = 2 in small row groups."""
    table = pa.Table.from_pylist(rows, schema=contracts.TARGETS)
    metadata = {**FOOTER, "top_k": "2", **(footer or {})}
    contracts.write_table(table, path, metadata, row_group_size=group, write_page_checksum=True)
    return path
