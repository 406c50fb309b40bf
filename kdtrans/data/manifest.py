"""Manifests: gzipped JSON lines of lhotse MonoCuts at 16 kHz, each with exactly one supervision.

An unlabelled cut's supervision has text None; `speaker` is always set; ids are unique over the files read together.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

from lhotse import MonoCut
from lhotse.serialization import deserialize_item

from kdtrans.artifacts import write_whole
from kdtrans.contracts import SAMPLE_RATE, ContractError, manifest_files, parse_cut, read_manifest_lines


def read_cuts(paths: Iterable[Path]) -> list[MonoCut]:
    """Read manifest files, or all of a folder (`manifest_files`), in the order given.

    Raises:
        ContractError: naming the file that is missing, cut short, not a manifest of MonoCuts at 16 kHz with one
            supervision each, or that repeats an id.
    """
    cuts: list[MonoCut] = []
    seen: dict[str, Path] = {}
    for path in manifest_files(paths):
        for number, line in enumerate(read_manifest_lines(path), 1):
            cut = read_cut(line, f"{path}:{number}")
            if cut.id in seen:
                raise ContractError(f"{path}:{number}: id '{cut.id}' is already in {seen[cut.id]}: ids must be unique")
            seen[cut.id] = path
            cuts.append(cut)
    return cuts


def write_cuts(cuts: Iterable[MonoCut], path: Path) -> None:
    """Write a whole manifest file; the same cuts always give the same bytes."""
    with (
        write_whole(path) as temporary,
        open(temporary, "wb") as raw,
        # No name and no time in the gzip header: the bytes depend on the cuts alone.
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file,
    ):
        for cut in cuts:
            file.write((json.dumps(cut.to_dict(), ensure_ascii=False) + "\n").encode())


def text_of(cut: MonoCut) -> str | None:
    """The cut's transcript; None when it is unlabelled."""
    return cut.supervisions[0].text


def speaker_of(cut: MonoCut) -> str:
    """The cut's speaker."""
    return cut.supervisions[0].speaker


def read_cut(line: str, where: str) -> MonoCut:
    """A line of a manifest as a cut; raises ContractError naming `where` as `read_cuts` does."""
    values = parse_cut(line, where)
    try:
        cut = deserialize_item(values)
    except Exception as error:  # lhotse builds its objects from whatever it is given, and fails in as many ways
        raise ContractError(f"{where}: not a lhotse cut ({error!r}): make the manifest anew") from None
    if not isinstance(cut, MonoCut):
        raise ContractError(f"{where}: expected a MonoCut with one supervision")
    if cut.recording is not None and cut.sampling_rate != SAMPLE_RATE:
        raise ContractError(
            f"{where}: cut '{cut.id}' is at {cut.sampling_rate} Hz, expected {SAMPLE_RATE}: cut.resample({SAMPLE_RATE})"
        )
    return cut
