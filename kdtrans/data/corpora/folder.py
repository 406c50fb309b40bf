"""Plain folders of audio files with transcripts in one TSV or in same-name .txt files; without either, unlabelled."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from kdtrans.data.corpora.utterance import Utterance, read_lines

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


def read(root: Path, part: str) -> Iterator[Utterance]:
    """Utterances of one sub-folder (`.`: the corpus's folder itself), sorted by path.

    `{root}/{part}.tsv`, else `{root}/{part}/transcripts.tsv`, has a header with `path` (from the TSV's folder) and
    perhaps `text`, `speaker` and `id`. Without a row the text is that of the same-name .txt file, if there is one; the
    speaker is the name of the file's folder, the id its path in the part without the suffix.

    Raises:
        ValueError: when the folder is missing or the TSV has no column `path` or a row without one.
    """
    folder = Path(os.path.abspath(root / part))
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: check corpus.root and the names of the parts")
    beside = folder.parent / f"{folder.name}.tsv"
    rows = _read_tsv(beside if part != "." and beside.is_file() else folder / "transcripts.tsv")
    found = {path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES}
    for path in sorted(found | set(rows)):
        row = rows.get(path, {})
        name = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
        text = row["text"] if row.get("text") is not None else _text_beside(path)
        utt_id = row.get("id") or name.with_suffix("").as_posix()
        yield Utterance(utt_id, row.get("speaker") or path.parent.name, path, text)


def _read_tsv(tsv: Path) -> dict[Path, dict[str, str]]:
    if not tsv.is_file():
        return {}
    with open(tsv, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        if "path" not in (reader.fieldnames or []):
            raise ValueError(
                f"{tsv}: the first line must name the columns, 'path' among them; found {reader.fieldnames}"
            )
        rows = list(reader)
    for number, row in enumerate(rows, 2):
        if not row["path"]:
            raise ValueError(f"{tsv}:{number}: no path")
    return {Path(os.path.abspath(tsv.parent / row["path"])): row for row in rows}


def _text_beside(path: Path) -> str | None:
    text = path.with_suffix(".txt")
    return " ".join(read_lines(text)) if text.is_file() else None
