"""Stage lm: transcripts and texts -> token n-gram, as an ARPA file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdtrans.data.tokenizer import Tokenizer


def main(config: Path, cuts: list[Path], tokenizer: Path, out: Path, texts: list[Path] | None = None) -> None:
    """Estimate a modified Kneser-Ney n-gram over the tokenizer's pieces, or copy the one that the configuration names.

    Args:
        config: YAML of the language model (LmConfig).
        cuts: manifests whose labelled transcripts are read, if the configuration says so.
        tokenizer: sentencepiece model.
        out: ARPA file to write.
        texts: text files, a sentence a line, besides those that the configuration names.
    """
    import shutil

    from kdtrans import config as configuration
    from kdtrans.artifacts import run_record, write_whole
    from kdtrans.data.tokenizer import Tokenizer
    from kdtrans.models.ngram import Ngram
    from kdtrans.models.ngram_estimate import estimate, write_arpa

    settings = configuration.read(configuration.LmConfig, config)
    pieces = Tokenizer(tokenizer)
    facts = settings.model_dump(mode="json", exclude={"lstm"})
    files = [*map(Path, settings.texts), *(texts or [])]
    with run_record(out, "lm", facts, [tokenizer, *cuts, *files]) as record:
        if settings.arpa is not None:
            Ngram(settings.arpa, pieces)  # its words must be the tokenizer's pieces
            with write_whole(out) as temporary:
                shutil.copyfile(settings.arpa, temporary)
            return
        known, unknown = read_sentences(cuts if settings.transcripts else [], files, pieces)
        model = estimate(([pieces.pieces[token] for token in tokens] for tokens in known), settings.order)
        write_arpa(model, out)
        sizes = [len(entry.word) for entry in model.orders]
        record |= {"sentences": len(known), "unknown": unknown, "ngrams": sizes}
    print(
        f"{out}: {len(known)} sentences, {sum(map(len, known))} pieces, n-grams {sizes}; "
        f"left out {unknown} sentences with characters that the tokenizer lacks",
        flush=True,
    )


def read_sentences(cuts: list[Path], files: list[Path], tokenizer: Tokenizer) -> tuple[list[list[int]], int]:
    """The sentences that a language model is made of.

    Args:
        cuts: manifests whose transcripts are read; unlabelled cuts are left out.
        files: text files, a sentence a line.
        tokenizer: cuts sentences into tokens.

    Returns:
        The token ids of each sentence, and how many sentences were left out for characters that the tokenizer lacks.

    Raises:
        ValueError: when no sentence is left.
    """
    from kdtrans.contracts import UNKNOWN
    from kdtrans.data.corpora.utterance import read_lines
    from kdtrans.data.manifest import read_cuts, text_of

    sentences = [text_of(cut) or "" for cut in read_cuts(cuts)]
    for file in files:
        sentences += read_lines(file)
    encoded = [tokenizer.encode(sentence) for sentence in sentences if sentence.strip()]
    known = [tokens for tokens in encoded if UNKNOWN not in tokens]
    if not known:
        sources = ", ".join(map(str, [*cuts, *files])) or "neither transcripts nor texts are read"
        raise ValueError(
            f"{sources}: {len(encoded)} sentences, none that the tokenizer can spell: set lm.transcripts, "
            "or give lm.texts or a labelled dev set"
        )
    return known, len(encoded) - len(known)
