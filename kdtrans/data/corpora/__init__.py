"""Corpora: one small reader a layout, all yielding `Utterance`; `audio.open_cut` turns one into a lhotse cut."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from kdtrans.contracts import is_unicode
from kdtrans.data.corpora import an4, folder, kaldi, librispeech
from kdtrans.data.corpora.utterance import Utterance

READERS: dict[str, Callable[[Path, str], Iterable[Utterance]]] = {
    "librispeech": librispeech.read,
    "synth": librispeech.read,  # the embedded corpus is written in LibriSpeech's layout
    "an4": an4.read,
    "kaldi": kaldi.read,
    "folder": folder.read,
}


def read_part(name: str, root: Path, part: str) -> list[Utterance]:
    """Read one of a corpus's own parts, in a fixed order, with normalised text and absolute audio paths.

    No audio is opened here.

    Args:
        name: the layout, a key of READERS.
        root: the corpus's folder.
        part: the part's name in that corpus, e.g. `train-clean-100`.

    Raises:
        ValueError: when the part is missing, has no utterance, a line of its lists cannot be read, or an utterance's id
            or speaker is empty or, like the path of its audio, no Unicode; names the file.
    """
    utterances = [_named(utterance) for utterance in READERS[name](Path(root), part)]
    if not utterances:
        raise ValueError(f"{root}: part '{part}' of the {name} corpus has no utterance: check corpus.root and the part")
    return utterances


def _named(utterance: Utterance) -> Utterance:
    """The utterance with normalised text and an absolute path, if its names can be written into a manifest."""
    audio = utterance.audio.absolute()
    for what, name in {"id": utterance.id, "speaker": utterance.speaker, "path": str(audio)}.items():
        if not name.strip():
            raise ValueError(f"{audio} (utterance '{utterance.id}') has no {what}")
        # A file name is any bytes.
        if not is_unicode(name):
            raise ValueError(f"{audio}: the {what} is not UTF-8: rename the file or its folder")
    return replace(utterance, audio=audio, text=normalise(utterance.text))


def normalise(text: str | None) -> str | None:
    """Unicode NFC with single spaces; the case is left alone. None stays None."""
    return None if text is None else " ".join(unicodedata.normalize("NFC", text).split())
