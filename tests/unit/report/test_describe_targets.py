"""What the terminal says of target shards: against slow twins, of damaged shards and of unknown utterances."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrans.artifacts import write_json
from kdtrans.contracts import BLANK, ContractError
from kdtrans.report.describe_targets import (
    BAR,
    Totals,
    bars,
    describe_path,
    describe_target_folder,
    describe_targets,
    emissions,
    find_paths,
    likeness,
)
from kdtrans.report.stored_paths import ShardReader, entropy, tail_mass
from tests.unit.report.shards import PATH, target, write

PIECES = ["<blank>", "<unk>", "a", "b", "c"]


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=4), st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_tail_and_entropy_against_a_loop(weights: list[list[float]], left_out: int) -> None:
    rows = []
    for values in weights:
        p = np.array(values) / max(sum(values), 1.0)
        p[3 - left_out :] = 0.0
        rows.append(p)
    with np.errstate(divide="ignore"):
        logp_NK = np.log(np.array(rows))
    for node, p in enumerate(rows):
        tail = max(1.0 - p.sum(), 0.0)
        assert tail_mass(logp_NK)[node] == pytest.approx(tail, abs=1e-9)
        expected = -sum(q * math.log(q) for q in [*p, tail] if q > 0)
        assert entropy(logp_NK)[node] == pytest.approx(expected, abs=1e-6)


def test_totals_of_a_shard_and_of_two(tmp_path: Path) -> None:
    rows = [
        target("u1", confidence=0.5, weight=0.6),
        target("u1", rank=1, weight=0.4),
        target("u2", confidence=0.05, origin="greedy"),
    ]
    totals = Totals.of_shard(ShardReader.open(write(tmp_path / "part-00000.parquet", rows)))
    assert (totals.utterances, totals.paths, totals.nodes, totals.labels) == (2, 3, 21, 6)
    assert totals.seconds == pytest.approx(2 * 4 * 0.04)
    assert totals.stored == 3 * 13
    assert totals.tail / totals.nodes == pytest.approx((6 * 0.05 + 0.25) / 7, abs=1e-3)
    assert totals.histogram.tolist() == [0, 0, 0, 0, 1, 0, 1, 0, 0]
    assert totals.facts()["origin"] == "1 greedy, 1 viterbi"
    assert totals.facts()["label rate"] == "18.75 a second"
    both = totals + totals
    assert (both.shards, both.paths, both.histogram.sum()) == (2, 6, 4)
    assert both.tail / both.nodes == pytest.approx(totals.tail / totals.nodes)
    assert "hour" not in Totals(1).facts()["size"]  # an empty shard


def test_bars() -> None:
    lines = bars([0, 1, 1000], (0, 0.1, 0.5, 1))
    assert [line.split()[-1] for line in lines] == ["0", "1", "1,000"]
    assert [sum(mark in line for mark in "▏█") for line in lines] == [0, 1, 1]  # one utterance is seen
    assert lines[2].count("█") == BAR


def test_a_path_over_time(tmp_path: Path) -> None:
    logp = np.log(np.tile([0.75, 0.2], (7, 1)))
    logp[1] = np.log([0.5, 0.45])  # the most uncertain node emits the first label
    logp[2] = np.log([0.9, 0.05])
    logp[-1, 1] = -np.inf
    row = target("u1", topk_logp=logp.ravel().astype(np.float16))
    (path,) = ShardReader.open(write(tmp_path / "part.parquet", [row])).paths()
    assert path.frames.tolist() == [0, 1, 1, 2, 3, 3, 3]
    description = describe_path(path, PIECES)
    assert [line[:5] for line in description.rows] == [
        ["", "0.00-0.04", "blank", "0.75", "a 0.2"],
        ["*", "0.04", "a", "0.50", "blank 0.45"],
        ["", "0.04-0.12", "blank", "0.75-0.90", ""],
        ["", "0.12", "b", "0.75", "blank 0.2"],
        ["", "0.12", "c", "0.75", "blank 0.2"],
        ["", "0.12-0.16", "blank", "0.75", ""],
    ]
    assert emissions(path) == "0.04:2 0.12:3 0.12:4"
    assert emissions(path, PIECES, most=1) == "0.04:a ... (3 tokens)"


def test_the_paths_own_token_may_be_left_out(tmp_path: Path) -> None:
    ids = np.array([[2, 3]] * 6 + [[2, 0]])  # blank is at the last node, but with -inf: an id that stands for nothing
    row = target("u1", topk_ids=ids.ravel())
    (path,) = ShardReader.open(write(tmp_path / "part.parquet", [row])).paths()
    assert np.isnan(path.own_p).tolist() == [True, False, True, True, False, True, True]
    assert [line[3] for line in describe_path(path).rows if line[2] == "blank"] == ["left out"] * 3


@given(st.lists(st.integers(0, 3), max_size=12))
@settings(deadline=None, max_examples=40)
def test_a_path_over_time_covers_every_frame_and_label(
    tmp_path_factory: pytest.TempPathFactory, head: list[int]
) -> None:
    tokens = [token + 1 if token else BLANK for token in head] + [BLANK]
    folder = tmp_path_factory.mktemp("path")
    (path,) = ShardReader.open(write(folder / "part.parquet", [target("u", path=tokens)])).paths()
    rows = describe_path(path).rows
    spans = [tuple(map(float, line[1].split("-"))) for line in rows if line[2] == "blank"]
    assert round(sum(end - start for start, end in spans) / 0.04) == tokens.count(BLANK)
    assert [line[2] for line in rows if line[2] != "blank"] == [str(token) for token in tokens if token]
    assert sum(line[0] == "*" for line in rows) == 1


def test_unknown_utterances_are_named_with_their_neighbours(tmp_path: Path) -> None:
    rows = [target(f"spk{speaker}-utt{number}") for speaker in "ab" for number in range(4)]
    shards = [ShardReader.open(write(tmp_path / f"part-{n}.parquet", rows[4 * n : 4 * n + 4])) for n in range(2)]
    shard, found = find_paths(shards, "spkb-utt3")
    assert (shard.path.name, [path.utt_id for path in found]) == ("part-1.parquet", ["spkb-utt3"])
    with pytest.raises(
        ValueError, match=r"'spkb-ut3' is not in any of 2 shards; the nearest ids are 'spkb-utt3', "
    ) as e:
        find_paths(shards, "spkb-ut3")
    assert str(e.value).count("'spk") == 4
    with pytest.raises(ValueError, match=r"'x' is not in .*part-0.parquet; the nearest"):
        find_paths(shards[:1], "x")
    assert likeness("abc", "abc") == 1.0
    assert likeness("", "abc") == likeness("abc", "") < likeness("abd", "abc")


def test_all_ranks_come_best_first(tmp_path: Path) -> None:
    rows = [target("u1", weight=0.6), target("u2"), target("u2", rank=1, weight=0.0), target("u3")]
    shard = ShardReader.open(write(tmp_path / "part.parquet", rows, group=2))  # u2 is in two row groups
    assert [path.rank for path in find_paths([shard], "u2")[1]] == [0, 1]


def test_a_folder_of_shards_as_a_whole(tmp_path: Path) -> None:
    shards = [
        write(tmp_path / f"part-{n:05}.parquet", [target(f"u{n}")], {"created": f"day {n}"}, group=1) for n in range(22)
    ]
    description = describe_target_folder(tmp_path, shards)
    assert description.facts["utterances"] == "22 (22 paths)"
    assert description.facts["index.json"] == "none: these shards have not been verified"
    assert description.facts["created"] == "22 different values, day 0 to day 9"
    assert description.facts["teacher_sha256"] == "ab" * 32
    assert (len(description.rows), description.table) == (20, "the first 20 of 22 shards")
    entries = [{"path": path.name, "bytes": path.stat().st_size} for path in shards]
    write_json(tmp_path / "index.json", {"shards": entries})
    found = describe_target_folder(tmp_path, shards).facts["index.json"]
    assert found == "verified, 22 shards of the same sizes as here"


def test_a_folder_that_its_index_does_not_fit(tmp_path: Path) -> None:
    shards = [write(tmp_path / f"part-0000{n}.parquet", [target(f"u{n}")]) for n in range(3)]
    entries = [{"path": "part-00001.parquet", "bytes": 5}, {"path": "gone.parquet", "bytes": 5}]
    entries.append({"path": shards[2].name, "bytes": shards[2].stat().st_size})
    write_json(tmp_path / "index.json", {"shards": entries})
    shards[2].write_bytes(shards[2].read_bytes()[:-9] + b"\0" * 9)  # of the same size, but damaged
    facts = describe_target_folder(tmp_path, shards).facts
    assert facts["index.json"] == (
        "does not fit these shards: 1 not in it (part-00000.parquet), 1 missing here (gone.parquet), "
        "1 of another size (part-00001.parquet): run kdtrans verify"
    ).replace("), ", "); ")
    assert facts["shards"] == "2, and 1 broken"
    assert "part-00002.parquet" in facts["broken"]


@pytest.mark.parametrize(
    ("footer", "message"),
    [
        (
            {"schema_version": "1"},
            "schema_version is 1, this version reads 2 and 3: delete the shard and run snakemake",
        ),
        ({"top_k": "many"}, "the footer's top_k or frame_shift_ms is missing or no number"),
        ({"top_k": "3"}, "14 log-probs for 7 nodes x 3"),
    ],
)
def test_refusals(tmp_path: Path, footer: dict[str, str], message: str) -> None:
    path = write(tmp_path / "part.parquet", [target("u1")], footer)
    with pytest.raises(ContractError, match=f"part.parquet: {message}"):
        describe_targets(path)


def test_version_2_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "part.parquet", [target("u1")], {"schema_version": "2"})
    assert describe_targets(path).facts["utterances"] == "1 (1 paths)"


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "part.parquet", [target(f"u{n}", path=PATH * 40) for n in range(4)], group=4)
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    logp = next(column for column in columns if column.path_in_schema.startswith("topk_logp"))
    content = bytearray(path.read_bytes())
    content[logp.data_page_offset + logp.total_compressed_size // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ContractError, match=r"part.parquet is damaged"):
        describe_targets(path)
