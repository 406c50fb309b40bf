"""Fetch LibriSpeech."""

from __future__ import annotations

from pathlib import Path

from kdtrans.artifacts import run_record


def main(*, root: Path, parts: list[str]) -> None:
    """Download and unpack parts of LibriSpeech (CC BY 4.0) with lhotse's recipe; parts that are there are kept.

    Args:
        root: folder to write LibriSpeech/ into.
        parts: names of the parts, e.g. train-clean-100 dev-clean test-clean.
    """
    from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH, download_librispeech

    unknown = sorted(set(parts) - {*LIBRISPEECH, *MINI_LIBRISPEECH})
    if unknown:
        known = ", ".join(LIBRISPEECH + MINI_LIBRISPEECH)
        raise ValueError(f"LibriSpeech has no part {', '.join(unknown)}; it has {known}")
    # Beside the file that the workflow leaves once all is there.
    with run_record(root / ".downloaded", "download", {"parts": parts}):
        download_librispeech(root, dataset_parts=parts)
