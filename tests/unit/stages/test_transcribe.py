"""Audio files -> text, with a streaming student and with one that is not."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from kdtrans.config import ConformerConfig, PredictorConfig, StreamingConfig, StudentConfig, TokenizerConfig
from kdtrans.data.tokenizer import Tokenizer, train_tokenizer
from kdtrans.models.build import build_student
from kdtrans.models.ngram_estimate import estimate, write_arpa
from kdtrans.stages.transcribe import main
from kdtrans.training.checkpoint import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, two untrained students that emit labels, and audio files."""
    folder = tmp_path_factory.mktemp("transcribe")
    train_tokenizer(["one two three"], TokenizerConfig(type="char"), folder / "tokenizer.model")
    tokenizer = Tokenizer(folder / "tokenizer.model")
    for name, streaming in (("streaming", StreamingConfig(chunk_ms=320)), ("full", None)):
        torch.manual_seed(2)
        student = StudentConfig(
            encoder=ConformerConfig(
                dim=16, layers=1, heads=2, ffn_dim=16, conv_kernel=3, subsampling_channels=4, streaming=streaming
            ),
            predictor=PredictorConfig(dim=8),
            joiner_dim=8,
        )
        state = build_student(student, tokenizer.vocab_size).state_dict()
        state["joiner.output.weight"] *= 5
        save_model(folder / f"{name}.pt", "student", student, state, tokenizer, step=0, dev_wer=100.0)
    random = np.random.default_rng(0)
    soundfile.write(folder / "a.wav", random.normal(scale=0.1, size=16000), 16000)
    soundfile.write(folder / "b.flac", random.normal(scale=0.1, size=10000), 8000)
    soundfile.write(folder / "stereo.wav", random.normal(scale=0.1, size=(8000, 2)), 16000)
    soundfile.write(folder / "click.wav", random.normal(scale=0.1, size=100), 16000)
    (folder / "text.wav").write_text("not audio")
    return folder


def transcribe(folder: Path, model: str, *audio: str, **options: Any) -> None:
    main(folder / model, folder / "tokenizer.model", [folder / name for name in audio], **options)


def test_streaming_prints_growing_text_and_speed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transcribe(folder, "streaming.pt", "a.wav", "b.flac")
    shown, told = capsys.readouterr()
    texts = dict(line.split("\t") for line in shown.splitlines())
    assert list(texts) == [str(folder / "a.wav"), str(folder / "b.flac")]
    assert all(texts.values())
    *lines, speed = told.splitlines()
    partial = [re.fullmatch(r" +(\d+\.\d\d) s  (.*)", line) for line in lines]
    # Text of a chunk of 320 ms comes when the 10 ms piece with its last 7.5 ms has been read.
    seconds = [match[1] for match in partial if match]
    assert seconds == ["0.33", "0.65", "0.97", "1.00", "0.33", "0.65", "0.97", "1.25"]
    shown_so_far = [match[2] for match in partial if match]
    assert shown_so_far[3] == texts[str(folder / "a.wav")]
    assert all(later.startswith(sooner) for sooner, later in pairwise(shown_so_far[:4]))
    assert re.fullmatch(
        r"algorithmic latency 327\.5 ms; compute per chunk: mean [\d.]+ ms, p90 [\d.]+ ms \(8 chunks\)", speed
    )


def test_another_chunk_size_can_be_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transcribe(folder, "streaming.pt", "a.wav", chunk_ms=640)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["0.65", "1.00"]
    assert lines[-1].startswith("algorithmic latency 647.5 ms")


def test_a_model_that_is_not_streaming_sees_the_whole_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transcribe(folder, "full.pt", "b.flac", "a.wav")
    shown, told = capsys.readouterr()
    assert [line.split("\t")[0] for line in shown.splitlines()] == [str(folder / "b.flac"), str(folder / "a.wav")]
    assert told == ""


@pytest.mark.parametrize("model", ["full.pt", "streaming.pt"])
def test_a_beam_and_an_ngram_can_be_asked_for(folder: Path, capsys: pytest.CaptureFixture[str], model: str) -> None:
    write_arpa(estimate([["o", "n", "e"], ["t", "w", "o"]], 2), folder / "lm.arpa")
    texts = []
    for options in ({}, {"beam": 4}, {"beam": 4, "lm": folder / "lm.arpa", "lm_weight": 2.0}):
        transcribe(folder, model, "a.wav", **options)
        texts.append(capsys.readouterr().out.split("\t")[1].strip())
    assert len(set(texts)) == 3, "each search finds another text in this noise"


LM = {"lm": Path("lm.arpa"), "lm_weight": 1.0}


@pytest.mark.parametrize("options", [{"beam": 4, "lm": Path("lm.arpa")}, {"beam": 4, "lm_weight": 1.0}, LM])
def test_a_language_model_is_asked_for_as_a_whole(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs all of --lm, --lm-weight and --beam"):
        transcribe(folder, "full.pt", "a.wav", **options)


@pytest.mark.parametrize(
    ("model", "audio", "chunk_ms", "message"),
    [
        ("full.pt", "a.wav", 320, "full.pt is no streaming model"),
        ("streaming.pt", "a.wav", 100, "chunk_ms 100 must be a positive multiple"),
        ("streaming.pt", "stereo.wav", None, "stereo.wav has 2 channels"),
        ("streaming.pt", "text.wav", None, "text.wav cannot be decoded"),
        ("streaming.pt", "none.wav", None, "none.wav does not exist"),
        ("streaming.pt", "click.wav", None, "click.wav: 100 samples of audio"),
        ("full.pt", "click.wav", None, "click.wav: 100 samples of audio"),
    ],
)
def test_refusals(folder: Path, model: str, audio: str, chunk_ms: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transcribe(folder, model, audio, chunk_ms=chunk_ms)
