"""Stage dump: its record, the settings in the footer, and a disk that fills up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from kdtrans.__main__ import main
from kdtrans.artifacts import read_json, sha256_file
from kdtrans.targets.shards import read_shard
from tests.tiny import TARGETS, Workspace


def test_the_record_has_the_shards_hash_and_the_footer_the_settings(toy: Workspace, tmp_path: Path) -> None:
    out, config = tmp_path / "part-00000.parquet", tmp_path / "targets.yaml"
    config.write_text(yaml.safe_dump(TARGETS | {"min_probability": 0.1, "logp_step": 0.125}))
    command = toy.dump_command(toy.teacher, out)
    command[command.index("--config") + 1] = str(config)
    assert main(command) == 0
    record = read_json(f"{out}.run.json")
    assert record["sha256"] == sha256_file(out)
    assert record["bytes"] == out.stat().st_size
    footer, table = read_shard(out)
    assert (footer.schema_version, footer.min_probability, footer.logp_step) == (3, 0.1, 0.125)
    logp_NK = table["topk_logp"].combine_chunks().values.to_numpy().astype(float).reshape(-1, footer.top_k)
    others = logp_NK[:, 1:][np.isfinite(logp_NK[:, 1:])]
    assert np.isneginf(logp_NK).any()
    assert others.min() >= np.log(0.1) - 0.125
    assert (others % 0.125 == 0).all()


def test_a_full_disk_ends_in_one_line_and_leaves_nothing(
    toy: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(table: object, where: Path, **_: object) -> None:
        Path(where).write_bytes(b"PAR1")
        raise OSError(28, "No space left on device", str(where))

    monkeypatch.setattr(pq, "write_table", full)
    assert main(toy.dump_command(toy.teacher, tmp_path / "part-00000.parquet")) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
