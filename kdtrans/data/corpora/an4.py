"""CMU AN4's original tree: etc/an4_{part}.fileids and .transcription, wav/{fileid}.{sph,flac,wav}."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kdtrans.data.corpora.utterance import Utterance, read_lines

SUFFIXES = (".sph", ".flac", ".wav")


def read(root: Path, part: str) -> Iterator[Utterance]:
    """Utterances of `train` or `test` in the order of the file ids; the speaker is the folder of the recording.

    Raises:
        ValueError: when a list is missing, a transcription line has no `(id)` or that of another, or the lists differ.
    """
    transcription = root / "etc" / f"an4_{part}.transcription"
    texts: dict[str, str] = {}
    for line in read_lines(transcription):
        text, _, utt_id = line.removesuffix(")").rpartition("(")
        if not line.endswith(")") or not utt_id or utt_id.split() != [utt_id] or ")" in utt_id:
            raise ValueError(f"{transcription}: expected 'TEXT (id)', found '{line}'")
        if utt_id in texts:
            raise ValueError(f"{transcription}: '{utt_id}' is listed twice")
        texts[utt_id] = text.strip().removeprefix("<s>").removesuffix("</s>")
    for fileid in read_lines(root / "etc" / f"an4_{part}.fileids"):
        stem = root / "wav" / fileid
        if stem.name not in texts:
            raise ValueError(f"{transcription}: no line for '{stem.name}', which an4_{part}.fileids lists")
        # A recording that is there in no format is listed all the same, so that it is counted as unreadable.
        files = [stem.with_name(stem.name + suffix) for suffix in SUFFIXES]
        audio = next((file for file in files if file.is_file()), files[0])
        yield Utterance(stem.name, stem.parent.name, audio, texts[stem.name])
