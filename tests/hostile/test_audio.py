"""Broken audio: refused, or left out and counted; what only decoding finds is named then."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from kdtrans.artifacts import read_json
from kdtrans.data.manifest import read_cuts
from tests.hostile.judge import BYTES, Judge, Run, examples, replaced, run
from tests.hostile.material import SoundCorpus, is_sound_preparation, write_audio
from tests.tiny import Workspace

KIND = "audio"
FORMATS: dict[str, dict[str, str]] = {
    "wav": {"format": "WAV"},
    "flac": {"format": "FLAC"},
    "ogg": {"format": "OGG"},
    "mp3": {"format": "MP3"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}


def transcribe(work: Workspace, audio: Path) -> list[str | Path]:
    return ["transcribe", "--model", work.teacher, "--tokenizer", work.tokenizer, "--audio", audio]


@pytest.mark.parametrize("name", FORMATS)
@examples(12)
@given(st.sampled_from(BYTES), st.integers(0, 2**32))
def test_damaged_files(
    judge: Judge,
    corpora: dict[str, SoundCorpus],
    work: Workspace,
    folder: Path,
    name: str,
    damage: Callable[[bytes, random.Random], bytes],
    seed: int,
) -> None:
    """What `prepare` takes can be transcribed, or is refused there by name."""
    corpus, out = corpora["folder"], folder / "audio"
    whole = write_audio(folder / f"whole.{name}", **FORMATS[name]).read_bytes()
    broken = corpus.root / "train" / "anna" / f"2.{name}"
    broken.write_bytes(whole)

    def sound(done: Run) -> bool:
        found = run(transcribe(work, broken))
        return "Traceback" not in found.err and (found.out if found.status == 0 else found.err).count(str(broken)) > 0

    try:
        with replaced(broken, damage(whole, random.Random(seed))):
            judge.judged(KIND, corpus.command(out, checks={"empty_text": "drop"}, labelled=["train"]), name, sound)
    finally:
        broken.unlink()


def wav(samples: bytes, rate: int = 16000, channels: int = 1, bits: int = 16, **sizes: int) -> bytes:
    """A WAV file whose header may lie."""
    block = max(channels * bits // 8, 1)
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * block & 0xFFFFFFFF, block & 0xFFFF, bits)
    data = b"data" + struct.pack("<I", sizes.get("data", len(samples))) + samples
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form + data
    return b"RIFF" + struct.pack("<I", sizes.get("riff", len(chunks))) + chunks


NOISE = np.random.default_rng(0).integers(-3000, 3000, 8000).astype("<i2").tobytes()
LYING = {
    "empty": b"",
    "text": b"this is no sound\n" * 100,
    "html": b"<!DOCTYPE html><title>404</title>",
    "zeros": bytes(10000),
    "header alone": wav(b""),
    "rate 0": wav(NOISE, rate=0),
    "rate 44101": wav(NOISE, rate=44101),
    "rate 2147483647": wav(NOISE, rate=2**31 - 1),
    "rate 4294967295": wav(NOISE, rate=2**32 - 1),
    "no channel": wav(NOISE, channels=0),
    "65535 channels": wav(NOISE, channels=65535),
    "no bits": wav(NOISE, bits=0),
    "data says more": wav(NOISE, data=len(NOISE) + 1000, riff=len(NOISE) + 1036),
    "riff says more": wav(NOISE, riff=10**6),
    "one sample": wav(NOISE[:2]),
    "an hour at 1 Hz": wav(NOISE[:7200], rate=1),
}


@pytest.mark.parametrize("name", LYING)
def test_files_that_lie(judge: Judge, corpora: dict[str, SoundCorpus], folder: Path, name: str) -> None:
    corpus = corpora["folder"]
    checks = dict.fromkeys(("unreadable_audio", "empty_audio", "out_of_duration"), "fail")
    broken = corpus.audio[0]
    with replaced(broken, LYING[name]):
        judge.refused(KIND, corpus.command(folder / "lying", checks=checks), str(broken))
        judge.handled(KIND, corpus.command(folder / "lying", checks=dict.fromkeys(checks, "drop")))
        found = read_json(folder / "lying" / "summary.json")["splits"]["train-labelled"]
        assert (found["found"]["utterances"], found["utterances"]) == (4, 3)
        assert sum(reason["utterances"] for reason in found["dropped"].values()) == 1
    assert is_sound_preparation(folder / "lying")


def test_what_is_no_file(judge: Judge, corpora: dict[str, SoundCorpus], folder: Path) -> None:
    """A pipe would keep its reader waiting for ever, /dev/zero would never end."""
    corpus = corpora["folder"]
    broken = corpus.root / "train" / "anna" / "9.wav"
    makes: list[Callable[[], object]] = [
        broken.mkdir,
        lambda: os.mkfifo(broken),
        lambda: broken.symlink_to("/dev/zero"),
        lambda: broken.symlink_to(folder / "nowhere"),
        lambda: broken.symlink_to(broken),
    ]
    for make in makes:
        make()
        try:
            judge.refused(KIND, corpus.command(folder / "none"), str(broken))
        finally:
            broken.rmdir() if broken.is_dir() else broken.unlink()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(judge: Judge, work: Workspace, folder: Path, value: float) -> None:
    path = folder / "float.wav"
    samples = np.random.default_rng(0).normal(0, 0.1, 16000)
    samples[5000] = value
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    judge.refused(KIND, transcribe(work, path), str(path), "no numbers")
    utt = work.cuts[0]
    audio = Path(utt.recording.sources[0].source)
    assert read_cuts([work.train])[0].id == utt.id
    soundfile.write(folder / "whole.wav", samples[: utt.num_samples], 16000, subtype="FLOAT")
    with replaced(audio, (folder / "whole.wav").read_bytes()):
        judge.refused(KIND, work.dump_command(work.teacher, folder / "part-00000.parquet"), utt.id, str(audio))


@pytest.mark.parametrize("seconds", [0.01, 0.024, 0.03, 0.06])
def test_a_blink(judge: Judge, work: Workspace, folder: Path, seconds: float) -> None:
    path = write_audio(folder / "blink.wav", seconds)
    judge.judged(KIND, transcribe(work, path), str(path), lambda done: done.out.startswith(f"{path}\t"))


def test_many_channels_and_other_rates(judge: Judge, corpora: dict[str, SoundCorpus], folder: Path) -> None:
    corpus = corpora["folder"]
    for rate, channels in ((8000, 8), (11025, 2), (22050, 1), (44100, 200), (96000, 1), (192000, 1)):
        other = write_audio(folder / "other.wav", rate=rate, channels=channels)
        with replaced(corpus.audio[0], other.read_bytes()):
            judge.handled(KIND, corpus.command(folder / "rates"))
            assert is_sound_preparation(folder / "rates")
