"""The index of target shards, against loops over their rows."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrans.artifacts import read_json, sha256_file
from kdtrans.contracts import TARGETS_INDEX, ContractError
from kdtrans.targets import index as index_module
from kdtrans.targets.index import (
    footer_sha256,
    index_shard,
    read_rows,
    row_groups,
    rows_with_key,
    utterance_key,
    write_index,
)
from kdtrans.targets.shards import read_shard
from tests.unit.targets.shard_sets import ShardSet


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    found = ShardSet(tmp_path_factory.mktemp("set"), utterances=70)  # two row groups
    write_index(found.targets / "index.json", found.footer, shards_of(found))
    return found


def shards_of(made: ShardSet) -> list[index_module.IndexedShard]:
    return [index_shard(made.part(i), made.footer, row_groups(made.part(i))) for i in range(3)]


def test_the_index_finds_what_a_loop_over_all_rows_finds(made: ShardSet) -> None:
    rows = read_rows(pa.memory_map(str(made.targets / "index.arrow")), "index.arrow")
    assert rows.schema == TARGETS_INDEX
    keys = rows["key"].to_numpy()
    assert (keys[1:] > keys[:-1]).all()
    found = 0
    for shard in range(3):
        for group, table in enumerate(row_groups(made.part(shard))):
            for row, values in enumerate(table.to_pylist()):
                [at] = rows_with_key(keys, utterance_key(values["utt_id"]))
                expected = {"shard": shard, "row_group": group, "row": row} | {
                    key: values[key] for key in ("rank", "weight", "num_frames", "confidence", "repetition")
                }
                expected["num_labels"] = sum(token != 0 for token in values["path"])
                [entry] = rows.slice(at, 1).to_pylist()
                assert {key: entry[key] for key in expected} == expected
                found += 1
    assert found == len(rows) == 210
    assert list(rows_with_key(keys, utterance_key("nobody"))) == []


def test_the_description_counts_what_is_there(made: ShardSet) -> None:
    index = read_json(made.targets / "index.json")
    tables = [read_shard(made.part(i))[1] for i in range(3)]
    rows = [row for table in tables for row in table.to_pylist()]
    assert (index["utterances"], index["paths"], index["top_k"], index["frame_offset"]) == (210, 210, 4, 0)
    assert (index["min_probability"], index["logp_step"], index["schema_version"]) == (1e-2, 1 / 64, 3)
    assert index["nodes"] == sum(len(row["path"]) for row in rows)
    assert index["hours"] == pytest.approx(sum(row["num_frames"] for row in rows) * 0.04 / 3600, abs=1e-4)
    assert index["origin"] == {"viterbi": 105, "greedy": 105}
    tails = [1 - np.exp(np.float32(row["topk_logp"]).reshape(-1, 4)).sum(1) for row in rows]
    assert index["mean_tail_mass"] == pytest.approx(np.concatenate(tails).clip(0, 1).mean(), abs=1e-6)
    assert index["mean_confidence"] == pytest.approx(np.exp(-0.5), abs=1e-4)
    assert index["index_sha256"] == sha256_file(made.targets / "index.arrow")
    assert [shard["path"] for shard in index["shards"]] == [made.part(i).name for i in range(3)]
    for i, shard in enumerate(index["shards"]):
        whole = made.part(i).read_bytes()
        footer = whole[-int.from_bytes(whole[-8:-4], "little") - 8 :]
        assert shard["sha256"] == hashlib.sha256(whole).hexdigest()
        assert shard["footer_sha256"] == hashlib.sha256(footer).hexdigest()
        assert shard["bytes"] == len(whole)
        with pa.OSFile(str(made.part(i))) as file:
            assert footer_sha256(file) == shard["footer_sha256"]


def test_paths_are_relative_to_the_index(made: ShardSet, tmp_path: Path) -> None:
    write_index(tmp_path / "elsewhere" / "index.json", made.footer, shards_of(made))
    index = read_json(tmp_path / "elsewhere" / "index.json")
    paths = [tmp_path / "elsewhere" / shard["path"] for shard in index["shards"]]
    assert [path.resolve() for path in paths] == [made.part(i).resolve() for i in range(3)]


def test_keys_are_as_the_contract_says() -> None:
    assert utterance_key("utt") == struct.unpack("<Q", hashlib.blake2b(b"utt").digest()[:8])[0]


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3)), st.integers(0, 2**64 - 1) | st.integers(0, 3))
def test_rows_of_a_key_are_those_of_a_scan(keys: list[int], wanted: int) -> None:
    column = np.sort(np.array([*keys, wanted], np.uint64)[: len(keys)])
    assert list(rows_with_key(column, wanted)) == [i for i, key in enumerate(column.tolist()) if key == wanted]


def test_an_interrupted_index_leaves_none(made: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never an old index.json beside a new index.arrow."""

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    out, shards = tmp_path / "index.json", shards_of(made)
    write_index(out, made.footer, shards)
    monkeypatch.setattr(index_module, "write_json", fail)
    with pytest.raises(OSError, match="No space"):
        write_index(out, made.footer, shards[:1])
    assert [path.name for path in tmp_path.iterdir()] == ["index.arrow"]


def test_a_damaged_index_is_refused(made: ShardSet) -> None:
    whole = (made.targets / "index.arrow").read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        with pytest.raises(ContractError, match=r"index\.arrow is not a whole index"):
            read_rows(pa.py_buffer(whole[:size]), "index.arrow")
    other = pa.BufferOutputStream()
    with pa.ipc.new_file(other, pa.schema([("a", pa.int8())])):
        pass
    with pytest.raises(ContractError, match=r"expected .'key'"):
        read_rows(other.getvalue(), "index.arrow")
