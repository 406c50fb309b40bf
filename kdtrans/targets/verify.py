"""Checks of a folder of target shards: each of them, whether all are there, agree, and have each utterance once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from kdtrans.contracts import ContractError, manifest_files
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.targets.index import PROVENANCE, sorted_rows
from kdtrans.targets.verify_shard import Expected, Verdict, verify_shard


def verify_folder(
    folder: Path,
    cuts: list[Path] | None,
    teacher_sha256: str | None,
    tokenizer: Tokenizer | None,
    progress: Callable[[int], None],
) -> list[Verdict]:
    """Check the shards of a folder, one after another.

    Memory: about 33 bytes a target and what one row group needs.

    Args:
        folder: of part-NNNNN.parquet.
        cuts: manifest shards, or their folder; part-NNNNN.parquet belongs to cuts.NNNNN.jsonl.gz. None: unknown.
        teacher_sha256: fingerprint of the teacher; None: unknown.
        tokenizer: the teacher's; None: unknown.
        progress: told how many shards have been checked, after each.

    Returns:
        A verdict on each shard, those that should be there among them, in the order of their names.

    Raises:
        ContractError: when there is nothing to check, or a manifest is broken.
    """
    manifests = None if cuts is None else _by_number(manifest_files(cuts), "cuts.", ".jsonl.gz")
    shards = _by_number(sorted(folder.glob("part-*.parquet")), "part-", ".parquet")
    if not shards and not manifests:
        raise ContractError(f"{folder} has no part-NNNNN.parquet: name the folder of a target set's shards")
    verdicts = []
    for number in sorted(shards.keys() | (manifests or {}).keys()):
        path = shards.get(number, folder / f"part-{number}.parquet")
        manifest = None if manifests is None else manifests.get(number)
        if number not in shards:
            verdict = Verdict(path, [f"{path} does not exist, {manifest} does: dump it"])
        elif manifests is not None and manifest is None:
            verdict = Verdict(path, [f"{path}: there is no manifest cuts.{number}.jsonl.gz that it would belong to"])
        else:
            verdict = verify_shard(path, Expected(teacher_sha256, tokenizer, manifest))
        verdicts.append(verdict)
        progress(len(verdicts))
    _check_agreement(verdicts)
    _check_duplicates(verdicts)
    return verdicts


def _by_number(paths: list[Path], prefix: str, suffix: str) -> dict[str, Path]:
    """Shards by the NNNNN in their names."""
    found: dict[str, Path] = {}
    for path in paths:
        number = path.name.removeprefix(prefix).removesuffix(suffix)
        if path.name != f"{prefix}{number}{suffix}" or not number.isdigit():
            raise ContractError(f"{path} is not called {prefix}NNNNN{suffix}: shards are matched by these numbers")
        if number in found:
            raise ContractError(f"{path} and {found[number]} have the same number: shards are matched by it")
        found[number] = path
    return found


def _check_agreement(verdicts: list[Verdict]) -> None:
    """All shards have been made in the same way; those that differ from the majority are named."""
    for key in PROVENANCE:
        counts = Counter(getattr(verdict.footer, key) for verdict in verdicts if verdict.footer)
        usual, count = counts.most_common(1)[0] if counts else (None, 0)
        for verdict in verdicts:
            if verdict.footer and getattr(verdict.footer, key) != usual:
                _refuse(
                    verdict,
                    f"{key} is {getattr(verdict.footer, key)}, but {usual} in {count} of {counts.total()} shards",
                )


def _check_duplicates(verdicts: list[Verdict]) -> None:
    """No two shards have the same utterance, nor two utterances that the index could not tell apart."""
    sound = [verdict for verdict in verdicts if verdict.indexed]
    rows = sorted_rows([verdict.indexed for verdict in sound if verdict.indexed])
    key_R, shard_R, group_R, row_R = (rows[name].to_numpy() for name in ("key", "shard", "row_group", "row"))
    # Of equal keys, rows of one rank stand together, and each shard has rank 0.
    again = np.flatnonzero((key_R[1:] == key_R[:-1]) & (shard_R[1:] != shard_R[:-1])) + 1
    pairs: dict[tuple[int, int], list[int]] = {}
    for at in again.tolist():
        pair = min(shard_R[at - 1 : at + 1].tolist()), max(shard_R[at - 1 : at + 1].tolist())
        pairs.setdefault(pair, []).append(at)
    for (earlier, later), ats in pairs.items():
        one, two = (_utt_id(sound[shard_R[at]].path, int(group_R[at]), int(row_R[at])) for at in (ats[0] - 1, ats[0]))
        first = f"utterance {one}" if one == two else f"'{one}' and '{two}', whose hashes are the same: rename one"
        _refuse(
            sound[later],
            f"{len({int(key_R[at]) for at in ats})} utterances are in {sound[earlier].path} too (first: {first})",
        )


def _utt_id(path: Path, row_group: int, row: int) -> str:
    with pq.ParquetFile(path) as file:
        return str(file.read_row_group(row_group, columns=["utt_id"])["utt_id"][row].as_py())


def _refuse(verdict: Verdict, problem: str) -> None:
    verdict.problems.append(f"{verdict.path}: {problem}")
    verdict.indexed = None
