"""Broken files between stages: manifests, hypotheses, shards, indices, summaries; checkpoints that would run code."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdtrans.__main__ import main
from kdtrans.artifacts import read_json
from kdtrans.contracts import HYPOTHESES, read_footer, write_table
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.targets.store import TargetStore
from tests.hostile.judge import BYTES, Argument, Judge, Run, examples, replaced, run
from tests.tiny import Workspace

KIND = "files"
Damage = Callable[[bytes, random.Random], bytes]
Content = dict[str, Any]


@pytest.fixture(scope="module")
def hypotheses(work: Workspace, folder: Path) -> Path:
    (folder / "greedy.yaml").write_text("searches: {greedy: {max_symbols: 2}}\n")
    out = folder / "hyp.parquet"
    assert main([str(part) for part in decode(work, folder, work.teacher, work.dev, out)]) == 0
    return out


def decode(work: Workspace, folder: Path, model: Path, cuts: Path, out: Path) -> list[Argument]:
    files = ["--model", model, "--cuts", cuts, "--tokenizer", work.tokenizer, "--out", out]
    return ["decode", "--config", folder / "greedy.yaml", "--search", "greedy", *files]


def score(work: Workspace, path: Path, out: Path, cuts: Path | None = None) -> list[Argument]:
    names = ["--run", "teacher", "--system", "teacher", "--search", "greedy", "--testset", "dev"]
    return ["score", "--hypotheses", path, "--cuts", cuts or work.dev, *names, "--out", out]


def student(work: Workspace, folder: Path, index: Path) -> list[Argument]:
    out = folder / "student" / "model.pt"
    shutil.rmtree(out.parent, ignore_errors=True)
    return [*work.student_command(index, out)]


# ---------------------------------------------------------------------------------------------------------- hypotheses
@examples(25)
@given(st.sampled_from(BYTES), st.integers(0, 2**32))
def test_damaged_hypotheses(
    judge: Judge, work: Workspace, folder: Path, hypotheses: Path, damage: Damage, seed: int
) -> None:
    out = folder / "dev.score.json"
    assert run(score(work, hypotheses, out)).status == 0
    expected = read_json(out)

    def sound(done: Run) -> bool:
        found = read_json(out)
        return all(found[key] == expected[key] for key in ("wer", "cer", "sub", "dele", "ins", "words"))

    with replaced(hypotheses, damage(hypotheses.read_bytes(), random.Random(seed))):
        judge.judged(KIND, score(work, hypotheses, out), str(hypotheses), sound)
        judge.judged(KIND, ["inspect", hypotheses], hypotheses.name, lambda done: hypotheses.name in done.out)


def with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, HYPOTHESES.field(name).type))


def not_utf8(table: pa.Table) -> pa.Table:
    text = pa.array([b"\xff\xfe"] * len(table), pa.binary()).view(pa.string())
    return table.set_column(table.schema.get_field_index("text"), "text", text)


TABLES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "no rows": lambda table: table.slice(0, 0),
    "one fewer": lambda table: table.slice(1),
    "one twice": lambda table: pa.concat_tables([table, table.slice(0, 1)]),
    "another": lambda table: with_column(table, "utt_id", ["; rm -rf /", *table["utt_id"].to_pylist()[1:]]),
    "no id": lambda table: with_column(table, "utt_id", [None] * len(table)),
    "no rank": lambda table: with_column(table, "rank", [None] * len(table)),
    "rank 1": lambda table: with_column(table, "rank", [1] * len(table)),
    "no text": lambda table: with_column(table, "text", [None] * len(table)),
    "not UTF-8": not_utf8,
    "a column less": lambda table: table.drop_columns(["text"]),
    "a column more": lambda table: table.append_column("more", pa.array([1] * len(table))),
    "other columns": lambda table: pa.table({"a": [1]}),
    "other types": lambda table: table.set_column(1, "rank", pa.array([0.0] * len(table))),
}


@pytest.mark.parametrize("change", TABLES)
def test_hypotheses_that_lie(judge: Judge, work: Workspace, folder: Path, hypotheses: Path, change: str) -> None:
    path = folder / "lying.parquet"
    write_table(TABLES[change](pq.read_table(hypotheses)), path, read_footer(hypotheses))
    judge.refused(KIND, score(work, path, folder / "lying.score.json"), str(path))


@pytest.mark.parametrize("key", ["parameters", "decode_seconds", "audio_seconds", "lm_weight", "latency_ms"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "many", "1e999"])
def test_footers_that_lie(judge: Judge, work: Workspace, folder: Path, hypotheses: Path, key: str, value: str) -> None:
    path = folder / "footer.parquet"
    write_table(pq.read_table(hypotheses), path, read_footer(hypotheses) | {key: value})
    judge.refused(KIND, score(work, path, folder / "footer.score.json"), str(path), key)


def test_rescoring_what_cannot_be(judge: Judge, work: Workspace, folder: Path, hypotheses: Path) -> None:
    path, arpa = folder / "nbest.parquet", folder / "unigram.arpa"
    arpa.write_text("\\data\\\nngram 1=1\n\\1-grams:\n-1 o\n\\end\\\n")
    (folder / "rescore.yaml").write_text(
        "searches: {greedy: {type: beam}, again: {type: beam, lm: ngram, rescore: greedy}}\n"
    )
    files = ["--nbest", path, "--dev", path, "--dev-cuts", work.dev, "--tokenizer", work.tokenizer, "--lm", arpa]
    command = ["rescore", "--config", folder / "rescore.yaml", "--search", "again", *files]
    table, footer = pq.read_table(hypotheses), read_footer(hypotheses)
    broken = {
        "of 14": (with_column(table, "tokens", [[60000]] * len(table)), footer),
        "nulls in column tokens": (with_column(table, "tokens", [[None]] * len(table)), footer),
        "decode_seconds": (table, {key: value for key, value in footer.items() if key != "decode_seconds"}),
        "tokenizer": (table, footer | {"tokenizer_sha256": "x"}),
        "search": (table, footer | {"search": "$(id)"}),
    }
    size = Tokenizer(work.tokenizer).vocab_size
    for said, (rows, facts) in broken.items():
        write_table(rows, path, facts)
        said = said.replace("14", str(size))
        judge.refused(KIND, [*command, "--out", folder / "again.parquet"], str(path), said)


# ----------------------------------------------------------------------------------------------------------- manifests
def changed(name: str, value: Any) -> Callable[[Content], Content]:
    """The cut with another value at a.b.c; None takes it away."""

    def change(cut: Content) -> Content:
        inside: Any = cut
        *path, last = [int(part) if part.isdigit() else part for part in name.split(".")]
        for part in path:
            inside = inside[part]
        if value is None:
            del inside[last]
        else:
            inside[last] = value
        return cut

    return change


EXECUTE = "touch executed"
SOURCE = "recording.sources.0"
CUTS: dict[str, Callable[[Content], Any]] = {
    "a list": lambda cut: [cut],
    "a number": lambda cut: 7,
    "null": lambda cut: None,
    "nothing": lambda cut: {},
    "a word": lambda cut: "cut",
    "deep": lambda cut: json.loads("[" * 900 + "]" * 900),
    "a command": changed(SOURCE, {"type": "command", "channels": [0], "source": EXECUTE}),
    "a URL": changed(SOURCE, {"type": "url", "channels": [0], "source": "https://localhost/x"}),
    "memory": changed(SOURCE, {"type": "memory", "channels": [0], "source": "UklGRg=="}),
    "of shar": changed(SOURCE, {"type": "shar", "channels": [0], "source": ""}),
    "source is none": changed(f"{SOURCE}.source", 5),
    "no sources": changed("recording.sources", None),
    "sources are none": changed("recording.sources", "abc"),
    "recording is none": changed("recording", [1]),
    "8 kHz": changed("recording.sampling_rate", 8000),
    "no rate": changed("recording.sampling_rate", None),
    "unknown transform": changed("recording.transforms", [{"name": "Exec", "kwargs": {"cmd": EXECUTE}}]),
    "transform is none": changed("recording.transforms", "x"),
    "mixed": changed("type", "MixedCut"),
    "no type": changed("type", None),
    "no id": changed("id", None),
    "id is empty": changed("id", ""),
    "id is a list": changed("id", ["a"]),
    "id is half a character": changed("id", "\ud800"),
    "id is a number": changed("id", 5),
    "text is a number": changed("supervisions.0.text", 5),
    "text is a list": changed("supervisions.0.text", ["ONE"]),
    "text is half a character": changed("supervisions.0.text", "\udfff"),
    "speaker is a number": changed("supervisions.0.speaker", 3),
    "two supervisions": lambda cut: cut | {"supervisions": cut["supervisions"] * 2},
    "no supervision": changed("supervisions", []),
    "supervision is none": changed("supervisions", [5]),
    "duration nan": changed("duration", float("nan")),
    "duration inf": changed("duration", float("inf")),
    "duration -1": changed("duration", -1),
    "duration 0": changed("duration", 0),
    "duration is text": changed("duration", "1.0"),
    "duration is a switch": changed("duration", True),
    "start nan": changed("start", float("nan")),
    "start -1": changed("start", -1),
    "no start": changed("start", None),
    "an array": changed("shape", [1, 2]),
    "a picture": changed("width", 3),
}


@pytest.mark.parametrize("change", CUTS)
def test_manifests_that_lie(judge: Judge, work: Workspace, folder: Path, hypotheses: Path, change: str) -> None:
    path = folder / "lying.jsonl.gz"
    first, *others = gzip.decompress(work.dev.read_bytes()).decode().splitlines()
    lines = [*others, json.dumps(CUTS[change](json.loads(first)))]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    (folder / "char.yaml").write_text("type: char\n")
    command = ["tokenizer", "--config", folder / "char.yaml", "--cuts", path, "--out", folder / "t.model"]
    judge.refused(KIND, command, f"{path}:{len(lines)}")
    if change not in (
        "8 kHz",
        "no rate",
        "no type",
        "no start",
        "unknown transform",
        "transform is none",
        "an array",
        "a picture",
    ):
        judge.refused(KIND, score(work, hypotheses, folder / "m.score.json", path), f"{path}:{len(lines)}")
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "source", [f"pipe:{EXECUTE}", f"{EXECUTE} |", f"|{EXECUTE}", "http://localhost/x", "-", "/dev/tty"]
)
def test_audio_that_is_no_file(judge: Judge, work: Workspace, folder: Path, hypotheses: Path, source: str) -> None:
    path, (first, *_) = folder / "sources.jsonl.gz", gzip.decompress(work.dev.read_bytes()).decode().splitlines()
    cut = changed(f"{SOURCE}.source", source)(json.loads(first))
    path.write_bytes(gzip.compress(json.dumps(cut).encode()))
    judge.refused(KIND, decode(work, folder, work.teacher, path, folder / "d.parquet"), cut["id"], source)
    assert not Path("executed").exists()


@examples(25)
@given(st.sampled_from(BYTES), st.integers(0, 2**32))
def test_damaged_manifests(
    judge: Judge, work: Workspace, folder: Path, hypotheses: Path, damage: Damage, seed: int
) -> None:
    path, chance = folder / "damaged.jsonl.gz", random.Random(seed)
    whole = work.dev.read_bytes()
    plain = gzip.decompress(whole)
    path.write_bytes(damage(whole, chance) if seed % 2 else gzip.compress(damage(plain, chance)))
    out = folder / "damaged.score.json"
    judge.judged(
        KIND, score(work, hypotheses, out, path), "damaged.jsonl.gz", lambda done: read_json(out)["utterances"] == 3
    ) if seed % 2 else judge.judged(
        KIND, ["inspect", path], "damaged.jsonl.gz", lambda done: "damaged.jsonl.gz" in done.out
    )


def test_manifests_that_are_none(judge: Judge, work: Workspace, folder: Path, hypotheses: Path) -> None:
    path, out = folder / "none.jsonl.gz", folder / "none.score.json"
    for content in (
        b"",
        b"\x1f\x8b",
        b"plain text",
        gzip.compress(b"")[:-4],
        gzip.compress(b"\xff\xfe"),
        b"PK\x03\x04",
    ):
        path.write_bytes(content)
        judge.refused(KIND, score(work, hypotheses, out, path), str(path))
    path.write_bytes(gzip.compress(b"[" * 100_000 + b"\n"))
    judge.refused(KIND, score(work, hypotheses, out, path), str(path))
    path.unlink()
    path.mkdir()
    judge.refused(KIND, score(work, hypotheses, out, path), str(path))
    path.rmdir()
    judge.refused(KIND, score(work, hypotheses, out, path), str(path))


# -------------------------------------------------------------------------------------------------------------- shards
@examples(20)
@given(st.sampled_from(BYTES), st.integers(0, 2**32))
def test_damaged_shards(judge: Judge, work: Workspace, folder: Path, damage: Damage, seed: int) -> None:
    command = work.verify_command(work.teacher, work.part.parent)
    with replaced(work.part, damage(work.part.read_bytes(), random.Random(seed))):
        judge.judged(KIND, ["inspect", work.part], work.part.name, lambda done: work.part.name in done.out)
        judge.judged(KIND, ["inspect", work.part, "--utt", "utt00"], work.part.name, lambda done: "utt00" in done.out)
        judge.refused(KIND, command, str(work.part))  # by the hash in its record
    assert run(command).status == 0


@examples(10)
@given(st.sampled_from(BYTES), st.integers(0, 2**32), st.sampled_from(["index.json", "index.arrow"]))
def test_damaged_index(judge: Judge, work: Workspace, folder: Path, damage: Damage, seed: int, name: str) -> None:
    broken, chance = work.part.parent / name, random.Random(seed)
    with replaced(broken, damage(broken.read_bytes(), chance)):
        judge.judged(KIND, student(work, folder, work.index), str(work.part.parent), lambda done: reads(work))
        if name == "index.arrow":
            judge.judged(
                KIND, ["inspect", work.part.parent, "--utt", "utt00"], str(broken), lambda done: "utt00" in done.out
            )


def reads(work: Workspace) -> bool:
    pieces = Tokenizer(work.tokenizer)
    store = TargetStore(work.index, pieces.sha256, pieces.vocab_size)
    return all(store.target(cut.id, 0).utt_id == cut.id for cut in work.cuts)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "null", "{}", '{"shards": []}', '{"shards": 7}', "[" * 5000, '{"shards": [{"path": 3}]}'],
)
def test_index_that_lies(judge: Judge, work: Workspace, folder: Path, text: str) -> None:
    with replaced(work.index, text.encode()):
        judge.refused(KIND, student(work, folder, work.index), str(work.index))


# --------------------------------------------------------------------------------------------------------- checkpoints
class Evil:
    """What a pickle may hold: loaded, it runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (EXECUTE,)


def legacy(path: Path) -> None:
    torch.save({"state_dict": Evil()}, path, _use_new_zipfile_serialization=False)


def inside_zip(path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, pickle.dumps(Evil()) if name.endswith("data.pkl") else content)


EVIL: dict[str, Callable[[Path], object]] = {
    "torch.save": lambda path: torch.save({"state_dict": Evil()}, path),
    "legacy": legacy,
    "pickle": lambda path: path.write_bytes(pickle.dumps(Evil())),
    "old pickle": lambda path: path.write_bytes(pickle.dumps(Evil(), protocol=0)),
    "numpy": lambda path: np.save(path.open("wb"), np.array([Evil()], dtype=object), allow_pickle=True),
    "zip": inside_zip,
    "a whole module": lambda path: torch.save(torch.nn.Linear(1, 1), path),
    "a shell script": lambda path: path.write_text(f"#!/bin/sh\n{EXECUTE}\n"),
    "eval": lambda path: path.write_bytes(b'cbuiltins\neval\n(S\'__import__("os").system("touch executed")\'\ntR.'),
}


@pytest.mark.parametrize("kind", EVIL)
def test_checkpoints_that_would_run_code(
    judge: Judge, work: Workspace, folder: Path, hypotheses: Path, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    EVIL[kind](path)
    (folder / "lstm-search.yaml").write_text("searches: {s: {type: beam, lm: lstm}}\n")
    files = ["--model", work.teacher, "--cuts", work.dev, "--tokenizer", work.tokenizer, "--lm", path]
    commands: list[list[Argument]] = [
        ["inspect", path],
        ["gate", "--config", work.config("teacher"), "--model", path, "--out", tmp_path / "gate.json"],
        decode(work, folder, path, work.dev, tmp_path / "d.parquet"),
        [*work.dump_command(path, tmp_path / "part-00000.parquet")],
        [*work.verify_command(path, work.part.parent)],
        ["transcribe", "--model", path, "--tokenizer", work.tokenizer, "--audio", work.folder / "utt00.flac"],
        ["tune-lm", "--config", folder / "lstm-search.yaml", "--search", "s", *files, "--out", tmp_path / "w.json"],
    ]
    for command in commands:
        said = judge.refused(KIND, command, str(path))
        assert "weights_only" not in said  # torch's advice to load it all the same
    assert not Path("executed").exists()


MODELS: dict[str, Callable[[Content], Any]] = {
    "a list": lambda content: [1],
    "a tensor": lambda content: torch.zeros(2),
    "no keys": lambda content: {},
    "a key less": lambda content: {key: value for key, value in content.items() if key != "vocab_size"},
    "no weights": lambda content: content | {"state_dict": {}},
    "weights are none": lambda content: content | {"state_dict": "abc"},
    "a weight is none": lambda content: content | {"state_dict": dict.fromkeys(content["state_dict"], "x")},
    "changed weights": lambda content: (
        content | {"state_dict": {name: value + 1 for name, value in content["state_dict"].items()}}
    ),
    "other shapes": lambda content: (
        content | {"state_dict": {name: value[None] for name, value in content["state_dict"].items()}}
    ),
    "no config": lambda content: content | {"config": None},
    "a student's config": lambda content: content | {"kind": "student"},
    "junk config": lambda content: content | {"config": {"; rm -rf /": 1}},
    "wider": lambda content: content | {"config": content["config"] | {"joiner_dim": 16}},
    "architecture is none": lambda content: (
        content | {"config": content["config"] | {"encoder": "x"}, "encoder_architecture": {"a": 1}}
    ),
    "architecture is unknown": lambda content: (
        content
        | {
            "config": content["config"] | {"encoder": "x"},
            "encoder_architecture": {"network": {"model_type": "$(id)"}, "normalises": True},
        }
    ),
    "another tokenizer": lambda content: content | {"tokenizer_sha256": 7},
    "another size": lambda content: content | {"vocab_size": "14"},
    "another fingerprint": lambda content: content | {"fingerprint": None},
}


@pytest.mark.parametrize("change", MODELS)
def test_models_that_lie(judge: Judge, work: Workspace, folder: Path, hypotheses: Path, change: str) -> None:
    path = folder / "lying.pt"
    torch.save(MODELS[change](torch.load(work.teacher, weights_only=True)), path)
    judge.refused(KIND, decode(work, folder, path, work.dev, folder / "d.parquet"), str(path))


@pytest.mark.parametrize("key", ["config", "step", "dev_wer", "state_dict", "kind", "fingerprint"])
@pytest.mark.parametrize("value", [None, "x", [1], float("nan")], ids=str)
def test_inspecting_models_that_lie(judge: Judge, work: Workspace, folder: Path, key: str, value: Any) -> None:
    path = folder / "strange.pt"
    torch.save(torch.load(work.teacher, weights_only=True) | {key: value}, path)
    judge.judged(KIND, ["inspect", path], "strange.pt", lambda done: "strange.pt" in done.out)


@examples(25)
@given(st.sampled_from(BYTES), st.integers(0, 2**32))
def test_damaged_models(
    judge: Judge, work: Workspace, folder: Path, hypotheses: Path, damage: Damage, seed: int
) -> None:
    out = folder / "damaged.parquet"
    with replaced(work.teacher, damage(work.teacher.read_bytes(), random.Random(seed))):
        command = decode(work, folder, work.teacher, work.dev, out)
        judge.judged(
            KIND, command, str(work.teacher), lambda done: pq.read_table(out).equals(pq.read_table(hypotheses))
        )


# ----------------------------------------------------------------------------------------------------------- summaries
@pytest.mark.parametrize("key", ["run", "wer", "words", "latency_ms", "testset", "parameters"])
@pytest.mark.parametrize("value", ["x", [1], True, float("nan"), {"a": 1}], ids=str)
def test_scores_that_lie(judge: Judge, work: Workspace, folder: Path, hypotheses: Path, key: str, value: Any) -> None:
    path = folder / "x.score.json"
    assert run(score(work, hypotheses, path)).status == 0
    if isinstance(value, type(read_json(path)[key])) and value == value:
        pytest.skip("of the type that it should be")
    path.write_text(json.dumps(read_json(path) | {key: value}))
    judge.refused(KIND, ["choose", "--scores", path, "--out", folder / "chosen.json"], str(path), key)
    judge.refused(KIND, ["inspect", path], str(path), key)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "null", "{}", '{"splits": 7}', '{"splits": {"train-labelled": 3}}']
)
def test_summaries_that_lie(judge: Judge, work: Workspace, folder: Path, text: str) -> None:
    prepared = folder / "prepared"
    prepared.mkdir(exist_ok=True)
    for name, cuts in {"train": work.train, "dev": work.dev, "test": work.dev}.items():
        shutil.copy(cuts, prepared / f"{name}.jsonl.gz")
    (prepared / "summary.json").write_text(text)
    (folder / "corpus.yaml").write_text("num_shards: 1\n")
    command = ["check", "--config", folder / "corpus.yaml", "--prepared", prepared, "--tokenizer", work.tokenizer]
    judge.refused(KIND, [*command, "--out-dir", folder / "checked"], str(prepared / "summary.json"))


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 100, b"model", bytes(range(256)), None], ids=["", "0", "t", "b", "d"]
)
def test_tokenizers_that_are_none(judge: Judge, work: Workspace, folder: Path, content: bytes | None) -> None:
    with replaced(work.tokenizer, content):
        judge.refused(KIND, [*work.dump_command(work.teacher, folder / "p.parquet")], str(work.tokenizer))


@pytest.mark.parametrize("name", ["x.parquet", "x.pt", "x.jsonl.gz", "x.score.json", "x.txt", "x"])
def test_inspecting_anything(judge: Judge, folder: Path, name: str) -> None:
    path = folder / "any" / name
    path.parent.mkdir(exist_ok=True)
    for content in (b"", b"\x00" * 64, b"[1]", b"PAR1" * 4, b"N.", b"PK\x05\x06" + bytes(18), b"ARROW1\x00\x00"):
        path.write_bytes(content)
        judge.refused(KIND, ["inspect", path], name)
    path.unlink()
    path.symlink_to(folder / "nowhere")
    judge.refused(KIND, ["inspect", path], name)
    path.unlink()
