"""`kdtrans verify` on the command line: what it says, writes and removes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdtrans.__main__ import main
from kdtrans.artifacts import read_json
from kdtrans.targets.store import TargetStore
from tests.unit.targets.shard_sets import ShardSet


@pytest.fixture
def made(tmp_path: Path) -> ShardSet:
    return ShardSet(tmp_path)


def test_sound_shards_get_an_index_that_a_store_reads(made: ShardSet, capsys: pytest.CaptureFixture[str]) -> None:
    index = made.targets / "index.json"
    assert main(made.verify_command("--out", str(index))) == 0
    assert "3 shards are sound: 12 utterances" in capsys.readouterr().out
    assert read_json(f"{index}.run.json")["stage"] == "verify"
    store = TargetStore(index, made.tokenizer.sha256, made.tokenizer.vocab_size)
    assert all(store.target(row.utt_id, 0).text == row.text for rows in made.rows for row in rows)


def test_people_need_not_write_an_index(made: ShardSet) -> None:
    before = made.files()
    assert main(["verify", str(made.targets)]) == 0
    assert made.files() == before


def spoil(made: ShardSet) -> None:
    assert main(made.verify_command("--out", str(made.targets / "index.json"))) == 0
    made.write(0, [replace(made.rows[0][0], num_frames=99), *made.rows[0][1:]])
    made.part(2).write_bytes(made.part(2).read_bytes()[:-1])


def test_bad_shards_are_listed_with_the_line_that_removes_them(
    made: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(made)
    before = made.files()
    assert main(made.verify_command()) == 1
    error = capsys.readouterr().err
    assert f"{made.part(0)}: the path's" in error
    assert f"{made.part(2)}: SHA-256 is" in error
    assert "2 of 3 shards are bad or missing" in error
    assert f"rm {made.part(0)} {made.part(2)} and run snakemake again" in error
    assert made.files() == before


def test_repair_removes_the_bad_shards_and_nothing_else(made: ShardSet, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(made)
    sound = {name: made.files()[name] for name in ("part-00001.parquet", "part-00001.parquet.run.json")}
    assert main(made.verify_command("--repair")) == 1
    assert "removed 2 shards: run snakemake again" in capsys.readouterr().err
    assert made.files() == sound
    assert main(made.verify_command("--repair")) == 1  # two are missing: nothing to remove
    assert "part-00002.parquet does not exist" in capsys.readouterr().err
    assert made.files() == sound
    for shard in (0, 2):
        made.write(shard)
    assert main(made.verify_command()) == 0


def test_repair_does_not_remove_a_whole_set_for_a_wrong_tokenizer(
    made: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdtrans.config import TokenizerConfig
    from kdtrans.data.tokenizer import train_tokenizer

    other = tmp_path / "other.model"
    train_tokenizer(["six seven eight"], TokenizerConfig(type="char"), other)
    before = made.files()
    assert main(["verify", str(made.targets), "--tokenizer", str(other), "--repair"]) == 1
    error = capsys.readouterr().err
    assert error.count("tokenizer_sha256 is") == 3
    assert "nothing is removed, because it is likelier that --model or --tokenizer is wrong" in error
    assert made.files() == before
