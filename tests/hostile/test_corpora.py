"""Broken lists of the four layouts."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile.judge import TEXT, Judge, examples, replaced
from tests.hostile.material import LAYOUTS, SoundCorpus, is_sound_preparation

KIND = "corpora"


@pytest.mark.parametrize("layout", LAYOUTS)
@examples(20)
@given(st.sampled_from(TEXT), st.integers(0, 2**32), st.integers(0, 3))
def test_damaged_lists(
    judge: Judge,
    corpora: dict[str, SoundCorpus],
    folder: Path,
    layout: str,
    damage: Callable[[bytes, random.Random], bytes],
    seed: int,
    which: int,
) -> None:
    corpus, out = corpora[layout], folder / layout
    broken = corpus.lists[which % len(corpus.lists)]
    with replaced(broken, damage(broken.read_bytes(), random.Random(seed))):
        judge.judged(KIND, corpus.command(out), str(corpus.root), lambda done: is_sound_preparation(out))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lists_that_are_none(judge: Judge, corpora: dict[str, SoundCorpus], folder: Path, layout: str) -> None:
    corpus, out = corpora[layout], folder / layout
    for broken in corpus.lists[:2]:
        with replaced(broken, b""):
            # Of a folder corpus the files are listed all the same, without text.
            judge.judged(KIND, corpus.command(out), str(corpus.root), lambda done: is_sound_preparation(out))
        with replaced(broken, None):
            judge.judged(KIND, corpus.command(out), str(corpus.root), lambda done: is_sound_preparation(out))
    judge.refused(KIND, corpus.command(out, dev=["nowhere"]), str(corpus.root), "nowhere")


HEADER = "path\ttext\tspeaker\tid\n"


@pytest.mark.parametrize(
    ("layout", "name", "content", "said"),
    [
        ("folder", "train.tsv", "Path\tText\n", "'path' among them"),
        ("folder", "train.tsv", "path\ttext\ttext\ntrain/anna/0.wav\tONE\tTWO\n", "each once"),
        ("folder", "train.tsv", f"{HEADER}train/anna/0.wav\tONE\ttab in the text\tanna\tx\n", "train.tsv:2: 5 cells"),
        ("folder", "train.tsv", f"{HEADER}train/anna/0.wav\tONE\n", "train.tsv:2: 2 cells"),
        ("folder", "train.tsv", f"{HEADER}\tONE\tanna\tx\n", "train.tsv:2: no path"),
        ("folder", "train.tsv", HEADER + 2 * "train/anna/0.wav\tONE\tanna\tx\n", "train.tsv:3"),
        ("folder", "train.tsv", f"{HEADER}/\tONE\tanna\tx\n", "/ is no file"),
        ("folder", "train.tsv", f"{HEADER}{'a' * 5000}\tONE\tanna\tx\n", "aa ... aa"),
        ("folder", "train.tsv", f"{HEADER}train/anna/0.wav\tONE\t \tx\n", "no speaker"),
        ("folder", "train.tsv", f"{HEADER}train/anna/0.wav\tONE\tanna\t \n", "no id"),
        ("folder", "train.tsv", f"{HEADER}train/anna/0.wav\tONE\0\tanna\tx\n", "train.tsv:2"),
        ("folder", "train.tsv", f"{HEADER}train/anna/0.wav\tONE\tanna\tx\ntrain/ben/0.wav\tTWO\tben\tx\n", "'x'"),
        ("kaldi", "train/wav.scp", "anna sph2pipe audio/train-anna.wav |\n", "is a command"),
        ("kaldi", "train/wav.scp", "anna | touch executed\n", "is a command"),
        ("kaldi", "train/wav.scp", "anna\nben audio/train-ben.wav\n", "'anna' has no file"),
        ("kaldi", "train/wav.scp", "anna -\nben audio/train-ben.wav\n", "does not exist"),
        ("kaldi", "train/wav.scp", "anna audio/train-anna.wav\nanna audio/train-ben.wav\n", "listed twice"),
        ("kaldi", "train/utt2spk", "anna-train-0\n", "no speaker for utterance 'anna-train-0'"),
        ("kaldi", "train/segments", "anna-train-0 anna nan 1\n", "segments"),
        ("kaldi", "train/segments", "anna-train-0 anna 0 inf\n", "'anna-train-0'"),
        ("kaldi", "train/segments", "anna-train-0 anna -1 1\n", "'anna-train-0'"),
        ("kaldi", "train/segments", "anna-train-0 anna 0 1e300\n", "'anna-train-0'"),
        ("kaldi", "train/segments", "anna-train-0 anna 0.5 0.5\n", "'anna-train-0'"),
        ("kaldi", "train/segments", "anna-train-0 carl 0 1\n", "'carl'"),
        ("kaldi", "train/segments", "anna-train-0 anna 0\n", "segments"),
        ("librispeech", "train/10/1/10-1.trans.txt", "11-1-0000 ONE\n", "does not belong"),
        ("librispeech", "train/10/1/10-1.trans.txt", "10-1-../../../x ONE\n", "10-1-"),
        ("librispeech", "train/10/1/10-1.trans.txt", "10-1-0000 ONE\n10-1-0000 TWO\n", "10-1-0000"),
        ("an4", "etc/an4_train.transcription", "ONE TWO 0-anna-train\n", "expected 'TEXT (id)'"),
        ("an4", "etc/an4_train.transcription", "ONE ()\n", "expected 'TEXT (id)'"),
        ("an4", "etc/an4_train.transcription", 2 * "ONE (0-anna-train)\n", "listed twice"),
        ("an4", "etc/an4_train.transcription", f"<s>{' ' * 200_000}(0-anna-train\n", "expected 'TEXT (id)'"),
        ("an4", "etc/an4_train.fileids", "anna/9-anna-train\n", "'9-anna-train'"),
        ("an4", "etc/an4_train.fileids", "..\n", "'..'"),
    ],
)
def test_lists_that_lie(
    judge: Judge, corpora: dict[str, SoundCorpus], folder: Path, layout: str, name: str, content: str, said: str
) -> None:
    corpus = corpora[layout]
    with replaced(corpus.root / name, content.encode()):
        judge.refused(KIND, corpus.command(folder / layout), said)
    assert not Path("executed").exists()


def test_lists_written_elsewhere(judge: Judge, corpora: dict[str, SoundCorpus], folder: Path) -> None:
    """Line ends of other systems and a byte order mark change nothing."""
    for layout, corpus in corpora.items():
        judge.handled(KIND, corpus.command(folder / "plain"))
        plain = (folder / "plain" / "train.jsonl.gz").read_bytes()
        for path in corpus.lists[:2]:
            for content in (
                b"\xef\xbb\xbf" + path.read_bytes(),
                path.read_bytes().replace(b"\n", b"\r\n"),
                path.read_bytes().replace(b"\n", b"\r"),
            ):
                with replaced(path, content):
                    judge.handled(KIND, corpus.command(folder / layout))
                assert (folder / layout / "train.jsonl.gz").read_bytes() == plain


def test_links_in_circles(judge: Judge, corpora: dict[str, SoundCorpus], folder: Path) -> None:
    corpus = corpora["folder"]
    circle = corpus.root / "train" / "circle"
    circle.symlink_to(corpus.root)
    try:
        judge.handled(KIND, corpus.command(folder / "circle"))
        assert is_sound_preparation(folder / "circle")
    finally:
        circle.unlink()


def test_a_part_without_audio(judge: Judge, corpora: dict[str, SoundCorpus], folder: Path) -> None:
    for layout, corpus in corpora.items():
        gone = corpus.root / {"folder": "train", "kaldi": "audio", "librispeech": "train", "an4": "wav"}[layout]
        shutil.move(gone, gone.with_name("gone"))
        try:
            judge.refused(KIND, corpus.command(folder / layout), str(corpus.root))
        finally:
            shutil.move(gone.with_name("gone"), gone)
