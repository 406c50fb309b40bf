"""Stage lm: transcripts and texts -> token n-gram, as an ARPA file."""

from __future__ import annotations

from pathlib import Path


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
    from kdtrans.contracts import UNKNOWN
    from kdtrans.data.manifest import read_cuts, text_of
    from kdtrans.data.tokenizer import Tokenizer
    from kdtrans.models.ngram import Ngram
    from kdtrans.models.ngram_estimate import estimate, write_arpa

    settings = configuration.read(configuration.LmConfig, config)
    pieces = Tokenizer(tokenizer)
    files = [*map(Path, settings.texts), *(texts or [])]
    with run_record(out, "lm", settings.model_dump(mode="json"), [tokenizer, *cuts, *files]) as record:
        if settings.arpa is not None:
            Ngram(settings.arpa, pieces)  # its words must be the tokenizer's pieces
            with write_whole(out) as temporary:
                shutil.copyfile(settings.arpa, temporary)
            return
        sentences = [text_of(cut) or "" for cut in read_cuts(cuts)] if settings.transcripts else []
        for file in files:
            sentences += file.read_text(encoding="utf-8").splitlines()
        encoded = [pieces.encode(sentence) for sentence in sentences if sentence.strip()]
        known = [tokens for tokens in encoded if UNKNOWN not in tokens]
        model = estimate(([pieces.pieces[token] for token in tokens] for tokens in known), settings.order)
        write_arpa(model, out)
        sizes = [len(entry.word) for entry in model.orders]
        record |= {"sentences": len(known), "unknown": len(encoded) - len(known), "ngrams": sizes}
    print(
        f"{out}: {len(known)} sentences, {sum(map(len, known))} pieces, n-grams {sizes}; "
        f"left out {len(encoded) - len(known)} sentences with characters that the tokenizer lacks",
        flush=True,
    )
