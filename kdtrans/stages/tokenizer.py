"""Stage tokenizer: labelled text -> sentencepiece model."""

from __future__ import annotations

from pathlib import Path


def main(config: Path, cuts: list[Path], out: Path) -> None:
    """Train the tokenizer on the labelled text of the cuts, or copy the model that the configuration names.

    Args:
        config: YAML of the tokenizer (TokenizerConfig).
        cuts: manifests whose labelled text is read.
        out: sentencepiece model to write.
    """
    import shutil

    from kdtrans import config as configuration
    from kdtrans.artifacts import run_record, write_whole
    from kdtrans.data.manifest import read_cuts, text_of
    from kdtrans.data.tokenizer import Tokenizer, train_tokenizer

    settings = configuration.read(configuration.TokenizerConfig, config)
    with run_record(out, "tokenizer", settings.model_dump(mode="json"), cuts) as record:
        if settings.model is not None:
            Tokenizer(settings.model)
            with write_whole(out) as temporary:
                shutil.copyfile(settings.model, temporary)
        else:
            texts = [text for cut in read_cuts(cuts) if (text := text_of(cut)) is not None]
            train_tokenizer(texts, settings, out)
        record["vocab_size"] = Tokenizer(out).vocab_size
    print(f"{out}: {record['vocab_size']} pieces", flush=True)
