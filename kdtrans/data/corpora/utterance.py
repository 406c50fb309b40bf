"""What every corpus reader yields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Utterance:
    """One utterance as a corpus lists it, before its audio has been opened."""

    id: str
    speaker: str
    audio: Path
    text: str | None  # None: the corpus has no transcript of it
    start_s: float = 0.0
    end_s: float | None = None  # None: to the end of the file


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 list without the blank ones; raises ValueError naming a file that is missing or not UTF-8."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: check corpus.root and the names of the parts") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from None
    return [line.strip() for line in lines if line.strip()]


def read_table(path: Path) -> dict[str, str]:
    """A list of `key value` lines, the value being the rest of the line (perhaps empty), in the file's order."""
    table: dict[str, str] = {}
    for line in read_lines(path):
        key, _, value = line.partition(" ") if "\t" not in line.split(" ")[0] else line.partition("\t")
        if key in table:
            raise ValueError(f"{path}: '{key}' is listed twice")
        table[key] = value.strip()
    return table
