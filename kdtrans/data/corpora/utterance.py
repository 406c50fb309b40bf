"""What every corpus reader yields."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # no white space, and in no text: the file is damaged


@dataclass(frozen=True)
class Utterance:
    """One utterance as a corpus lists it, before its audio has been opened."""

    id: str
    speaker: str
    audio: Path
    text: str | None  # None: the corpus has no transcript of it
    start_s: float = 0.0
    end_s: float | None = None  # None: to the end of the file


def read_text(path: Path) -> str:
    """A UTF-8 text with \\n at the ends of its lines, whatever the file has there, and without a byte order mark.

    Raises:
        ValueError: naming the file that is missing, not UTF-8, or has control characters.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: check corpus.root and the names of the parts") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): convert it, or fetch it again") from None
    if control := _CONTROL.search(text):
        number = text.count("\n", 0, control.start()) + 1
        raise ValueError(f"{path}:{number}: {control[0]!r} is in no text: take it out, or fetch the file again")
    return text


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 list without the blank ones; raises ValueError as `read_text` does."""
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def read_table(path: Path) -> dict[str, str]:
    """A list of `key value` lines, the value being the rest of the line (perhaps empty), in the file's order."""
    table: dict[str, str] = {}
    for line in read_lines(path):
        key, _, value = line.partition(" ") if "\t" not in line.split(" ")[0] else line.partition("\t")
        if key in table:
            raise ValueError(f"{path}: '{key}' is listed twice")
        table[key] = value.strip()
    return table
