"""Stage tune-lm: choose the weight of the language model on dev."""

from __future__ import annotations

from pathlib import Path


def main(config: Path, search: str, model: Path, cuts: list[Path], tokenizer: Path, lm: list[Path], out: Path) -> None:
    """Decode dev with every weight of the configuration and keep the one with the lowest WER, the smaller of equals.

    Args:
        config: YAML of decoding (DecodeConfig).
        search: name of a search in it that has lm.
        model: model.pt of the system.
        cuts: manifests of the development set; unlabelled cuts are left out.
        tokenizer: sentencepiece model.
        lm: the language model that the search names: ARPA file, or model of lstm-lm; with density_ratio the n-gram of
            the transcripts behind it.
        out: JSON to write: the weight, and the WER of every weight tried.
    """
    from kdtrans import config as configuration
    from kdtrans.artifacts import run_record, write_json
    from kdtrans.data.manifest import read_cuts, text_of
    from kdtrans.data.tokenizer import Tokenizer
    from kdtrans.models.lm import load_fusion
    from kdtrans.scoring.wer import word_error_rate
    from kdtrans.search.batches import gathered
    from kdtrans.search.search import search as decode
    from kdtrans.stages.decode import check_installed, check_predictor, encoded_batches, search_named, set_chunk
    from kdtrans.training.checkpoint import ready_model

    settings = configuration.read(configuration.DecodeConfig, config)
    chosen = search_named(settings, search, config)
    if not chosen.lm or not settings.lm_weights:
        raise ValueError(f"{config}: tuning needs lm in the search '{search}', and at least one of lm_weights")
    check_installed(chosen)
    facts = {"search": search, **chosen.model_dump(mode="json"), "lm_weights": settings.lm_weights}
    with run_record(out, "tune-lm", facts, [model, *cuts, tokenizer, *lm]):
        pieces = Tokenizer(tokenizer)
        system, device = ready_model(model, pieces)
        set_chunk(system.encoder, chosen, search, model)
        check_predictor(system, chosen, search, model)
        fusion = load_fusion(chosen, lm, pieces).to(device)
        dev = [cut for cut in read_cuts(cuts) if text_of(cut)]
        if not dev:
            raise ValueError(f"{', '.join(map(str, cuts))}: no labelled utterance to choose the weight on")
        batches = list(gathered(encoded_batches(system, dev, settings.max_duration_s)))
        references = [text_of(cut) or "" for batch, *_ in batches for cut in batch]
        tried: dict[float, float] = {}
        for weight in sorted(set(settings.lm_weights)):
            hypotheses = []
            for _, enc_BTE, lengths_B in batches:
                found = decode(system, enc_BTE, lengths_B, chosen, fusion, weight)
                hypotheses += [pieces.decode(nbest[0].tokens) for nbest in found]
            tried[weight] = round(word_error_rate(references, hypotheses), 4)
            print(f"{search}: LM weight {weight:g}: {tried[weight]:.2f} % WER on {len(dev)} utterances", flush=True)
        best = min(tried, key=lambda weight: (tried[weight], weight))
        write_json(out, {"lm_weight": best, "tried": {str(weight): wer for weight, wer in tried.items()}})
