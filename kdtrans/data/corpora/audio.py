"""From an utterance to a lhotse cut: the only place where a corpus's audio is opened."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Literal

import soundfile
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

from kdtrans.contracts import SAMPLE_RATE
from kdtrans.data.corpora.utterance import Utterance

PROBE_SAMPLES = 4096
MOST_TAPS = 1 << 24  # of the filters that resample to 16 kHz: 64 MB; the usual rates need less than a hundredth
STREAMED_BYTES = 0x7FFFF000  # sizes from here on are what a program that writes WAV into a pipe puts for "unknown"


class AudioError(ValueError):
    """Audio that cannot be used; `reason` is the name of the check in the configuration."""

    def __init__(self, reason: Literal["unreadable_audio", "empty_audio"], message: str) -> None:
        super().__init__(message)
        self.reason: Literal["unreadable_audio", "empty_audio"] = reason


def open_cut(utterance: Utterance) -> MonoCut:
    """A cut with one supervision; audio at another rate is resampled to 16 kHz when it is loaded. Uses channel 0.

    The header and the last block are decoded, which finds files that were cut short without decoding all of a corpus.

    Raises:
        AudioError: naming the file.
    """
    path = utterance.audio
    channels, sampling_rate, num_samples = _probe(path)
    if num_samples == 0:
        raise AudioError("empty_audio", f"{path} (utterance '{utterance.id}') has no samples")
    duration_s = num_samples / sampling_rate
    # A segment's end is often rounded up in the lists; more than a frame beyond the audio is a mistake.
    if utterance.end_s is not None and utterance.end_s > duration_s + 0.04:
        raise AudioError(
            "unreadable_audio",
            f"{path}: utterance '{utterance.id}' ends at {utterance.end_s:g} s, the audio at {duration_s:g} s",
        )
    end_s = duration_s if utterance.end_s is None else min(utterance.end_s, duration_s)
    if end_s <= utterance.start_s:
        raise AudioError("empty_audio", f"{path}: utterance '{utterance.id}' has no samples")
    length_s = round(end_s - utterance.start_s, 8)
    recording = Recording(
        id=utterance.id,
        sources=[AudioSource(type="file", channels=list(range(channels)), source=str(path))],
        sampling_rate=sampling_rate,
        num_samples=num_samples,
        duration=duration_s,
    )
    supervision = SupervisionSegment(
        id=utterance.id,
        recording_id=utterance.id,
        start=0.0,
        duration=length_s,
        text=utterance.text,
        speaker=utterance.speaker,
    )
    cut = MonoCut(
        id=utterance.id,
        start=utterance.start_s,
        duration=length_s,
        channel=0,
        supervisions=[supervision],
        recording=recording,
    )
    return cut if sampling_rate == SAMPLE_RATE else cut.resample(SAMPLE_RATE)


def _probe(path: Path) -> tuple[int, int, int]:
    """Channels, sampling rate and samples a channel, after decoding the last block."""
    if not os.path.isfile(path):  # a pipe would keep its reader waiting for ever
        what = "is no file" if os.path.exists(path) else "does not exist"
        raise AudioError("unreadable_audio", f"{path} {what}")
    try:
        with soundfile.SoundFile(path) as audio:
            num_samples = audio.frames
            tail = min(PROBE_SAMPLES, num_samples)
            audio.seek(num_samples - tail)
            decoded = len(audio.read(tail, dtype="int16"))
            header = audio.channels, audio.samplerate, num_samples
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError("unreadable_audio", f"{path} cannot be decoded ({error})") from None
    if decoded < tail:
        raise AudioError("unreadable_audio", f"{path} is cut short: its header says {num_samples} samples")
    _check_riff_size(path)
    _check_rate(path, header[1])
    return header


def _check_rate(path: Path, sampling_rate: int) -> None:
    """A rate that has no large divisor in common with 16 kHz takes gigabytes of filters to resample."""
    common = math.gcd(sampling_rate, SAMPLE_RATE)
    if sampling_rate // common * SAMPLE_RATE // common > MOST_TAPS:
        raise AudioError(
            "unreadable_audio",
            f"{path} has {sampling_rate} Hz, from which {SAMPLE_RATE} Hz cannot be had in reasonable memory: "
            "resample it beforehand",
        )


def _check_riff_size(path: Path) -> None:
    """libsndfile takes a WAV file that was cut short for a shorter one; the size in its header tells."""
    with open(path, "rb") as file:
        head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return
    stated, size = int.from_bytes(head[4:8], "little") + 8, path.stat().st_size
    if size < stated < STREAMED_BYTES:
        raise AudioError(
            "unreadable_audio", f"{path} is cut short: {size} bytes of the {stated} that its header states"
        )
