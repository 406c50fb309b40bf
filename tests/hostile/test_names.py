"""Strange names of utterances, speakers, files and folders: they come out as they went in, and run nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from kdtrans import __main__
from kdtrans.artifacts import read_json
from kdtrans.data.manifest import read_cuts, speaker_of
from tests.hostile.judge import Argument, Judge, run, run_process
from tests.hostile.material import SoundCorpus, write, write_audio
from tests.tiny import Workspace

KIND = "names"
IN_LISTS = [
    *(
        "a b",
        "o'clock",
        'say "so"',
        "日本語",
        "e\u0301",
        "é",
        "🎉",
        "; rm -rf ~",
        "$(touch executed)",
        "`touch executed`",
    ),
    *(
        "${HOME}",
        "..",
        "../../up",
        "/etc/passwd",
        "-rf",
        "--help",
        "*",
        "[a]?",
        "a|b",
        "a&b>c<d",
        "%s%n",
        "\\",
        "~",
        "#x",
    ),
    *(
        "{0.__class__}",
        "<script>alert(1)</script>",
        "\u202eright to left",
        "zero\u200bwidth",
        "'; DROP TABLE x;--",
        "{shard}",
    ),
    *("[bold]", "a,b", "null", "nan", "0", "x" * 200),
]
IN_FOLDERS = [name for name in IN_LISTS if "/" not in name and name != ".."]
ONLY_IN_FOLDERS = ["line\nbreak", "tab\there", "\x1b[31mred", "carriage\rreturn", " spaces ", "a.b.c", ".hidden"]


def to_the_end(judge: Judge, work: Workspace, corpus: Path, config: Path, out: Path) -> None:
    """prepare, check, dump, verify, decode, score: each must take what the one before wrote."""
    prepared, data, targets = out / "prepared", out / "data", out / "targets"
    tokenizer: list[Argument] = ["--tokenizer", work.tokenizer]
    model: list[Argument] = ["--model", work.teacher, *tokenizer]
    names: list[Argument] = ["--run", "r", "--system", "s", "--search", "greedy", "--testset", "test"]
    part, hypotheses, test = targets / "part-00000.parquet", out / "test.parquet", data / "test"
    (out / "greedy.yaml").write_text("searches: {greedy: {max_symbols: 2}}\n")
    search: list[Argument] = ["--config", out / "greedy.yaml", "--search", "greedy"]
    train = data / "train" / "cuts.00000.jsonl.gz"
    commands: list[list[Argument]] = [
        ["prepare", "--config", config, "--root", corpus, "--out-dir", prepared],
        ["check", "--config", config, "--prepared", prepared, *tokenizer, "--out-dir", data],
        ["dump", "--config", work.config("targets"), *model, "--cuts", train, "--out", part],
        ["verify", targets, "--cuts", data / "train", *model, "--out", targets / "index.json"],
        ["decode", *search, *model, "--cuts", test, "--out", hypotheses],
        ["score", "--hypotheses", hypotheses, "--cuts", test, *names, "--out", out / "test.score.json"],
    ]
    for command in commands:
        judge.handled(KIND, command)


def ids(out: Path) -> dict[str, list[str]]:
    """What the files of `to_the_end` have for ids, in their order."""
    return {
        "targets": pq.read_table(out / "targets" / "part-00000.parquet")["utt_id"].to_pylist(),
        "hypotheses": pq.read_table(out / "test.parquet")["utt_id"].to_pylist(),
        "scores": pq.read_table(out / "test.score.parquet")["utt_id"].to_pylist(),
    }


def corpus_config(path: Path, **changes: object) -> Path:
    roles = {"labelled": ["train"], "unlabelled": [], "dev": ["dev"], "test": {"test": ["test"]}, "num_shards": 1}
    path.write_text(yaml.safe_dump({"name": "folder", **roles, **changes}))
    return path


def test_ids_and_speakers(judge: Judge, work: Workspace, folder: Path) -> None:
    root, out = folder / "ids", folder / "ids-out"
    out.mkdir()
    for part in ("train", "dev", "test"):
        rows = [f"{part}/{number}.wav\tone two\t{name}\t{name}" for number, name in enumerate(IN_LISTS)]
        write(root / f"{part}.tsv", "\n".join(["path\ttext\tspeaker\tid", *rows]))
        for number in range(len(IN_LISTS)):
            write_audio(root / part / f"{number}.wav")
    to_the_end(judge, work, root, corpus_config(folder / "ids.yaml"), out)
    assert {name: sorted(found) for name, found in ids(out).items()} == dict.fromkeys(ids(out), sorted(IN_LISTS))
    assert {cut.id: speaker_of(cut) for cut in read_cuts([out / "data" / "test"])} == {name: name for name in IN_LISTS}
    assert pq.read_table(out / "test.score.parquet")["speaker"].to_pylist() == ids(out)["scores"]
    page = out / "page.html"
    judge.handled(KIND, ["inspect", out / "targets" / "part-00000.parquet", "--html", page, "--most", "2"])
    assert "<script>alert" not in page.read_text()
    for name in IN_LISTS:
        command = ["inspect", out / "targets", f"--utt={name}"]
        found = run(command)
        assert (found.status, "Traceback" in found.err) == (0, False), found.err
        judge.counts[KIND]["handled"] += 1  # this name, all the way
    judge.refused(KIND, ["inspect", out / "targets", "--utt", "$(id)"], "$(id)")
    assert not Path("executed").exists()


def test_file_and_folder_names(judge: Judge, work: Workspace, folder: Path) -> None:
    """Without a list the id is the file's path in its part, and the speaker its folder."""
    root, out = folder / "files", folder / "files-out"
    out.mkdir()
    names = [*IN_FOLDERS, *ONLY_IN_FOLDERS]
    for part in ("train", "dev", "test"):
        for name in names:
            write_audio(root / part / name / f"{name}.wav")
            write(root / part / name / f"{name}.txt", "one two")
    to_the_end(judge, work, root, corpus_config(folder / "files.yaml"), out)
    expected = sorted(f"{name}/{name}" for name in names)
    assert {name: sorted(found) for name, found in ids(out).items()} == dict.fromkeys(ids(out), expected)
    assert {speaker_of(cut) for cut in read_cuts([out / "data" / "test"])} == set(names)
    judge.counts[KIND]["handled"] += len(names)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "name", ["a b", "; touch executed", "$(touch executed)", "'\"", "line\nbreak", "-x", "*", "日本", "{a}", "%d"]
)
def test_folders_of_everything(
    judge: Judge, corpora: dict[str, SoundCorpus], work: Workspace, folder: Path, name: str
) -> None:
    """Corpus, configuration, tokenizer, model, manifests and outputs below a folder of a strange name."""
    here = folder / "everything" / name
    here.mkdir(parents=True)
    shutil.copytree(corpora["folder"].root, here / "corpus")
    for path in (here / "corpus").glob("*.tsv"):
        path.write_text(path.read_text().replace("ONE TWO", "one two"))
    copy = Workspace.__new__(Workspace)
    copy.folder, copy.teacher, copy.tokenizer = here, here / "model.pt", here / "tokenizer.model"
    for source, target in ((work.teacher, copy.teacher), (work.tokenizer, copy.tokenizer)):
        shutil.copy(source, target)
    shutil.copy(work.config("targets"), copy.config("targets"))
    to_the_end(judge, copy, here / "corpus", corpus_config(here / "corpus.yaml"), here)
    assert len(ids(here)["scores"]) == 4
    assert read_json(here / "test.score.json")["utterances"] == 4
    (here / "targets" / "part-00000.parquet").write_bytes(b"")
    said = judge.refused(KIND, ["verify", here / "targets"], "part-00000.parquet")
    advice = next(line for line in said.replace("\nbreak", " break").splitlines() if "rm " in line)
    assert "touch executed" not in advice or "'" in advice  # quoted, for whoever pastes it
    assert not Path("executed").exists()


def transcribe(work: Workspace, path: Path) -> list[Argument]:
    return ["transcribe", "--model", work.teacher, "--tokenizer", work.tokenizer, "--audio", path]


def test_transcribing(judge: Judge, work: Workspace, folder: Path) -> None:
    for name in [*IN_FOLDERS, *ONLY_IN_FOLDERS]:
        path = write_audio(folder / "transcribe" / f"{name}.wav")
        assert judge.handled(KIND, transcribe(work, path)).startswith(f"{path}\t")
    assert not Path("executed").exists()


def test_names_in_other_layouts(judge: Judge, folder: Path) -> None:
    """Ids of Kaldi, LibriSpeech and AN4 have no white space; paths of Kaldi may."""
    names = [name for name in IN_FOLDERS if name.split() == [name] and not set("()") & set(name)]
    roots = {name: folder / f"{name}-names" for name in ("kaldi", "librispeech", "an4")}
    for part in ("train", "dev", "test"):
        for number, name in enumerate(names):
            write_audio(roots["kaldi"] / "audio" / f"{number} ; $(id) '.wav")
            write_audio(roots["librispeech"] / part / "7" / "1" / f"7-1-{name}.flac")
            write_audio(roots["an4"] / "wav" / name / f"{name}.wav")
        kaldi = roots["kaldi"] / part
        write(kaldi / "wav.scp", "".join(f"{name} audio/{n} ; $(id) '.wav\n" for n, name in enumerate(names)))
        write(kaldi / "utt2spk", "".join(f"{name} {name}\n" for name in names))
        write(kaldi / "text", "".join(f"{name} one\n" for name in names))
        write(roots["librispeech"] / part / "7" / "1" / "7-1.trans.txt", "".join(f"7-1-{name} one\n" for name in names))
        write(roots["an4"] / f"etc/an4_{part}.fileids", "".join(f"{name}/{name}\n" for name in names))
        write(roots["an4"] / f"etc/an4_{part}.transcription", "".join(f"one ({name})\n" for name in names))
    for layout, root in roots.items():
        out = folder / f"{layout}-names-out"
        config = corpus_config(folder / f"{layout}-names.yaml", name=layout)
        judge.handled(KIND, ["prepare", "--config", config, "--root", root, "--out-dir", out])
        found = {cut.id.removeprefix("7-1-") for cut in read_cuts([out / "test.jsonl.gz"])}
        assert found == set(names)


@pytest.mark.parametrize("name", [b"\xff.wav", b"a\xc3(.wav", b"\xed\xa0\x80.wav"])
def test_names_that_are_not_utf8(
    judge: Judge, corpora: dict[str, SoundCorpus], work: Workspace, folder: Path, name: bytes
) -> None:
    corpus = corpora["folder"]
    path = Path(os.fsdecode(os.fsencode(corpus.root / "train" / "anna") + b"/" + name))
    shutil.copy(corpus.audio[0], path)
    try:
        judge.refused(KIND, corpus.command(folder / "bytes"), str(corpus.root / "train"), "not UTF-8")
        judge.refused(KIND, transcribe(work, path), "not UTF-8")
    finally:
        path.unlink()


def test_arguments(judge: Judge, work: Workspace, folder: Path) -> None:
    dump = work.dump_command(work.teacher, folder / "p.parquet")
    refusals: dict[str, list[Argument]] = {
        "no stage '; rm -rf ~'": ["; rm -rf ~"],
        "no stage '--x'": ["--x"],
        "no stage ''": [""],
        "unrecognized arguments": [*dump, "--config; rm -rf ~", "x"],
        "--out": [*dump[:-1], "-x"],
        "--hours": ["estimate", *dump[1:7], *dump[7:9], "--hours", "many"],
        "hours is nan": ["estimate", *dump[1:9], "--hours", "nan"],
        "are required": ["dump"],
        "no search": [
            "decode",
            "--config",
            work.config("empty"),
            "--search",
            "../x",
            *dump[3:9],
            "--out",
            folder / "x",
        ],
    }
    work.config("empty").write_text("")
    for said, command in refusals.items():
        judge.refused(KIND, command, said)


def test_what_a_score_is_of(judge: Judge, work: Workspace, folder: Path) -> None:
    """Names of runs and test sets are words to the stages: they are kept as they are."""
    (folder / "names.yaml").write_text("searches: {greedy: {max_symbols: 2}}\n")
    files: list[Argument] = ["--model", work.teacher, "--cuts", work.dev, "--tokenizer", work.tokenizer]
    hypotheses, scores = folder / "names.parquet", folder / "names.score.json"
    decode = ["decode", "--config", folder / "names.yaml", "--search", "greedy", *files, "--out", hypotheses]
    judge.handled(KIND, decode)
    for name in IN_LISTS[:10]:
        names: list[Argument] = [f"--run={name}", f"--system={name}", f"--search={name}", "--testset=dev"]
        judge.handled(KIND, ["score", "--hypotheses", hypotheses, "--cuts", work.dev, *names, "--out", scores])
        judge.handled(KIND, ["choose", "--scores", scores, "--out", folder / "chosen.json"])
        assert read_json(folder / "chosen.json")["chosen"] == {name: name}


def test_in_a_process_of_its_own(judge: Judge, corpora: dict[str, SoundCorpus], work: Workspace, folder: Path) -> None:
    """As a shell would start it, also where the terminal cannot write what the message quotes."""
    corpus = corpora["folder"]
    found = run_process(corpus.command(folder / "日本 ; touch executed"), PYTHONIOENCODING="ascii")
    assert found.status == 0, found.err
    assert len(read_cuts([folder / "日本 ; touch executed" / "train.jsonl.gz"])) == 4
    judge.counts[KIND]["handled"] += 1
    judge.check_refusal(KIND, run_process(["inspect", "日本.pt"], PYTHONIOENCODING="ascii"), "does not exist")
    judge.check_refusal(KIND, run_process(["prepare"]), "required")
    assert not Path("executed").exists()


def test_an_interruption_is_one_line(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdtrans.stages import schema

    def interrupted(out: Path | None = None) -> None:
        """Stands for a stage during which someone presses Ctrl-C."""
        raise KeyboardInterrupt

    monkeypatch.setattr(schema, "main", interrupted)
    found = run(["schema"])
    assert (found.status, found.err) == (130, "kdtrans schema: interrupted\n")


def test_messages_fit_a_screen() -> None:
    shown = __main__.one_screen("\n".join(["a\x1b[2J\udcff" + "x" * 10_000] * 1000))
    lines = shown.splitlines()
    assert len(lines) == 21
    assert lines[0].startswith("a\\x1b[2J\\udcffxxx")
    assert max(map(len, lines)) < 600
