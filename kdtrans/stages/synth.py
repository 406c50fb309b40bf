"""Make the embedded demo corpus."""

from __future__ import annotations

from pathlib import Path

from kdtrans.artifacts import run_record
from kdtrans.config import CorpusConfig, read


def main(*, config: Path, root: Path) -> None:
    """Make the embedded corpus: LibriSpeech's layout, text for the language model, and last SHA256SUMS.

    Args:
        config: YAML file with the corpus section.
        root: folder to write LibriSpeech/, lm.txt and SHA256SUMS into.
    """
    from kdtrans.data.synth.corpus import write_corpus

    synth = read(CorpusConfig, config).synth
    with run_record(root / "SHA256SUMS", "synth", synth.model_dump(mode="json")) as record:
        record["parts"] = write_corpus(synth, root)
