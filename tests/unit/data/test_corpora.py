from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from lhotse.audio.backend import audio_backend

from kdtrans.data.corpora import Utterance, normalise, read_part
from kdtrans.data.corpora.audio import AudioError, open_cut

SHARED = Path(os.environ.get("KDTRANS_SHARED", Path(__file__).parents[4] / "shared"))
LAYOUT = SHARED / "corpora" / "librispeech-layout"
AN4 = SHARED / "corpora" / "an4"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_audio(path: Path, seconds: float = 0.5, rate: int = 16000, channels: int = 1, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).normal(0, 0.1, (int(seconds * rate), channels))
    soundfile.write(path, samples, rate, **options)
    return path


# ------------------------------------------------------------------------------------------------------------- readers
def test_librispeech(tmp_path: Path) -> None:
    folder = tmp_path / "LibriSpeech" / "dev-clean" / "84" / "121"
    write(folder / "84-121.trans.txt", "84-121-0000 HELLO  THERE\n84-121-0001 O'CLOCK\n")
    expected = [
        Utterance("84-121-0000", "84", folder / "84-121-0000.flac", "HELLO THERE"),
        Utterance("84-121-0001", "84", folder / "84-121-0001.flac", "O'CLOCK"),
    ]
    assert read_part("librispeech", tmp_path, "dev-clean") == expected
    assert read_part("librispeech", tmp_path / "LibriSpeech", "dev-clean") == expected
    with pytest.raises(ValueError, match="test-clean is no folder"):
        read_part("librispeech", tmp_path, "test-clean")
    write(folder / "84-121.trans.txt", "84-122-0000 HELLO\n")
    with pytest.raises(ValueError, match=r"84-121\.trans\.txt: utterance '84-122-0000'"):
        read_part("librispeech", tmp_path, "dev-clean")


@pytest.mark.skipif(not LAYOUT.is_dir(), reason="the genuine LibriSpeech transcripts are not here")
def test_librispeech_genuine_layout() -> None:
    utterances = read_part("librispeech", LAYOUT, "dev-clean")
    assert len(utterances) == 2703
    assert len({utterance.id for utterance in utterances}) == 2703
    assert len({utterance.speaker for utterance in utterances}) == 40
    assert all(utterance.text and utterance.audio.suffix == ".flac" for utterance in utterances)
    assert sum(len((utterance.text or "").split()) for utterance in utterances) == 54402


def test_an4(tmp_path: Path) -> None:
    write(tmp_path / "etc/an4_train.fileids", "an4_clstk/fash/an251-fash-b\nan4_clstk/mabc/cen1-mabc-b\n")
    write(tmp_path / "etc/an4_train.transcription", "<s> YES </s> (an251-fash-b)\nB A (cen1-mabc-b)\n")
    audio = write_audio(tmp_path / "wav/an4_clstk/mabc/cen1-mabc-b.sph", format="NIST")
    first, second = read_part("an4", tmp_path, "train")
    assert (first.id, first.speaker, first.text) == ("an251-fash-b", "fash", "YES")
    assert second == Utterance("cen1-mabc-b", "mabc", audio, "B A")
    assert open_cut(second).duration == 0.5
    with pytest.raises(AudioError, match="does not exist"):
        open_cut(first)
    write(tmp_path / "etc/an4_train.transcription", "YES\n")
    with pytest.raises(ValueError, match=r"an4_train\.transcription: expected 'TEXT \(id\)', found 'YES'"):
        read_part("an4", tmp_path, "train")
    write(tmp_path / "etc/an4_train.transcription", "YES (an251-fash-b)\n")
    with pytest.raises(ValueError, match="no line for 'cen1-mabc-b'"):
        read_part("an4", tmp_path, "train")


@pytest.mark.skipif(not AN4.is_dir(), reason="AN4 is not here")
def test_an4_genuine() -> None:
    train, test = (read_part("an4", AN4, part) for part in ("train", "test"))
    assert (len(train), len(test)) == (948, 130)
    assert len({utterance.speaker for utterance in train}) == 74
    assert sum(len((utterance.text or "").split()) for utterance in test) == 773
    assert open_cut(test[0]).load_audio().shape[0] == 1


def test_kaldi(tmp_path: Path) -> None:
    audio = write_audio(tmp_path / "audio" / "r1.wav", seconds=2.0)
    write(tmp_path / "train" / "wav.scp", "r1 audio/r1.wav\n")
    write(tmp_path / "train" / "utt2spk", "r1 anna\nu1 anna\nu2\tben\n")
    assert read_part("kaldi", tmp_path, "train") == [Utterance("r1", "anna", audio, None)]

    write(tmp_path / "train" / "segments", "u1 r1 0.0 0.75\nu2 r1 0.75 2.01\n")
    write(tmp_path / "train" / "text", "u1 ONE TWO\n")
    utterances = read_part("kaldi", tmp_path, "train")
    assert utterances == [
        Utterance("u1", "anna", audio, "ONE TWO", 0.0, 0.75),
        Utterance("u2", "ben", audio, None, 0.75, 2.01),
    ]
    whole = soundfile.read(audio, dtype="float32")[0]
    for utterance, part in zip(utterances, (whole[:12000], whole[12000:]), strict=True):
        np.testing.assert_array_equal(open_cut(utterance).load_audio()[0], part)
    with pytest.raises(AudioError, match=r"ends at 2\.5 s, the audio at 2 s"):
        open_cut(Utterance("u3", "ben", audio, None, 0.0, 2.5))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("wav.scp", "r1 sph2pipe -f wav x.sph |\n", r"'r1' is a command"),
        ("wav.scp", "r1 a.wav\nr1 b.wav\n", r"'r1' is listed twice"),
        ("utt2spk", "r2 anna\n", r"no speaker for utterance 'u1'"),
        ("segments", "u1 r1 zero 1\n", r"'u1 r1 zero 1' is not"),
        ("segments", "u1 r2 0 1\n", r"names recording 'r2', which wav.scp lacks"),
        ("segments", "u1 r1 1 1\n", r"runs from 1 s to 1 s"),
    ],
)
def test_kaldi_refusals(tmp_path: Path, name: str, content: str, message: str) -> None:
    files = {"wav.scp": "r1 a.wav\n", "utt2spk": "u1 anna\n", "segments": "u1 r1 0 1\n"} | {name: content}
    for file, text in files.items():
        write(tmp_path / "train" / file, text)
    with pytest.raises(ValueError, match=message) as error:
        read_part("kaldi", tmp_path, "train")
    assert name in str(error.value)


def test_folder(tmp_path: Path) -> None:
    for name in ("train/anna/1.wav", "train/anna/2.flac", "train/ben/3.ogg"):
        write_audio(tmp_path / name)
    write(tmp_path / "train/anna/2.txt", "TWO\nTHREE\n")
    write(
        tmp_path / "train.tsv",
        'path\ttext\tspeaker\tid\ntrain/anna/1.wav\tsaid "one\t\tx1\ntrain/gone.wav\tGONE\tcarl\t\n',
    )
    got = [(u.id, u.speaker, u.text) for u in read_part("folder", tmp_path, "train")]
    assert got == [
        ("x1", "anna", 'said "one'),
        ("anna/2", "anna", "TWO THREE"),
        ("ben/3", "ben", None),
        ("gone", "carl", "GONE"),
    ]
    assert [u.id for u in read_part("folder", tmp_path / "train", ".")] == ["anna/1", "anna/2", "ben/3"]
    write(tmp_path / "train.tsv", "x1\ttrain/anna/1.wav\n")
    with pytest.raises(ValueError, match=r"train\.tsv: the first line must name the columns"):
        read_part("folder", tmp_path, "train")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="part 'none' of the folder corpus has no utterance"):
        read_part("folder", tmp_path, "none")


@given(st.text())
def test_normalise(text: str) -> None:
    once = normalise(text)
    assert once is not None
    assert normalise(once) == once
    assert once.split(" ") == once.split() or not once
    assert unicodedata.is_normalized("NFC", once)
    assert normalise(None) is None


# --------------------------------------------------------------------------------------------------------------- audio
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", {}),
        ("a.flac", {}),
        ("a.ogg", {}),
        ("a.mp3", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("a.sph", {"format": "NIST"}),
    ],
)
def test_every_format_loads_as_it_was_measured(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    cut = open_cut(Utterance("a", "s", write_audio(tmp_path / name, seconds=1.0, **options), "ONE"))
    with audio_backend("LibsndfileBackend"):  # what has been measured by libsndfile is loaded by it
        assert cut.load_audio().shape == (1, 16000)
    assert (cut.id, cut.supervisions[0].text, cut.supervisions[0].speaker) == ("a", "ONE", "s")


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (22050, 2), (44100, 1)])
def test_other_rates_are_resampled_and_the_first_channel_is_used(tmp_path: Path, rate: int, channels: int) -> None:
    cut = open_cut(Utterance("a", "s", write_audio(tmp_path / "a.wav", 1.0, rate, channels), None))
    assert (cut.id, cut.sampling_rate, cut.num_samples) == ("a", 16000, 16000)
    assert cut.load_audio().shape == (1, 16000)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3"])
def test_audio_that_was_cut_short_is_unreadable(tmp_path: Path, name: str) -> None:
    path = write_audio(tmp_path / name, seconds=3.0)
    whole = path.read_bytes()
    for share in (0.0, 0.01, 0.5, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(AudioError, match=rf"{name}") as error:
            open_cut(Utterance("a", "s", path, None))
        assert error.value.reason == "unreadable_audio"


def test_streamed_wav_is_whole_and_no_samples_are_empty(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", seconds=1.0)
    streamed = bytearray(path.read_bytes())
    streamed[4:8] = streamed[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(streamed)
    assert open_cut(Utterance("a", "s", path, None)).duration == 1.0
    with pytest.raises(AudioError, match="no samples") as error:
        open_cut(Utterance("a", "s", write_audio(tmp_path / "b.wav", seconds=0.0), None))
    assert error.value.reason == "empty_audio"
