"""What a setting of the shards costs in bytes and in truth: the study of docs/target-size.md.

Both divergences compare with the teacher's distribution P over all V classes, in nats a node. With S the classes that a
node stores, q their stored probabilities (normalised, as is the tail, where rounding left a sum other than 1):

    kl_taught  sum_{k in S} P_k log P_k / q_k + P_tail log P_tail / q_tail: by how much what the loss shows a student,
               the stored classes and one tail class, differs from the same classes of P
    kl_full    KL(P || q) with q's tail spread evenly over the classes left out: all that was lost, also what the
               tail had inside. Never smaller.

Shapes: N nodes of all targets, V vocabulary, K classes a node.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from kdtrans.contracts import FRAME_SHIFT_MS, write_table
from kdtrans.targets.encoding import encode
from kdtrans.targets.shards import LAYOUT, Target, shard_table

LEAST_TAIL = 1.0e-7  # as in losses.distillation


def encoded(targets: list[Target], top_k: int, min_probability: float, logp_step: float) -> list[Target]:
    """Targets that hold all V classes, as they are stored with a setting."""

    def one(target: Target) -> Target:
        top_ids, top_logp = target.topk_ids[:, :top_k], target.topk_logp[:, :top_k]
        ids, logp = encode(top_ids, top_logp, min_probability, logp_step)
        return replace(target, topk_ids=ids, topk_logp=logp)

    return [one(target) for target in targets]


def bytes_by_column(targets: list[Target], **layout: Any) -> dict[str, int]:
    """Bytes of a shard of these targets, by column, with `footer` for the rest, and in `total`.

    Args:
        targets: its rows.
        layout: what is written otherwise than LAYOUT says.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.parquet"
        write_table(shard_table(targets), path, **(LAYOUT | layout))
        metadata, total = pq.read_metadata(path), path.stat().st_size
    sizes: Counter[str] = Counter()
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            sizes[chunk.path_in_schema.split(".")[0]] += chunk.total_compressed_size
    return {**sizes, "footer": total - sum(sizes.values()), "total": total}


def losses_of(full: list[Target], stored: list[Target]) -> dict[str, float]:
    """What the stored targets lack of the full ones: `tail_mass`, `classes`, `kl_taught`, `kl_full`, means over nodes.

    Args:
        full: targets that hold all V classes, most probable first, nothing left out.
        stored: the same targets with a setting.
    """
    p_NV = np.concatenate([np.exp(target.topk_logp.astype(np.float64)) for target in full])
    p_NV /= p_NV.sum(1, keepdims=True)
    q_NK = np.concatenate([np.exp(target.topk_logp.astype(np.float64)) for target in stored])
    is_stored_NV = np.zeros(p_NV.shape, dtype=bool)
    is_stored_NV[:, : q_NK.shape[1]] = q_NK > 0
    num_left_out_N = (~is_stored_NV).sum(1)
    has_tail_N = num_left_out_N > 0
    q_tail_N = np.where(has_tail_N, np.maximum(1 - q_NK.sum(1), LEAST_TAIL), 0.0)
    norm_N = q_NK.sum(1) + q_tail_N
    q_NV = np.zeros(p_NV.shape)
    q_NV[:, : q_NK.shape[1]] = q_NK
    q_NV = np.where(is_stored_NV, q_NV, (q_tail_N / np.maximum(num_left_out_N, 1))[:, None]) / norm_N[:, None]
    terms_NV = _relative(p_NV, q_NV)
    p_tail_N = np.where(is_stored_NV, 0.0, p_NV).sum(1)
    return {
        "tail_mass": float(q_tail_N.mean()),
        "classes": float(is_stored_NV.sum(1).mean()),
        "kl_taught": float(
            (np.where(is_stored_NV, terms_NV, 0).sum(1) + _relative(p_tail_N, q_tail_N / norm_N)).mean()
        ),
        "kl_full": float(terms_NV.sum(1).mean()),
    }


def settings_of(
    vocab_size: int, top_k: int, min_probability: float, logp_step: float
) -> list[tuple[int, float, float]]:
    """(top_k, min_probability, logp_step) of the study: each varied alone, around the setting in use."""
    counts = [k for k in (1, 4, 8, 16) if k < vocab_size] + [vocab_size]
    tried = [(k, 0.0, 0.0) for k in counts]
    tried += [(k, min_probability, logp_step) for k in counts]
    tried += [(min(top_k, vocab_size), least, logp_step) for least in (0.0, 1e-5, 1e-4, 1e-3, 1e-2)]
    tried += [(min(top_k, vocab_size), min_probability, step) for step in (0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8)]
    return list(dict.fromkeys(tried))


def layouts() -> dict[str, dict[str, Any]]:
    """Ways to lay the same rows out that the study compares, by name: what differs from LAYOUT."""
    with_logp = [*LAYOUT["use_dictionary"], "topk_logp.list.element"]
    without_ids = [name for name in LAYOUT["use_dictionary"] if not name.startswith("topk_ids")]
    split = {"topk_logp.list.element": "BYTE_STREAM_SPLIT"}
    return {
        "as written": {},
        **{f"{size} utterances a row group": {"row_group_size": size} for size in (8, 16, 64, 128)},
        **{f"zstd level {level}": {"compression_level": level} for level in (1, 3, 12, 19)},
        "dictionary of log-probs too": {"use_dictionary": with_logp},
        "no dictionary of ids": {"use_dictionary": without_ids},
        "byte-stream-split log-probs (not for DuckDB)": {"column_encoding": split},
        "statistics of lists too": {"write_statistics": True},
    }


def ordered_by_id(target: Target) -> Target:
    """The same classes in the order of their ids, those left out last: another order that a format could have."""
    order_NK = np.argsort(np.where(np.isneginf(target.topk_logp), 1 << 16, target.topk_ids.astype(np.int64)), axis=1)
    ids, logp = (np.take_along_axis(values, order_NK, 1) for values in (target.topk_ids, target.topk_logp))
    return replace(target, topk_ids=ids, topk_logp=logp)


def hours_of(targets: list[Target]) -> float:
    """Audio of these targets, hours."""
    return sum(target.num_frames for target in targets) * FRAME_SHIFT_MS / 3.6e6


def _relative(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """p log p / q, 0 where p is 0."""
    is_some = p > 0
    return np.where(is_some, p * np.log(np.where(is_some, p, 1.0) / np.where(is_some, q, 1.0)), 0.0)
