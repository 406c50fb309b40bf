"""The embedded corpus on disk: LibriSpeech's own tree, the language model's text and the checksums of all of it."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from scipy.fft import next_fast_len
from scipy.signal import resample_poly

from kdtrans.artifacts import sha256_file, write_text
from kdtrans.config import SynthConfig
from kdtrans.contracts import SAMPLE_RATE
from kdtrans.data.synth.grammar import new_sentences
from kdtrans.data.synth.voices import Speaker, Synthesizer, draw_speakers

# Shares of the speakers, in 72nds (the default number of voices); all others read the unlabelled part.
SPEAKER_SHARES = {"train-labelled": 10, "dev": 8, "test": 12}
FIRST_SPEAKER = 1001
MADE_HERE = "; The embedded corpus of kdtrans: sentences of a small grammar, read by espeak-ng\n"
SHORTEST_S, LONGEST_S = 1.0, 8.0


@dataclass(frozen=True)
class Reader:
    """A speaker with an id, the part of the corpus it reads, and how much of it."""

    id: int
    speaker: Speaker
    part: str
    seconds: float


def write_corpus(config: SynthConfig, root: Path) -> dict[str, dict[str, float]]:
    """Write ROOT/LibriSpeech, ROOT/lm.txt and, last, ROOT/SHA256SUMS; the same configuration gives the same bytes.

    Args:
        config: sizes, seed and noise.
        root: folder of the corpus; a corpus that this function made there before is replaced.

    Returns:
        Utterances, minutes and speakers of every part.

    Raises:
        ValueError: when espeak-ng is missing or ROOT/LibriSpeech holds something else.
    """
    final, building = root / "LibriSpeech", root / ".LibriSpeech.part"
    _refuse_foreign(final)
    shutil.rmtree(building, ignore_errors=True)
    rng = random.Random(f"{config.seed} sentences")
    taken: set[str] = set()
    sentences = new_sentences(rng, taken)
    seconds: dict[int, float] = {}
    counts: dict[str, dict[str, float]] = {}
    readers = cast(config)
    with Synthesizer() as synthesizer:
        for reader in readers:
            utterances, seconds[reader.id] = _read_chapter(reader, sentences, synthesizer, config, building)
            count = counts.setdefault(reader.part, {"utterances": 0, "minutes": 0.0, "speakers": 0})
            count["utterances"] += utterances
            count["minutes"] = round(count["minutes"] + seconds[reader.id] / 60, 3)
            count["speakers"] += 1
    (building / "SPEAKERS.TXT").write_text(_speakers_table(readers, seconds), encoding="utf-8")
    (building / "CHAPTERS.TXT").write_text(_chapters_table(readers, seconds), encoding="utf-8")
    lm_sentences = new_sentences(random.Random(f"{config.seed} language model"), taken)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(building, final)
    write_text(root / "lm.txt", "".join(f"{next(lm_sentences)}\n" for _ in range(config.lm_sentences)))
    _write_checksums(root)
    return counts


def cast(config: SynthConfig) -> list[Reader]:
    """Readers of all parts in the order of their ids; every part has at least one, and no voice is in two parts."""
    minutes = {
        "train-labelled": config.labelled_min,
        "dev": config.dev_min,
        "test": config.test_min,
        "train-unlabelled": config.unlabelled_min,
    }
    counts = {part: max(1, round(share * config.voices / 72)) for part, share in SPEAKER_SHARES.items()}
    counts["train-unlabelled"] = config.voices - sum(counts.values())
    parts = [part for part, count in counts.items() for _ in range(count)]
    speakers = draw_speakers(config.voices, random.Random(f"{config.seed} speakers"))
    return [
        Reader(FIRST_SPEAKER + number, speaker, part, 60 * minutes[part] / counts[part])
        for number, (speaker, part) in enumerate(zip(speakers, parts, strict=True))
        if minutes[part] > 0
    ]


def degrade(clean: np.ndarray, rng: np.random.Generator, snr_db: float, gain_db: float) -> np.ndarray:
    """Add coloured noise to speech.

    Args:
        clean: samples (N,) in -1..1.
        rng: draws the noise and its colour, between white (power 1) and brown (1 / f^2).
        snr_db: power of the speech over that of the noise, dB.
        gain_db: applied to the sum, dB.

    Returns:
        Samples (N,), scaled down if they would clip.
    """
    size = next_fast_len(len(clean), real=True)
    spectrum = np.fft.rfft(rng.standard_normal(size))
    spectrum *= np.arange(1, len(spectrum) + 1) ** -rng.uniform(0.0, 1.0)
    noise = np.fft.irfft(spectrum, n=size)[: len(clean)]
    noise *= np.sqrt(np.mean(clean**2) / np.mean(noise**2) / 10 ** (snr_db / 10))
    noisy = (clean + noise) * 10 ** (gain_db / 20)
    return noisy / max(1.0, np.abs(noisy).max() / 0.99)


def _read_chapter(
    reader: Reader, sentences: Iterator[str], synthesizer: Synthesizer, config: SynthConfig, base: Path
) -> tuple[int, float]:
    """Let one reader read its one chapter; returns the utterances and seconds read."""
    rng = np.random.default_rng([config.seed, reader.id])
    gain_db = rng.uniform(-9.0, 0.0)
    chapter = f"{reader.id}-{_chapter(reader)}"
    folder = base / reader.part / str(reader.id) / str(_chapter(reader))
    folder.mkdir(parents=True)
    lines: list[str] = []
    seconds = 0.0
    while seconds < reader.seconds:
        sentence = next(sentences)
        spoken = synthesizer.read(sentence, reader.speaker, seed=int(rng.integers(2**31)))
        clean = resample_poly(spoken, SAMPLE_RATE, synthesizer.sampling_rate)
        if not SHORTEST_S <= len(clean) / SAMPLE_RATE <= LONGEST_S:
            continue
        utt_id = f"{chapter}-{len(lines):04d}"
        noisy = degrade(clean, rng, rng.uniform(*config.noise_snr_db), gain_db)
        soundfile.write(folder / f"{utt_id}.flac", noisy, SAMPLE_RATE, subtype="PCM_16")
        lines.append(f"{utt_id} {sentence}\n")
        seconds += len(clean) / SAMPLE_RATE
    (folder / f"{chapter}.trans.txt").write_text("".join(lines), encoding="utf-8")
    return len(lines), seconds


def _refuse_foreign(folder: Path) -> None:
    """The folder is about to be replaced: make sure that it is ours and not somebody's LibriSpeech."""
    table = folder / "SPEAKERS.TXT"
    if folder.exists() and not (table.is_file() and table.read_text(encoding="utf-8").startswith(MADE_HERE)):
        raise ValueError(f"{folder} exists and was not made by `kdtrans synth`: choose another --root")


def _chapter(reader: Reader) -> int:
    return 100000 + reader.id


def _speakers_table(readers: list[Reader], seconds: dict[int, float]) -> str:
    head = MADE_HERE + ";ID  |SEX| SUBSET           |MINUTES| NAME\n"
    return head + "".join(
        f"{reader.id:<5}| - | {reader.part:<16} | {seconds[reader.id] / 60:5.2f} | {reader.speaker.voice} pitch "
        f"{reader.speaker.pitch} range {reader.speaker.pitch_range} rate {reader.speaker.words_per_minute} a minute\n"
        for reader in readers
    )


def _chapters_table(readers: list[Reader], seconds: dict[int, float]) -> str:
    head = MADE_HERE + ";ID    |READER|MINUTES| SUBSET           | PROJ.|BOOK ID| CH. TITLE | PROJECT TITLE\n"
    return head + "".join(
        f"{_chapter(reader):<7}| {reader.id:<5}| {seconds[reader.id] / 60:5.2f} | {reader.part:<16} | - | - | - | -\n"
        for reader in readers
    )


def _write_checksums(root: Path) -> None:
    files = [root / "lm.txt", *sorted(path for path in (root / "LibriSpeech").rglob("*") if path.is_file())]
    lines = [f"{sha256_file(path)}  {path.relative_to(root).as_posix()}\n" for path in files]
    write_text(root / "SHA256SUMS", "".join(lines))
