"""Broken configurations: through `kdtrans.config.read`, the stages' own sections, and Snakemake."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kdtrans.__main__ import one_screen
from kdtrans.config import Config, ConfigError, CorpusConfig, read, validate
from tests.hostile.judge import TEXT, Judge, Run, examples
from tests.hostile.material import SoundCorpus
from tests.tiny import Workspace

KIND = "configs"
REPOSITORY = Path(__file__).parents[2]
DEFAULTS: dict[str, Any] = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
JUNK: list[Any] = [
    *(float("nan"), float("inf"), float("-inf"), -1, -0.5, 10**30, 10**400, 1e308, True, False),
    *(
        "",
        "x",
        "nan",
        "${HOME",
        "$(touch executed)",
        "`id`",
        "../../etc",
        "a\0b",
        "\ud800",
        "x" * 100_000,
        "{0.__class__}",
    ),
    *([], {}, [[]], [None], {"a": {"b": []}}, [1, "a", None], list(range(500)), dict.fromkeys(map(str, range(500)))),
]


def read_whole(judge: Judge, path: Path, *names: str) -> Config | None:
    """Read a whole configuration, as a stage would say it; None: it was refused, in a screen that says these words."""
    try:
        return read(Config, path)
    except (ConfigError, OSError) as error:
        judge.check_refusal(KIND, Run(1, "", f"kdtrans: error: {one_screen(str(error))}\n"), *names)
        return None


def keys(values: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from keys(value, (*above, key))


KEYS = list(keys(DEFAULTS))


@examples(80)
@given(st.sampled_from(KEYS), st.sampled_from(["put", "rename", "nest", "copy"]), st.integers(0, 2**32))
def test_changed_keys(judge: Judge, folder: Path, at: tuple[str, ...], change: str, seed: int) -> None:
    """Whatever stands at a key, the section is refused by a name of it, or every value in it has the type it should."""
    chance, values = random.Random(seed), copy.deepcopy(DEFAULTS)
    inside = values
    for key in at[:-1]:
        inside = inside[key]
    if change == "put":
        inside[at[-1]] = chance.choice(JUNK)
    elif change == "rename":
        inside[at[-1] + chance.choice(["s", " ", "\n", "é", "x" * 1000])] = inside.pop(at[-1])
    elif change == "nest":
        inside[at[-1]] = {at[-1]: inside[at[-1]]}
    else:
        inside[at[-1]] = values[chance.choice(list(values))]
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(values))
    if config := read_whole(judge, path, "changed.yaml"):
        # What was taken means something: it can be written, read again, and is then the same.
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        assert read(Config, path) == config
        judge.counts[KIND]["handled"] += 1


@examples(40)
@given(st.sampled_from(TEXT), st.integers(0, 2**32))
def test_damaged_bytes(judge: Judge, folder: Path, damage: Any, seed: int) -> None:
    path = folder / "damaged.yaml"
    path.write_bytes(damage((REPOSITORY / "config.yaml").read_bytes(), random.Random(seed)))
    if config := read_whole(judge, path, "damaged.yaml"):
        assert validate(Config, config.model_dump(mode="json"), "again") == config
        judge.counts[KIND]["handled"] += 1


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("!!python/object/apply:os.system ['touch executed']", "could not determine a constructor"),
        ("results: !!python/object/new:subprocess.Popen [['touch', 'executed']]", "could not determine a constructor"),
        ("results: !!python/name:os.system", "could not determine a constructor"),
        ("results: !unknown x", "could not determine a constructor"),
        ("results: a\nresults: b", "'results' is there twice"),
        ("teacher:\n  training: {lr: 1, lr: 2}", "'lr' is there twice"),
        (BOMB, "this is no configuration"),
        ("a: &a [*a]", "this is no configuration"),
        ("a: &a {b: *a}", "this is no configuration"),
        ("results: " + "[" * 5000, "not YAML"),
        ("results: " + "[" * 100 + "]" * 100, "this is no configuration"),
        ("results: " + "{a: " * 2000 + "}" * 2000, "not YAML"),
        ("results: 2024-13-45", "not YAML"),
        ("results: !!int x", "not YAML"),
        ("results: !!float x", "not YAML"),
        ("results: !!timestamp x", "not YAML"),
        ("results: !!bool x", "not YAML"),
        ("results: !!binary é", "not YAML"),
        ("? [a, b]\n: c", "not YAML"),
        (f"results: {'9' * 5000}", "not YAML"),
        ("results: 'a", "not YAML"),
        ("\tresults: a", "not YAML"),
        ("results: a\n--- \nresults: b", "not YAML"),
        ("results: *nowhere", "not YAML"),
        ("- a\n- b", "found list"),
        ("just words", "found str"),
        ("no", "found bool"),
        ("2024-01-01", "found date"),
        ("results: ''", "results: ''"),
        ("corpus: {test: {test: ['-x']}}", "corpus.test.test.0: '-x' would pass for an option"),
        ("results: 2024-01-01", "results"),
        ('results: "a\\0b"', "control characters"),
        ('results: "a\\e[2Jb"', "control characters"),
        ('results: "\\ud800"', "control characters"),
        ("results: ${NOT_SET_ANYWHERE}/x", "NOT_SET_ANYWHERE"),
        ("1: 2", "1"),
        ("null: 2", "None"),
        ("corpus: {num_shards: 1000000000}", "corpus.num_shards"),
        ("corpus: {test: {no: [x]}}", "corpus.test"),
        ("corpus: {test: {'../x': [x]}}", "corpus.test"),
        ("corpus: {test: {'-x': [x]}}", "corpus.test"),
        ('corpus: {test: {"x\\n": [x]}}', "corpus.test"),
        ("corpus: {speeds: [.nan]}", "corpus.speeds"),
        ("corpus: {synth: {labelled_min: -5}}", "corpus.synth.labelled_min"),
        ("corpus: {synth: {noise_snr_db: [40, 20]}}", "noise_snr_db"),
        ("lm: {order: yes}", "lm.order"),
        ("lm: {texts: abc}", "lm.texts"),
        ("teacher: {training: {lr: .inf}}", "teacher.training.lr"),
        ("teacher: {training: {seed: -1}}", "teacher.training.seed"),
        ("teacher: {training: {clip_norm: -5}}", "teacher.training.clip_norm"),
        ("teacher: {training: {workers: 1000000}}", "teacher.training.workers"),
        ("teacher: {training: {updates: on}}", "teacher.training.updates"),
        ("student: {encoder: {dim: 800000000}}", "student.encoder.dim"),
        ("student: {seeds: [1, 99999999999999]}", "student.seeds"),
        ("student: {kd: {shift: true}}", "student.kd.shift"),
        ("student: {kd: {weight: .nan}}", "student.kd.weight"),
        ("systems: {'; rm -rf ~': {}}", "systems"),
        ("systems: {'$(id)': {}}", "systems"),
        ("systems: {'a b': {}}", "systems"),
        (f"systems: {{{'a' * 300}: {{}}}}", "systems"),
        ("systems: {baseline: 3}", "systems.baseline"),
        ("systems: {baseline: {kd: {weight: {a: b}}}}", "systems.baseline"),
        ("systems: {all: {}, baseline: {}}", "'all' is the name of a stage"),
        ("sweep: {kd: {kd.weight: []}}", "sweep.kd"),
        (
            "sweep: {kd: {kd.weight: [1, 2, 3, 4, 5, 6, 7, 8], kd.shift: [0, 1, 2, 3, 4, 5, 6, 7, 8], "
            "training.seed: [1, 2, 3, 4, 5, 6, 7, 8], training.updates: [1, 2, 3, 4, 5]}}",
            "sweep.kd: 2,880",
        ),
        ("sweep: {kd: {kd.loss: ['$(touch executed)']}}", "no name for a folder"),
        ("sweep: {kd: {'': [1]}}", "sweep.kd"),
        ("sweep: {kd: {kd.weight: [{a: b}]}}", "sweep.kd"),
        ("decode: {searches: {greedy: null, beam_lm: null}}", "decode.searches is empty"),
        ("decode: {lm_weights: []}", "decode.lm_weights is empty"),
        ("decode: {lm_weights: [.nan]}", "decode.lm_weights"),
        ("decode: {searches: {greedy: {beam: 99999}}}", "decode.searches.greedy.beam"),
        ("report: {baseline: '../x'}", "report.baseline"),
        ("report: {title: [a]}", "report.title"),
    ],
)
def test_texts(judge: Judge, folder: Path, text: str, said: str) -> None:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    assert read_whole(judge, path, "mine.yaml", said) is None
    assert not Path("executed").exists()


def test_files_that_are_none(judge: Judge, folder: Path, corpora: dict[str, SoundCorpus]) -> None:
    corpus, path = corpora["folder"], folder / "none.yaml"
    command = ["prepare", "--config", path, "--root", corpus.root, "--out-dir", folder / "none"]
    judge.refused(KIND, command, str(path))
    for content in (
        b"\xff\xfe\x00",
        b"\x00",
        b"name: \xff",
        bytes(range(256)),
        b"PK\x03\x04" + bytes(100),
        b"[" * 10_000,
    ):
        path.write_bytes(content)
        judge.refused(KIND, command, str(path))
    path.unlink()
    path.mkdir()
    judge.refused(KIND, command, str(path))
    path.rmdir()
    path.symlink_to(folder / "nowhere.yaml")
    judge.refused(KIND, command, str(path))
    path.unlink()


@pytest.mark.parametrize("stage", ["teacher", "student", "targets"])
def test_sections(judge: Judge, work: Workspace, folder: Path, stage: str) -> None:
    """Each stage checks its own section before anything else."""
    path = folder / "section.yaml"
    commands = {
        "teacher": ["train-teacher", "--train", work.train, "--dev", work.dev, "--checkpoints", folder / "c"],
        "student": ["train-student", "--train", work.train, "--dev", work.dev, "--checkpoints", folder / "c"],
        "targets": ["dump", "--model", work.teacher, "--cuts", work.train],
    }
    command = [*commands[stage], "--config", path, "--tokenizer", work.tokenizer, "--out", folder / "out"]
    for text in (
        "max_duration_s: -1",
        "seed: on",
        "a: &a [*a]",
        "search: {beam: x}",
        "training: {updates: .nan}",
        "- a",
    ):
        path.write_text(text)
        judge.refused(KIND, command, "section.yaml")


def test_what_is_meant_is_taken(judge: Judge, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unusual but sound: anchors, merge keys, numbers that YAML takes for words, names in other scripts."""
    monkeypatch.setenv("SOMEWHERE", "/data/a b;'\"$(id)")
    path = folder / "unusual.yaml"
    path.write_text(
        "\ufeffresults: 'résultats ; rm -rf ~ $(id)'\n"
        "corpus: {root: '${SOMEWHERE}', test: {test: ['a b', '; ls', '*', '日本']}}\n"
        "teacher: {training: &t {lr: 1e-3, updates: 1_000}}\n"
        "student: {training: {<<: *t, lr: '2e-3'}}\n"
        "report: {title: '<script>alert(1)</script>'}\n",
        encoding="utf-8",
    )
    config = read(Config, path)
    assert config.results == "résultats ; rm -rf ~ $(id)"
    assert config.corpus.root == "/data/a b;'\"$(id)"
    assert config.corpus.test["test"] == ["a b", "; ls", "*", "日本"]
    assert (config.teacher.training.lr, config.student.training.lr) == (1e-3, 2e-3)
    assert config.student.training.updates == 1000
    judge.counts[KIND]["handled"] += 1
    path.write_text("name: folder\nlabelled: ['a b']\n")
    assert read(CorpusConfig, path).labelled == ["a b"]
    judge.counts[KIND]["handled"] += 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("corpus: {num_shards: 1000000000}", "corpus.num_shards"),
        ("systems: {'; touch executed': {kd: {weight: .nan}}}", "systems"),
    ],
)
def test_snakemake(judge: Judge, folder: Path, text: str, said: str) -> None:
    over = folder / "over.yaml"
    over.write_text(text)
    configs = ["config.yaml", "workflow/configs/tiny.yaml", over]
    command = [sys.executable, "-m", "snakemake", "--dry-run"]
    found = subprocess.run(
        [*command, "--directory", folder, "--snakefile", "Snakefile", "--configfile", *map(os.fspath, configs)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    judge.check_refusal(KIND, Run(found.returncode, "", found.stdout + found.stderr), said)
    assert not list(folder.glob("**/executed"))
