"""A Kaldi data folder a part: wav.scp, utt2spk, and if present text (none: unlabelled) and segments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kdtrans.data.corpora.utterance import Utterance, read_table


def read(root: Path, part: str) -> Iterator[Utterance]:
    """Utterances of one data folder in the order of `segments`, or of `wav.scp` without segments.

    Relative audio paths are taken from the corpus's folder.

    Raises:
        ValueError: when a file is missing, an entry of wav.scp is a command, a segment is malformed or names no
            recording, or an utterance has no speaker.
    """
    folder = root / part
    recordings = {key: _audio(root, folder, key, value) for key, value in read_table(folder / "wav.scp").items()}
    speakers = read_table(folder / "utt2spk")
    texts = read_table(folder / "text") if (folder / "text").is_file() else {}
    for utt_id, recording, start_s, end_s in _segments(folder, recordings):
        if not speakers.get(utt_id):
            raise ValueError(f"{folder / 'utt2spk'}: no speaker for utterance '{utt_id}'")
        yield Utterance(utt_id, speakers[utt_id], recordings[recording], texts.get(utt_id), start_s, end_s)


def _segments(folder: Path, recordings: dict[str, Path]) -> Iterator[tuple[str, str, float, float | None]]:
    path = folder / "segments"
    if not path.is_file():
        yield from ((recording, recording, 0.0, None) for recording in recordings)
        return
    for utt_id, line in read_table(path).items():
        try:
            recording, start, end = line.split()
            start_s, end_s = float(start), float(end)
        except ValueError:
            raise ValueError(f"{path}: '{utt_id} {line}' is not 'utterance recording start end'") from None
        if recording not in recordings:
            raise ValueError(f"{path}: utterance '{utt_id}' names recording '{recording}', which wav.scp lacks")
        if not 0 <= start_s < end_s:
            raise ValueError(f"{path}: utterance '{utt_id}' runs from {start_s:g} s to {end_s:g} s")
        yield utt_id, recording, start_s, end_s


def _audio(root: Path, folder: Path, recording: str, value: str) -> Path:
    if not value:
        raise ValueError(f"{folder / 'wav.scp'}: '{recording}' has no file")
    if value.endswith("|") or value.startswith("|"):
        raise ValueError(
            f"{folder / 'wav.scp'}: '{recording}' is a command ('{value}'): none is run; write its audio to a file"
        )
    return root / value
