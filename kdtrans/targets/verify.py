"""Checks of a target shard against its manifest shard, its teacher and its tokenizer.  No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdtrans.artifacts import sha256_file
from kdtrans.contracts import BLANK, ContractError, TargetsFooter

SLACK = 2.0e-2  # fp16 log-probs of K classes may sum to a little more than 1
WEIGHT_SLACK = 1.0e-3  # weights are fp32


@dataclass(frozen=True)
class ShardFacts:
    """What index.json says of a shard."""

    utterances: int
    paths: int  # more than utterances where targets are n-best
    nodes: int
    bytes: int
    hours: float
    tail_mass: float  # mean over nodes
    confidence: float  # mean over utterances
    origin: dict[str, int]


def verify_shard(
    path: Path,
    footer: TargetsFooter,
    table: pa.Table,
    manifest: Path,
    expected_ids: set[str],
    teacher_sha256: str,
    tokenizer_sha256: str,
) -> ShardFacts:
    """Check everything that can be wrong with a shard.

    Args:
        path: the shard, for messages.
        footer: its provenance.
        table: its rows (contracts.TARGETS).
        manifest: the manifest shard it belongs to.
        expected_ids: utterances in that manifest shard.
        teacher_sha256: fingerprint of the teacher.
        tokenizer_sha256: hash of the tokenizer.

    Raises:
        ContractError: naming the shard, what disagrees, and both values.
    """
    expected = {
        "teacher_sha256": teacher_sha256,
        "tokenizer_sha256": tokenizer_sha256,
        "manifest_sha256": sha256_file(manifest),
    }
    for key, value in expected.items():
        if getattr(footer, key) != value:
            raise ContractError(
                f"{path}: {key} is {getattr(footer, key)[:12]}, expected {value[:12]}: delete it and dump it again"
            )
    best = table.filter(pc.equal(table["rank"], 0))
    ids = best["utt_id"].to_pylist()
    if len(ids) != len(set(ids)) or set(ids) != expected_ids:
        missing, extra = sorted(expected_ids - set(ids))[:3], sorted(set(ids) - expected_ids)[:3]
        raise ContractError(
            f"{path}: {len(ids)} best targets for {len(expected_ids)} utterances of {manifest} (missing {missing}, "
            f"not in the manifest {extra}): delete it and dump it again"
        )
    if not ids:
        raise ContractError(f"{path}: no utterance is in it or in {manifest}: lower corpus.num_shards")
    _check_ranking(path, table)
    lengths = {name: pc.list_value_length(table[name]).to_numpy() for name in ("path", "topk_ids", "topk_logp")}
    _first_bad(table, lengths["path"] == 0, f"{path}: the path is empty")
    for name in ("topk_ids", "topk_logp"):
        _first_bad(
            table,
            lengths[name] != lengths["path"] * footer.top_k,
            f"{path}: {name} has another length than nodes x top_k",
        )
    tokens = table["path"].combine_chunks().values.to_numpy()
    ends = np.cumsum(lengths["path"])
    blanks = np.diff(np.concatenate([[0], np.cumsum(tokens == BLANK)[ends - 1]]))
    _first_bad(table, blanks != table["num_frames"].to_numpy(), f"{path}: the path's blanks differ from num_frames")
    _first_bad(table, tokens[ends - 1] != BLANK, f"{path}: the path does not end with blank")
    for name in ("path", "topk_ids"):
        largest = int(table[name].combine_chunks().values.to_numpy().max())
        if largest >= footer.vocab_size:
            raise ContractError(
                f"{path}: id {largest} in {name} is outside the vocabulary of {footer.vocab_size}: "
                "delete the shard and dump it again"
            )
    logp = table["topk_logp"].combine_chunks().values.to_numpy().astype(np.float32).reshape(-1, footer.top_k)
    mass = np.exp(logp).sum(1)
    utterance = np.repeat(np.arange(len(table)), lengths["path"])
    bad_nodes = ~np.isfinite(mass) | (mass > 1 + SLACK)
    _first_bad(
        table,
        np.isin(np.arange(len(table)), utterance[bad_nodes]),
        f"{path}: probabilities of a node sum to more than 1 or are not numbers",
    )
    return ShardFacts(
        utterances=len(ids),
        paths=len(table),
        nodes=int(ends[-1]),
        bytes=path.stat().st_size,
        hours=float(best["num_frames"].to_numpy().sum()) * footer.frame_shift_ms / 3.6e6,
        tail_mass=float(np.clip(1 - mass, 0, 1).mean()),
        confidence=float(np.mean(best["confidence"].to_numpy())),
        origin=dict(zip(*np.unique(best["origin"].to_pylist(), return_counts=True), strict=True)),
    )


def index_of(shards: dict[str, ShardFacts], footer: TargetsFooter) -> dict[str, Any]:
    """The content of index.json: facts by shard, and their totals and means."""
    facts = list(shards.values())
    nodes, utterances = sum(f.nodes for f in facts), sum(f.utterances for f in facts)
    origin: dict[str, int] = {}
    for shard in facts:
        for name, count in shard.origin.items():
            origin[str(name)] = origin.get(str(name), 0) + int(count)
    return {
        "teacher_sha256": footer.teacher_sha256,
        "tokenizer_sha256": footer.tokenizer_sha256,
        "top_k": footer.top_k,
        "lm_sha256": footer.lm_sha256,
        "lm_weight": footer.lm_weight,
        "utterances": utterances,
        "paths": sum(f.paths for f in facts),
        "hours": round(sum(f.hours for f in facts), 4),
        "nodes": nodes,
        "bytes": sum(f.bytes for f in facts),
        "mean_tail_mass": sum(f.tail_mass * f.nodes for f in facts) / nodes,
        "mean_confidence": sum(f.confidence * f.utterances for f in facts) / utterances,
        "origin": origin,
        "shards": [
            {"path": path, "utterances": f.utterances, "nodes": f.nodes, "bytes": f.bytes, "hours": round(f.hours, 4)}
            for path, f in shards.items()
        ],
    }


def _check_ranking(path: Path, table: pa.Table) -> None:
    """An utterance's rows stand together, ranks 0, 1, ..., and their weights sum to 1."""
    rank, weight = table["rank"].to_numpy().astype(np.int64), table["weight"].to_numpy().astype(np.float64)
    ids = np.array(table["utt_id"].to_pylist(), dtype=object)
    is_first = np.concatenate([[True], ids[1:] != ids[:-1]])
    starts = np.flatnonzero(is_first)
    sizes = np.diff(np.append(starts, len(table)))
    _first_bad(
        table,
        rank != np.arange(len(table)) - np.repeat(starts, sizes),
        f"{path}: an utterance's ranks are not 0, 1, 2, ... row by row",
    )
    _first_bad(table, ~(weight >= 0), f"{path}: a weight is negative or not a number")
    sums = np.repeat(np.add.reduceat(weight, starts), sizes)
    _first_bad(table, abs(sums - 1.0) > WEIGHT_SLACK, f"{path}: an utterance's weights do not sum to 1")


def _first_bad(table: pa.Table, bad: np.ndarray, message: str) -> None:
    if bad.any():
        utt_id = table["utt_id"][int(np.argmax(bad))].as_py()
        raise ContractError(
            f"{message} (utterance {utt_id}, {int(bad.sum())} in all): delete the shard and dump it again"
        )
