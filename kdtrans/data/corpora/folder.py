"""Plain folders of audio files with transcripts in one TSV or in same-name .txt files; without either, unlabelled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from kdtrans.data.corpora.utterance import Utterance, read_lines, read_text

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


def read(root: Path, part: str) -> Iterator[Utterance]:
    """Utterances of one sub-folder (`.`: the corpus's folder itself), sorted by path.

    `{root}/{part}.tsv`, else `{root}/{part}/transcripts.tsv`, has a header with `path` (from the TSV's folder) and
    perhaps `text`, `speaker` and `id`. Without a row the text is that of the same-name .txt file, if there is one; the
    speaker is the name of the file's folder, the id its path in the part without the suffix.

    Raises:
        ValueError: when the folder is missing, or the TSV has no column `path`, a row without one, a row with more or
            fewer cells than columns, or two rows of one file.
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
        utt_id = row.get("id") or name.as_posix().removesuffix(name.suffix)
        yield Utterance(utt_id, row.get("speaker") or path.parent.name, path, text)


def _read_tsv(tsv: Path) -> dict[Path, dict[str, str]]:
    """The rows, column -> cell, by the file that they are about; none where there is no TSV."""
    if not tsv.is_file():
        return {}
    header, *lines = read_text(tsv).split("\n")
    columns = header.split("\t")
    if "path" not in columns or len(set(columns)) < len(columns):
        raise ValueError(f"{tsv}: the first line must name the columns, 'path' among them, each once; found {columns}")
    rows: dict[Path, dict[str, str]] = {}
    for number, line in enumerate(lines, 2):
        if not line:
            continue
        cells = line.split("\t")
        if len(cells) != len(columns):
            raise ValueError(f"{tsv}:{number}: {len(cells)} cells for the {len(columns)} columns {columns}")
        row = dict(zip(columns, cells, strict=True))
        if not row["path"]:
            raise ValueError(f"{tsv}:{number}: no path")
        path = Path(os.path.abspath(tsv.parent / row["path"]))
        if path in rows:
            raise ValueError(f"{tsv}:{number}: '{row['path']}' is listed twice: keep one of the rows")
        rows[path] = row
    return rows


def _text_beside(path: Path) -> str | None:
    text = path.with_suffix(".txt")
    return " ".join(read_lines(text)) if text.is_file() else None
