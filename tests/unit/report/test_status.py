"""Every state of an artifact and every reason, on a results folder of files that hold their names."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from kdtrans.artifacts import claimed
from kdtrans.layout import Layout
from kdtrans.report.status import Survey
from kdtrans.report.status_table import status_text
from tests.unit.report.results_folder import Maker, by_path, edit_record, layout_of, unlike

STUDENT = "systems/kd_unlabelled/model.pt"
KD = {"systems": {"kd_unlabelled": {"kd": {"weight": 0.3}}}}


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """A finished run, and what can make more."""
    monkeypatch.chdir(tmp_path)
    maker = Maker()
    maker.make_all(layout_of())
    return maker


def text_of(layout: Layout, each: bool = False, configs: tuple[str, ...] = ()) -> str:
    return status_text(Survey(layout.artifacts()).rows(), layout.results, configs, each)


def test_a_finished_run_is_present(maker: Maker) -> None:
    rows = by_path(layout_of())
    assert unlike(layout_of()) == {}
    assert {row.artifact.phase for row in rows.values()} == {
        *("prepare", "lm", "teacher", "targets", "student", "decode", "score", "report")
    }
    row = rows["targets/teacher/train/index.json"]
    assert (row.seconds, row.created) == (3.5, "2026-11-25T22:52:42Z")
    assert row.size == sum(len(name) for name in row.artifact.files)


def test_an_empty_folder_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(unlike(layout_of(), "missing").values()) == set()
    assert "missing" in text_of(layout_of())


def test_another_setting_is_named_and_what_follows_is_stale(maker: Maker) -> None:
    found = unlike(layout_of(KD))
    assert found.pop(STUDENT) == ("kd.weight 1.0 -> 0.3",)
    assert found.pop("align/kd_unlabelled/test.parquet") == (f"stale: results/{STUDENT}",)
    assert found.pop("report/index.html") == (
        "stale: 4 of results/decode/kd_unlabelled/*/*.score.json",
        "stale: results/align/kd_unlabelled/test.parquet",
    )
    assert {path.split("/")[1] for path in found} == {"kd_unlabelled"}
    assert {row.state for path, row in by_path(layout_of(KD)).items() if path in found} == {"stale"}


def test_a_setting_that_a_record_has_not_is_unset(maker: Maker) -> None:
    path = layout_of().gate
    edit_record(path, config={})
    assert unlike(layout_of()) == {"teacher/gate.json": ("max_wer unset -> 30.0",)}


def test_settings_that_are_no_identity_of_a_model_keep_it(maker: Maker) -> None:
    quiet = {"log_every": 7, "checkpoint_every": 9, "workers": 2, "cache_gb": 0.5, "band_width": 9}
    assert unlike(layout_of({"student": {"training": quiet | {"loss": "full"}}})) == {}
    banded = {"student": {"training": {"loss": "banded", "band_width": 9}}}
    reasons = ("training.loss fused -> banded", "training.band_width 5 -> 9")
    assert unlike(layout_of(banded))[STUDENT] == reasons


def test_a_gate_that_is_made_again_leaves_the_teacher_and_its_targets(maker: Maker) -> None:
    assert unlike(layout_of({"teacher": {"max_wer": 20.0}})) == {"teacher/gate.json": ("max_wer 30.0 -> 20.0",)}


def test_an_input_with_another_content_is_named(maker: Maker) -> None:
    maker.write("results/lm/lm.arpa", "another")
    found = unlike(layout_of())
    assert found["decode/baseline/beam_lm/lm_weight.json"] == ("changed since: results/lm/lm.arpa",)
    assert "decode/baseline/greedy/dev.parquet" not in found


def test_an_input_that_was_made_anew_with_the_same_content_is_none(maker: Maker) -> None:
    maker.write("results/lm/lm.arpa", "results/lm/lm.arpa")
    assert unlike(layout_of()) == {}


def test_an_input_that_is_older_is_not_read(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdtrans.report.status.sha256_file", lambda path: pytest.fail(f"hashed {path}"))
    assert unlike(layout_of()) == {}


def test_a_shard_that_was_dumped_again_makes_the_index_stale(maker: Maker) -> None:
    shard = "results/targets/teacher/train/part-00001.parquet"
    maker.write(shard, "another")
    assert unlike(layout_of())["targets/teacher/train/index.json"] == (f"newer: {shard}",)


def test_inputs_that_come_and_go_are_named(maker: Maker) -> None:
    more = layout_of({"systems": {"more": {}}})
    maker.make_all(more)
    reason = unlike(more)["report/index.html"]
    assert len(reason) == 1
    assert reason[0].startswith("new input: results/decode/more/greedy/dev.score.json, ")
    fewer = layout_of({"systems": {"kd_unlabelled": None}})
    (reason,) = unlike(fewer)["report/index.html"]
    assert reason.startswith("no input any more: results/align/kd_unlabelled/test.parquet, ")
    assert reason.endswith(" and 1 more")


def test_a_given_file_that_is_not_there_is_named(maker: Maker) -> None:
    path = "results/lm/lm.arpa"
    found = unlike(layout_of({"lm": {"texts": ["mine.txt"]}}))
    assert found[path.removeprefix("results/")] == (
        'texts [] -> ["mine.txt"]',
        "not there: mine.txt",
        "new input: mine.txt",
    )


def test_another_stage_for_the_same_file_is_named(maker: Maker) -> None:
    first = {"beam": {"type": "beam"}, "beam_lm": {"rescore": "beam"}}
    rescored = layout_of({"decode": {"searches": first}})
    maker.make_all(rescored)
    assert "made by decode, now by rescore" in unlike(rescored)["decode/teacher/beam_lm/dev.parquet"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"text"', "\udcff"])
def test_a_damaged_record_is_called_so_and_nothing_else_with_it(maker: Maker, text: str) -> None:
    Path(f"{layout_of().teacher}.run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert unlike(layout_of()) == {"teacher/model.pt": ("record damaged",)}


@pytest.mark.parametrize("changes", [{"config": []}, {"inputs": 1}, {"seconds": "long"}, {"config": {}}, {"code": 3}])
def test_a_record_of_other_types_is_damaged(maker: Maker, changes: dict[str, object]) -> None:
    edit_record(layout_of().teacher, **changes)
    assert unlike(layout_of()) == {"teacher/model.pt": ("record damaged",)}


def test_no_record_is_called_so(maker: Maker) -> None:
    Path(f"{layout_of().tokenizer}.run.json").unlink()
    assert unlike(layout_of()) == {"tokenizer/tokenizer.model": ("no run record",)}


def test_other_code_is_named_and_makes_nothing_stale(maker: Maker) -> None:
    path = layout_of().decoding("teacher", "greedy", "dev", "score.json")
    code = json.loads(Path(f"{path}.run.json").read_text())["code"]
    edit_record(path, code=code | {"kdtrans/scoring/wer.py": "0" * 12})
    edit_record(layout_of().gate, code=None)
    assert unlike(layout_of()) == {
        "decode/teacher/greedy/dev.score.json": ("code changed: kdtrans/scoring/wer.py",),
        "teacher/gate.json": ("code: not recorded",),
    }
    assert by_path(layout_of())["teacher/gate.json"].state == "older code"
    line = ": snakemake --forcerun gate score_testset --configfile my.yaml"
    assert text_of(layout_of(), configs=("my.yaml",)).endswith(line)


def test_a_lost_shard_is_missing_and_what_follows_is_stale(maker: Maker) -> None:
    Path(layout_of().shards_of("teacher")[1]).unlink()
    rows, series = by_path(layout_of()), "results/targets/teacher/train/part-*.parquet"
    assert rows["targets/teacher/train/part-00001.parquet"].state == "missing"
    assert rows["targets/teacher/train/index.json"].why == (f"missing: {series}",)
    assert rows[STUDENT].why == ("stale: results/targets/teacher/train/index.json",)


def test_a_lost_manifest_shard_is_named(maker: Maker) -> None:
    Path(layout_of().train_shards[2]).unlink()
    assert unlike(layout_of())["data/summary.json"] == ("lacks results/data/train/cuts.00002.jsonl.gz",)


def write_metrics(model: str, *rows: dict[str, float]) -> None:
    folder = Path(model).parent / "checkpoints"
    folder.mkdir(exist_ok=True)
    # Rows of dev have no time, and the last one is being written.
    lines = [*map(json.dumps, rows), '{"step": 40, "dev_wer": 9.0}', '{"st']
    (folder / "metrics.jsonl").write_text("\n".join(lines))


def test_a_trainer_at_work_says_how_far_it_has_come(maker: Maker) -> None:
    layout = layout_of()
    model = layout.model_of("kd_unlabelled")
    Path(model).unlink()
    with claimed(layout.checkpoints_of("kd_unlabelled")):
        assert by_path(layout)[STUDENT].why == ()
        write_metrics(model, {"step": 20, "seconds": 20.0})
        assert by_path(layout)[STUDENT].why == ("update 20 of 1,000, 1.00 updates/s, 16 min left",)
        write_metrics(model, {"step": 20, "seconds": 20.0}, {"step": 40, "seconds": 30.0})
        row = by_path(layout)[STUDENT]
        assert (row.state, row.why) == ("running", ("update 40 of 1,000, 2.00 updates/s, 8 min left",))
        assert f"running: results/{STUDENT}" in by_path(layout)["align/kd_unlabelled/test.parquet"].why
    assert by_path(layout)[STUDENT].why == ()  # without a checkpoint it starts anew
    (Path(model).parent / "checkpoints/last.pt").touch()
    row = by_path(layout)[STUDENT]
    assert (row.state, row.why) == ("missing", ("stopped after update 40 of 1,000, to be resumed",))


def test_a_shard_that_is_made_is_running(maker: Maker) -> None:
    with claimed(layout_of().shards_of("teacher")[0]):
        assert by_path(layout_of())["targets/teacher/train/part-00000.parquet"].state == "running"


def test_all_attempts_of_a_training_count(maker: Maker) -> None:
    edit_record(layout_of().teacher, training_seconds=7200.0)
    assert by_path(layout_of())["teacher/model.pt"].seconds == 7200.0


def test_a_sweep_is_a_phase_of_its_own_and_decodes_dev_alone(maker: Maker) -> None:
    swept = layout_of({"sweep": {"kd_unlabelled": {"kd.weight": [0.2, 2.0]}}})
    found = [row for row in by_path(swept).values() if row.artifact.phase == "sweep"]
    assert [row.artifact.rule for row in found] == [
        *(rule for rule in ("train_student", "decode_testset", "score_testset") for _ in range(2)),
        "choose",
    ]


def test_the_table_has_a_line_for_a_series_and_names_the_odd_ones(maker: Maker) -> None:
    layout = layout_of()
    Path(layout.shards_of("teacher")[1]).unlink()
    lines = text_of(layout).splitlines()
    at = next(i for i, line in enumerate(lines) if "part-*" in line)
    assert re.split("  +", lines[at].strip())[1:] == ["2 present, 1 missing", "7.0", "96 B", "2026-11-25 22:52"]
    assert lines[at + 1] == "      missing: part-00001.parquet"
    assert sum("/part-0" in line for line in text_of(layout, each=True).splitlines()) == 3
    assert "1 missing; " in lines[-1]
    assert lines[-1].startswith(f"{len(layout.artifacts())} artifacts: ")


def test_at_most_five_of_a_series_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layout = layout_of({"corpus": {"num_shards": 12}})
    maker = Maker()
    maker.make_all(layout)
    for shard in layout.shards_of("teacher")[:8]:
        Path(shard).unlink()
    names = ", ".join(f"part-{number:05d}.parquet" for number in range(5))
    assert f"      missing: {names} and 3 more\n" in text_of(layout)


@pytest.mark.slow
def test_thousands_of_shards_are_listed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layout = layout_of({"corpus": {"num_shards": 2000}})
    Maker().make_all(layout)
    started = time.process_time()
    text = text_of(layout)
    seconds = time.process_time() - started
    print(f"\n{len(layout.artifacts()):,} artifacts in {seconds:.2f} s of CPU")
    assert "2,000 present" in text
    assert len(text.splitlines()) < 60
    assert seconds < 5
