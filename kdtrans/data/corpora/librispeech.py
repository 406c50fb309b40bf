"""LibriSpeech's layout: {part}/{speaker}/{chapter}/{speaker}-{chapter}.trans.txt beside {utt_id}.flac."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kdtrans.data.corpora.utterance import Utterance, read_lines


def read(root: Path, part: str) -> Iterator[Utterance]:
    """Utterances of one part (`train-clean-100`, ...), sorted by speaker, chapter and number.

    Args:
        root: the `LibriSpeech` folder or the one above it.
        part: sub-folder.

    Raises:
        ValueError: when the part is missing or a transcript line does not belong to its chapter.
    """
    # lhotse's own recipe leaves out missing audio with a warning and stops at a damaged file; here both are counted.
    base = root / "LibriSpeech" if (root / "LibriSpeech").is_dir() else root
    if not (base / part).is_dir():
        raise ValueError(f"{base / part} is no folder: check corpus.root and the names of the parts")
    for transcripts in sorted((base / part).glob("*/*/*.trans.txt")):
        yield from read_chapter(transcripts)


def read_chapter(transcripts: Path) -> Iterator[Utterance]:
    """Utterances of one `{speaker}-{chapter}.trans.txt`, whose lines are `{speaker}-{chapter}-{number} TEXT`."""
    chapter = transcripts.name.removesuffix(".trans.txt")
    speaker = chapter.split("-")[0]
    for line in read_lines(transcripts):
        utt_id, _, text = line.partition(" ")
        if not utt_id.startswith(f"{chapter}-"):
            raise ValueError(f"{transcripts}: utterance '{utt_id}' does not belong to chapter '{chapter}'")
        yield Utterance(utt_id, speaker, transcripts.with_name(f"{utt_id}.flac"), text)
