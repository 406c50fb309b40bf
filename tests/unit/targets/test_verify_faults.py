"""Damaged bytes: whatever happens to a shard, it is refused, or what is read of it is what was written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kdtrans.contracts import ContractError
from kdtrans.targets.index import row_groups, write_index
from kdtrans.targets.shards import Target
from kdtrans.targets.store import TargetStore
from kdtrans.targets.verify_shard import Expected, verify_shard
from tests.unit.targets.shard_sets import TEACHER, ShardSet

Reader = Callable[[], bool]  # whether the shard was accepted and read as it was written; raises if it was refused


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    found = ShardSet(tmp_path_factory.mktemp("set"), shards=1, utterances=3)
    verdict = verify_shard(found.part(0), Expected())
    assert verdict.indexed is not None
    write_index(found.targets / "index.json", found.footer, [verdict.indexed])
    return found


def readers(made: ShardSet) -> dict[str, Reader]:
    """Everything that takes a shard's word for something."""
    part, record = made.part(0), Path(f"{made.part(0)}.run.json")
    whole = pa.concat_tables(row_groups(part))
    expected = Expected(TEACHER, made.tokenizer, made.manifest(0))
    kept = record.read_bytes()

    def verify(with_record: bool) -> bool:
        record.write_bytes(kept) if with_record else record.unlink(missing_ok=True)
        verdict = verify_shard(part, expected)
        if verdict.problems:
            raise ContractError(verdict.problems[0])
        return pa.concat_tables(row_groups(part)).equals(whole)

    def read() -> bool:
        store = TargetStore(made.targets / "index.json", made.tokenizer.sha256, made.tokenizer.vocab_size)
        return all(same(store.target(row.utt_id, 0), row) for row in made.rows[0])

    return {"verify": lambda: verify(True), "verify without a record": lambda: verify(False), "store": read}


def same(one: Target, two: Target) -> bool:
    return all(
        np.allclose(a, b, rtol=1e-6, atol=0) if isinstance(a, float) else np.array_equal(a, b)
        for a, b in ((getattr(one, field.name), getattr(two, field.name)) for field in fields(Target))
    )


def damage(made: ShardSet, damaged: Iterator[bytes]) -> dict[str, Counter[str]]:
    """Give each version of the shard's bytes to each reader, and count what comes of it."""
    whole, found = made.part(0).read_bytes(), {name: Counter[str]() for name in readers(made)}
    checks = readers(made)
    for content in damaged:
        made.part(0).write_bytes(content)
        for name, check in checks.items():
            try:
                found[name]["harmless" if check() else "lost"] += 1
            except ContractError as error:
                found[name]["detected" if "part-00000.parquet" in str(error) else "not named"] += 1
    made.part(0).write_bytes(whole)
    made.record(0)
    for name, counts in found.items():
        print(
            f"{name}: injected {counts.total()}, "
            + ", ".join(f"{k} {counts[k]}" for k in ("detected", "harmless", "lost"))
        )
    return found


def test_a_shard_cut_short_anywhere_is_refused(made: ShardSet) -> None:
    whole = made.part(0).read_bytes()
    sizes = [*range(0, len(whole), 7), *range(len(whole) - 20, len(whole))]
    found = damage(made, (whole[:size] for size in sizes))
    assert {name: dict(counts) for name, counts in found.items()} == {name: {"detected": len(sizes)} for name in found}


def test_a_flipped_bit_is_found_or_does_nothing(made: ShardSet) -> None:
    whole, random, flips = made.part(0).read_bytes(), np.random.default_rng(2), 400

    def flipped() -> Iterator[bytes]:
        for _ in range(flips):
            content = bytearray(whole)
            content[random.integers(len(whole))] ^= 1 << random.integers(8)
            yield bytes(content)

    found = damage(made, flipped())
    assert [counts["lost"] + counts["not named"] for counts in found.values()] == [0, 0, 0]
    assert found["verify"]["detected"] == flips  # by the record's hash
    assert found["verify without a record"]["detected"] > flips / 2
