"""Shards as files: what is written is read, damage and other versions are refused, other programs read them too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdtrans.contracts import TARGETS, ContractError, TargetsFooter
from kdtrans.targets.encoding import encode
from kdtrans.targets.shards import LAYOUT, Target, read_shard, read_shard_footer, row_to_target, write_shard

K, V = 4, 9
FOOTER = TargetsFooter("t" * 64, "k" * 64, V, K, 0, "m" * 64, min_probability=0.05, logp_step=0.0625)


def target_of(utt_id: str, logp: np.ndarray, ids: np.ndarray) -> Target:
    """A target with these distributions, its path all blanks."""
    path = np.zeros(len(logp), np.uint16)
    return Target(
        utt_id, 0, 1.0, "viterbi", len(path), path, ids.astype(np.uint16), logp.astype(np.float16), -1, -0.5, utt_id
    )


def some_targets(count: int) -> list[Target]:
    random = np.random.default_rng(0)
    made = []
    for number in range(count):
        logits = random.normal(scale=3, size=(random.integers(3, 30), V))
        logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        ids = np.argsort(-logp, axis=1)[:, :K]
        ids, logp = encode(ids, np.take_along_axis(logp, ids, 1), FOOTER.min_probability, FOOTER.logp_step)
        made.append(target_of(f"utt{number:03d}", logp, ids))
    return made


@pytest.fixture(scope="module")
def targets() -> list[Target]:
    return some_targets(70)


@pytest.fixture(scope="module")
def part(targets: list[Target], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards") / "part-00000.parquet"
    write_shard(targets, FOOTER, path)
    return path


def test_what_is_written_is_read(targets: list[Target], part: Path) -> None:
    footer, table = read_shard(part)
    assert footer == FOOTER
    assert pq.read_metadata(part).num_row_groups == -(-len(targets) // LAYOUT["row_group_size"])
    for row, target in enumerate(targets):
        found = row_to_target(table, row, K)
        for name, value in vars(target).items():
            assert np.array_equal(getattr(found, name), value), name
    assert any(np.isneginf(target.topk_logp).any() for target in targets)


def test_duckdb_pandas_and_polars_read_them_unaided(targets: list[Target], part: Path) -> None:
    duckdb, pandas, polars = (pytest.importorskip(name) for name in ("duckdb", "pandas", "polars"))
    ids = np.concatenate([target.topk_ids.ravel() for target in targets]).tolist()
    logp = np.concatenate([target.topk_logp.ravel() for target in targets]).tolist()
    query = f"select unnest(topk_ids), unnest(topk_logp) from '{part}'"
    rows = duckdb.connect().execute(query).fetchall()
    assert [row[0] for row in rows] == ids
    assert [row[1] for row in rows] == logp
    frame = pandas.read_parquet(part)
    assert np.concatenate(frame["topk_ids"].tolist()).tolist() == ids
    assert np.concatenate(frame["topk_logp"].tolist()).tolist() == logp
    table = polars.read_parquet(part)
    assert table["topk_ids"].explode().to_list() == ids
    assert table["topk_logp"].explode().to_list() == logp
    assert table["confidence"].to_list() == pytest.approx([target.confidence for target in targets])


def test_every_page_has_a_checksum_that_is_read(part: Path, tmp_path: Path) -> None:
    """Bytes in the middle of each column's data, of which zstd by itself does not see them all."""
    whole, metadata = part.read_bytes(), pq.read_metadata(part)
    damaged = tmp_path / "part-00001.parquet"
    for column in range(metadata.num_columns):
        chunk = metadata.row_group(1).column(column)
        # The last byte of a chunk is a page's data, never its header.
        at = (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size - 1
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ContractError, match=r"part-00001\.parquet"):
            read_shard(damaged)


def test_version_2_is_read_as_one_that_leaves_nothing_out(part: Path, tmp_path: Path) -> None:
    old = rewritten(part, tmp_path, {"schema_version": "2"}, without=("min_probability", "logp_step"))
    footer, table = read_shard(old)
    assert footer == replace(FOOTER, schema_version=2, min_probability=0.0, logp_step=0.0)
    assert len(table) == 70


@pytest.mark.parametrize(
    ("changes", "without", "message"),
    [
        ({"schema_version": "1"}, ("topology",), "schema_version is 1, this version reads 2 and 3: .*kdtrans dump"),
        ({"schema_version": "4"}, (), "schema_version is 4, this version reads 2 and 3"),
        ({}, ("logp_step",), "not that of a target shard .*logp_step"),  # only version 2 may lack it
        ({}, ("schema_version",), "not that of a target shard .*schema_version"),
        ({"top_k": "many"}, (), "not that of a target shard"),
        ({"blank": "5"}, (), "blank is 5, this version reads 0"),
        ({"topology": "one_symbol"}, (), "topology is one_symbol"),
        ({"frame_shift_ms": "20"}, (), "frame_shift_ms is 20, this version reads 40"),
    ],
)
def test_other_footers_are_refused(
    part: Path, tmp_path: Path, changes: dict[str, str], without: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ContractError, match=rf"old\.parquet.*{message}"):
        read_shard_footer(rewritten(part, tmp_path, changes, without))


def test_lists_of_other_lengths_are_refused(targets: list[Target]) -> None:
    table = pa.table({field.name: pa.array([None], field.type) for field in TARGETS})
    values = {"utt_id": ["u"], "path": [[0, 0]], "topk_ids": [[0] * 7], "topk_logp": [[0.0] * 8]}
    for name, value in values.items():
        index = table.schema.get_field_index(name)
        array = np.array(value[0], np.float16) if name == "topk_logp" else value[0]
        table = table.set_column(
            index, TARGETS.field(name), pa.array([array] if name != "utt_id" else value, TARGETS.field(name).type)
        )
    with pytest.raises(ContractError, match="utterance u: 7 ids and 8 log-probs for 2 nodes x 4"):
        row_to_target(table, 0, K)


def test_a_full_disk_leaves_no_part_of_a_shard(
    targets: list[Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(table: pa.Table, where: Path, **_: object) -> None:
        Path(where).write_bytes(b"PAR1 and no more")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_shard(targets, FOOTER, tmp_path / "part-00000.parquet")
    assert list(tmp_path.iterdir()) == []


def rewritten(part: Path, folder: Path, changes: dict[str, str], without: tuple[str, ...] = ()) -> Path:
    """The same rows with another footer."""
    table = pq.read_table(part)
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    metadata |= {f"kdtrans.{key}": value for key, value in changes.items()}
    kept = {key: value for key, value in metadata.items() if key.removeprefix("kdtrans.") not in without}
    pq.write_table(table.replace_schema_metadata(kept), folder / "old.parquet")
    return folder / "old.parquet"
