from __future__ import annotations

import hashlib
import random
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kdtrans.config import SynthConfig
from kdtrans.data.corpora import read_part
from kdtrans.data.synth.corpus import cast, degrade, write_corpus
from kdtrans.data.synth.grammar import RULES, new_sentences, vocabulary
from kdtrans.data.synth.voices import ACCENTS, VARIANTS, draw_speakers, pronounceable

PARTS = ("train-labelled", "train-unlabelled", "dev", "test")
TINY = SynthConfig(voices=8, labelled_min=0.1, unlabelled_min=0.1, dev_min=0.05, test_min=0.05, lm_sentences=20)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("espeakng_loader")
    root = tmp_path_factory.mktemp("synth")
    write_corpus(TINY, root)
    return root


def test_vocabulary_is_small_and_has_every_letter() -> None:
    words = vocabulary()
    assert 100 <= len(words) <= 200
    assert all(word.isupper() and word.isalpha() for word in words)
    assert {word for word in words if len(word) == 1} == set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_sentences_are_new_varied_and_spelled_out_by_the_grammar() -> None:
    taken = {"YES"}
    sentences = list(islice(new_sentences(random.Random(1), taken), 2000))
    assert taken == {"YES", *sentences}
    assert len(set(sentences)) == 2000
    words = [word for sentence in sentences for word in sentence.split()]
    assert set(words) == set(vocabulary())
    assert not set(words) & RULES.keys()
    assert 6 < len(words) / len(sentences) < 9


def test_letters_are_given_by_name() -> None:
    assert pronounceable("SPELL ANNA A I Z") == "spell anna eigh eye Z"


def test_every_part_has_its_own_voices() -> None:
    readers = cast(SynthConfig())
    counts = {part: sum(reader.part == part for reader in readers) for part in PARTS}
    assert counts == {"train-labelled": 10, "dev": 8, "test": 12, "train-unlabelled": 42}
    assert len({reader.speaker.voice for reader in readers}) == 72
    assert len({reader.id for reader in readers}) == 72
    assert readers == cast(SynthConfig())
    assert readers != cast(SynthConfig(seed=2))
    assert {reader.part for reader in cast(SynthConfig(voices=8))} == set(PARTS)
    with pytest.raises(ValueError, match="there are only"):
        draw_speakers(len(ACCENTS) * len(VARIANTS) + 1, random.Random(0))


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
def test_noise_has_the_asked_for_level(snr_db: float) -> None:
    clean = 0.1 * np.sin(np.arange(15013) / 7)
    noise = degrade(clean, np.random.default_rng(0), snr_db, gain_db=0.0) - clean
    assert 10 * np.log10(np.mean(clean**2) / np.mean(noise**2)) == pytest.approx(snr_db, abs=0.5)
    quiet = degrade(clean, np.random.default_rng(0), snr_db, gain_db=-20.0)
    np.testing.assert_allclose(10 * quiet, clean + noise)
    assert np.abs(degrade(50 * clean, np.random.default_rng(0), snr_db, gain_db=0.0)).max() == pytest.approx(0.99)


def test_corpus_reads_as_librispeech_with_disjoint_speakers_and_sentences(corpus: Path) -> None:
    parts = {part: read_part("synth", corpus, part) for part in PARTS}
    utterances = [utterance for part in parts.values() for utterance in part]
    assert len({u.speaker for u in utterances}) == sum(len({u.speaker for u in part}) for part in parts.values()) == 8
    assert len({u.text for u in utterances}) == len({u.id for u in utterances}) == len(utterances)
    minutes = dict.fromkeys(PARTS, 0.0)
    for part, listed in parts.items():
        for utterance in listed:
            samples, rate = soundfile.read(utterance.audio)
            assert rate == 16000
            assert np.sqrt(np.mean(samples**2)) > 0.005
            minutes[part] += len(samples) / rate / 60
    # A reader goes on until its share is read, at most one utterance too far.
    for part, wanted in (("train-labelled", 0.1), ("train-unlabelled", 0.1), ("dev", 0.05), ("test", 0.05)):
        assert wanted <= minutes[part] <= wanted + 0.1 * len({u.speaker for u in parts[part]})
    lm = (corpus / "lm.txt").read_text().splitlines()
    assert len(lm) == 20
    assert not set(lm) & {u.text for u in utterances}


def test_checksums_cover_every_file(corpus: Path) -> None:
    lines = [line.split("  ") for line in (corpus / "SHA256SUMS").read_text().splitlines()]
    listed = {name: digest for digest, name in lines}
    files = {path.relative_to(corpus).as_posix(): path for path in corpus.rglob("*") if path.is_file()}
    del files["SHA256SUMS"]
    assert listed == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def test_same_seed_same_corpus_also_over_an_old_one(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "again")
    (tmp_path / "again" / "LibriSpeech" / "stale.txt").write_text("left over")
    write_corpus(TINY, tmp_path / "again")
    assert (tmp_path / "again" / "SHA256SUMS").read_text() == (corpus / "SHA256SUMS").read_text()
    assert not (tmp_path / "again" / "LibriSpeech" / "stale.txt").exists()


def test_somebody_elses_librispeech_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "LibriSpeech").mkdir()
    (tmp_path / "LibriSpeech" / "SPEAKERS.TXT").write_text("; Some pipe(|) separated metadata")
    with pytest.raises(ValueError, match="was not made by `kdtrans synth`"):
        write_corpus(TINY, tmp_path)
