"""config.yaml says what kdtrans/config.py does, and a configuration that cannot work is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdtrans.config import Config, ConfigError, json_schema, load, merge, read, validate

REPOSITORY = Path(__file__).parents[2]
DEFAULTS = REPOSITORY / "config.yaml"
# A second teacher's targets along the paths of the first.
SECOND: dict[str, Any] = {"teacher": {}, "second": {"teachers": ["other.pt"], "along": "teacher"}}
COLLAPSED = {"unlabelled": True, "kd": {"weight": 1.0, "loss": "collapsed"}}
PRESETS = sorted((REPOSITORY / "workflow/configs").glob("*.yaml"))


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return leaves


def test_config_yaml_spells_out_every_default() -> None:
    assert flat(yaml.safe_load(DEFAULTS.read_text())) == flat(Config().model_dump(mode="json"))
    assert read(Config, DEFAULTS) == Config()


def test_files_are_laid_over_the_default_as_snakemake_does(tmp_path: Path) -> None:
    default, first, second = (tmp_path / name for name in ("config.yaml", "first.yaml", "second.yaml"))
    default.write_text("{results: here, lm: {order: 5}}")
    first.write_text("{lm: {order: 3, transcripts: false}}")
    second.write_text("{lm: {order: 2}}")
    loaded = load([first, second], default)
    assert (loaded.results, loaded.lm.order, loaded.lm.transcripts) == ("here", 2, False)
    assert load([], default).lm.order == 5
    default.unlink()
    assert load([first], default).results == "results"
    with pytest.raises(ConfigError, match=r"config\.yaml does not exist: .*--config"):
        load([], default)
    with pytest.raises(ConfigError, match=r"third\.yaml does not exist"):
        load([tmp_path / "third.yaml"], default)


def test_schema_file_is_current() -> None:
    """`kdtrans schema --out workflow/schemas/config.schema.json` writes it anew."""
    assert json.loads((REPOSITORY / "workflow/schemas/config.schema.json").read_text()) == json_schema()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_are_valid_over_the_defaults(preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AN4_ROOT", "WHISPER_BASE", "LIBRISPEECH"):
        monkeypatch.setenv(variable, "/data")
    values = merge(yaml.safe_load(DEFAULTS.read_text()), yaml.safe_load(preset.read_text()))
    config = validate(Config, values, preset.name)
    assert "${" not in str(config)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"teecher": {}}, ["unknown key 'teecher'"]),
        ({"teacher": {"training": {"epochs": 3}}}, ["unknown key 'teacher.training.epochs'"]),
        ({"teacher": {"training": {"lr": "fast"}}}, ["teacher.training.lr", "fast"]),
        ({"corpus": {"num_shards": 0}}, ["corpus.num_shards", "0"]),
        ({"corpus": {"dev": []}}, ["corpus.dev is empty", "dev_fraction"]),
        ({"corpus": {"test": {"dev": ["dev"]}}}, ["'dev'"]),
        ({"corpus": {"speeds": [0.9, 1.0, 0.9]}}, ["corpus.speeds [0.9, 1.0, 0.9]", "twice"]),
        ({"corpus": {"split": {"dev_fraction": 0.3, "labelled_fraction": 0.8}}}, ["0.3", "0.8"]),
        ({"student": {"encoder": {"conv_kernel": 14}}}, ["conv_kernel 14", "odd"]),
        ({"student": {"training": {"phases": [0.1, 0.1, 0.1]}}}, ["phases"]),
        ({"systems": {"baseline": {"kd": {"wait": 1}}}}, ["systems.baseline", "kd.wait"]),
        ({"systems": {"baseline": {}, "teacher": {}}}, ["'teacher' is the name of a stage"]),
        ({"report": {"baseline": "none"}}, ["report.baseline 'none'"]),
        ({"targets": {"lm_weight": 0.3}}, ["targets: lm_weight", "search.lm"]),
        ({"targets": {"search": {"type": "beam", "lm": "lstm"}}}, ["targets: search.lm: lstm", "lm_weight 0"]),
        ({"targets": {"nbest": 3}}, ["nbest 3", "this one: 1"]),
        ({"targets": {"search": {"chunk_ms": 320}}}, ["chunk_ms"]),
        ({"target_sets": {"fused": {"topk": 3}}}, ["target_sets.fused", "unknown key 'topk'"]),
        ({"systems": {"baseline": {}, "kd": {"unlabelled": True, "targets": "fused"}}}, ["systems.kd", "'fused'"]),
        (
            {"target_sets": {"two": {"along": "one"}}},
            ["target_sets.two: along 'one'", "none of the other target_sets []"],
        ),
        ({"target_sets": {"two": {"along": "two"}, "teacher": {}}}, ["along 'two'", "['teacher']"]),
        ({"target_sets": {**SECOND, "third": {"along": "second"}}}, ["target_sets.third", "follows 'teacher' itself"]),
        ({"teachers": {"second": {"updates": 3}}}, ["teachers.second", "unknown key 'updates'"]),
        (
            {"teachers": {"second": {}}, "target_sets": {"second": {"teachers": ["teacher", "secnd"]}}},
            ["target_sets.second: teacher 'secnd' is none of ['teacher', 'second']"],
        ),
        ({"teachers": {"teacher": {}}}, ["teachers: 'teacher' is the name of the first one"]),
        ({"targets": {"teachers": ["teacher", "teacher"]}}, ["targets.teachers", "names a teacher twice"]),
        ({"target_sets": {"two": {"teachers": []}}}, ["target_sets.two", "teachers", "at least 1"]),
        (
            {"target_sets": SECOND, "systems": {"baseline": {}, "kd": {**COLLAPSED, "targets": "second"}}},
            ["systems.kd", "kd.loss collapsed", "'second' are those of other.pt"],
        ),
        ({"student": {"kd": {"encoder_weight": 0.3, "shift": "auto"}}}, ["kd.shift: auto", "set kd.weight"]),
        ({"student": {"kd": {"loss": "full_sum", "shift": 2}}}, ["kd.shift", "full_sum"]),
        ({"student": {"encoder": {"streaming": {"chunk_ms": 50}}}}, ["chunk_ms", "50"]),
        ({"sweep": {"nobody": {"kd.weight": [1.0]}}}, ["sweep: 'nobody'"]),
        ({"sweep": {"kd": {"kd.wait": [1.0]}}}, ["sweep.kd", "kd.wait"]),
        ({"sweep": {"kd": {"filters.max_length_ratio": ["../x"]}}}, ["no name for a folder"]),
        ({"sweep": {"kd": {"targets": ["fused"]}}}, ["sweep.kd", "'fused'"]),
        ({"systems": {"baseline": {}, "baseline-lr_1": {}}, "sweep": {"baseline": {"training.lr": [1]}}}, ["-lr_1'"]),
        ({"systems": {"baseline": {"seeds": [1, 2]}, "baseline-seed2": {}}}, ["two runs", "baseline-seed2"]),
        ({"decode": {"searches": {"greedy": {"lm": "ngram"}}}}, ["decode.searches.greedy", "beam"]),
        ({"decode": {"searches": {"k2": {"type": "fsa", "lm": "lstm"}}}}, ["searches.k2", "lm: lstm", "lm: ngram"]),
        ({"decode": {"searches": {"k2": {"type": "fsa", "ilm_weight": 0.3}}}}, ["ilm_weight: 0.3", "type: beam"]),
        ({"decode": {"searches": {"beam": {"type": "beam", "density_ratio": 0.3}}}}, ["density_ratio: 0.3 needs lm"]),
        (
            {"targets": {"lm_weight": 0.2, "search": {"type": "beam", "lm": "ngram", "density_ratio": 0.3}}},
            ["search.density_ratio: 0.3 is for decoding"],
        ),
        (
            {"decode": {"searches": {"k2": {"type": "fsa", "lm": "ngram", "rescore": "x"}}}},
            ["rescore: x", "type: beam"],
        ),
        (
            {"decode": {"searches": {"one": {}, "again": {"type": "beam", "lm": "ngram", "rescore": "one"}}}},
            ["searches.again.rescore: 'one' is no search of type beam or fsa"],
        ),
        (
            {"decode": {"searches": {"k2": {"type": "fsa"}}}, "student": {"predictor": {"type": "lstm"}}},
            ["systems.baseline: predictor.type is lstm", "decode.searches.k2.type is fsa", "predictor.type: stateless"],
        ),
        (
            {"decode": {"searches": {"k2": {"type": "fsa"}}}, "sweep": {"kd": {"predictor.type": ["lstm"]}}},
            ["sweep.kd", "predictor.type is lstm", "type is fsa"],
        ),
        (
            {"systems": {"baseline": {"splice": 0.5, "kd": {"weight": 1.0, "loss": "full_sum"}}}},
            ["splice 0.5", "full_sum"],
        ),
        ({"targets": {"search": {"type": "fsa"}}}, ["targets: search.type: fsa", "take beam"]),
    ],
)
def test_refusals_name_the_key_and_the_value(values: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        validate(Config, values, "my.yaml")
    assert str(refusal.value).startswith("my.yaml: ")
    for words in said:
        assert words in str(refusal.value)


def test_null_takes_a_named_entry_away() -> None:
    values = {
        "corpus": {"test": {"test": None, "clean": ["test-clean"]}},
        "systems": {"baseline": {}, "hard": None},
        "decode": {"searches": {"greedy": {}, "beam_lm": None}},
    }
    config = validate(Config, values, "my.yaml")
    assert config.corpus.test == {"clean": ["test-clean"]}
    assert config.systems == {"baseline": {}}
    assert list(config.decode.searches) == ["greedy"]


def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AN4_ROOT", raising=False)
    with pytest.raises(ConfigError, match="AN4_ROOT"):
        validate(Config, {"corpus": {"root": "${AN4_ROOT}/an4"}}, "my.yaml")


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match=r"list\.yaml"):
        read(Config, path)


def test_a_system_is_the_student_with_its_own_entries_over_it() -> None:
    config = validate(
        Config,
        {"student": {"kd": {"temperature": 2.0}}, "systems": {"baseline": {}, "kd": {"kd": {"weight": 0.1}}}},
        "my.yaml",
    )
    assert config.system("baseline") == config.student
    assert not config.system("baseline").reads_targets
    assert config.student.model_copy(update={"splice": 0.5}).reads_targets
    assert config.system("kd").kd.temperature == 2.0
    assert config.system("kd").reads_targets


def test_seeds_make_runs_of_their_own() -> None:
    config = validate(Config, {"systems": {"baseline": {"seeds": [3, 4]}, "kd": {"kd": {"weight": 1.0}}}}, "my.yaml")
    runs = config.runs()
    assert {name: (run.system, run.config.training.seed) for name, run in runs.items()} == {
        "baseline-seed3": ("baseline", 3),
        "baseline-seed4": ("baseline", 4),
        "kd": ("kd", 1),
    }
    one = validate(Config, {"systems": {"baseline": {"seeds": [3]}}}, "my.yaml").runs()
    assert {name: run.config.training.seed for name, run in one.items()} == {"baseline": 3}


def test_a_sweep_makes_a_run_for_each_combination() -> None:
    values = {"sweep": {"kd": {"kd.weight": [0.2, 1.0], "kd.shift": [0, "auto"]}}}
    runs = validate(Config, values, "my.yaml").sweep_runs()
    found = {name: (run.config.kd.weight, run.config.kd.shift) for name, run in runs.items()}
    assert found == {
        "kd-weight_0.2-shift_0": (0.2, 0),
        "kd-weight_0.2-shift_auto": (0.2, "auto"),
        "kd-weight_1.0-shift_0": (1.0, 0),
        "kd-weight_1.0-shift_auto": (1.0, "auto"),
    }
    assert all(run.system == "kd" for run in runs.values())


def test_a_streaming_system_starts_from_the_defaults() -> None:
    config = validate(Config, {"systems": {"baseline": {}, "s": {"encoder": {"streaming": {}}}}}, "my.yaml")
    assert config.system("baseline").encoder.streaming is None
    streaming = config.system("s").encoder.streaming
    assert streaming is not None
    assert streaming.chunk_ms in streaming.train_chunks_ms


def test_a_target_set_is_the_targets_with_its_own_entries_over_them() -> None:
    config = validate(Config, {"target_sets": {"teacher": {}, "eight": {"top_k": 3}}}, "my.yaml")
    assert config.target_set("teacher") == config.targets
    assert config.target_set("eight").top_k == 3


def test_a_further_teacher_is_the_teacher_with_its_own_entries_over_it() -> None:
    config = validate(Config, {"teachers": {"second": {"training": {"seed": 2}}, "gone": None}}, "my.yaml")
    assert list(config.teachers) == ["second"]
    second = config.further_teacher("second")
    assert second.training.seed == 2
    assert second.model_copy(update={"training": config.teacher.training}) == config.teacher


def test_a_target_set_may_have_several_teachers() -> None:
    sets = {"teacher": {}, "both": {"teachers": ["teacher", "second", "other/model.pt"]}}
    config = validate(Config, {"teachers": {"second": {}}, "target_sets": sets}, "my.yaml")
    assert config.target_set("teacher").teachers == ["teacher"]
    assert config.target_set("both").teachers == ["teacher", "second", "other/model.pt"]
