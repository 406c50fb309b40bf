"""Score hypotheses: words and errors of each utterance, and a summary with its interval."""

from __future__ import annotations

from pathlib import Path

from kdtrans.contracts import footer_number, read_footer

FOOTER = ("parameters", "decode_seconds", "audio_seconds", "lm_weight")


def main(hypotheses: Path, cuts: list[Path], run: str, system: str, search: str, testset: str, out: Path) -> None:
    """Score one run's hypotheses for one test set; write OUT and, beside it, the per-utterance counts.

    Args:
        hypotheses: the Parquet file of decode.
        cuts: manifest files of the test set.
        run: name of the run: the system's, or SYSTEM-seedN.
        system: name of the system, for the report.
        search: name of the search, for the report.
        testset: name of the test set, for the report.
        out: the summary to write, NAME.score.json; the counts become NAME.score.parquet.
    """
    from importlib.metadata import version

    import pyarrow as pa

    from kdtrans import contracts
    from kdtrans.artifacts import run_record, write_json
    from kdtrans.scoring.bootstrap import wer_interval
    from kdtrans.scoring.references import match_hypotheses, read_references
    from kdtrans.scoring.wer import NORMALISER, character_errors, word_errors

    names = {"run": run, "system": system, "search": search, "testset": testset}
    with run_record(out, "score", names, [hypotheses, *cuts]):
        footer = read_footer(hypotheses)
        facts = {key: footer_number(footer, key, hypotheses) for key in FOOTER}
        streams = footer.get("latency_ms")  # "": it does not
        references = read_references(cuts)
        table = contracts.read_table(hypotheses, contracts.HYPOTHESES, ("utt_id", "rank", "text"))
        found = match_hypotheses(table, references, hypotheses)
        texts = [reference.text or "" for reference in references.values()]
        counts = word_errors(texts, list(found.values()))
        low, high = wer_interval(counts.words, counts.errors)
        columns = {
            "utt_id": list(references),
            "speaker": [reference.speaker for reference in references.values()],
            "reference": texts,
            "hypothesis": list(found.values()),
            "words": counts.words,
            "sub": counts.sub,
            "del": counts.dele,
            "ins": counts.ins,
            "seconds": [reference.seconds for reference in references.values()],
        }
        summary = contracts.ScoreSummary(
            **names,
            wer=counts.rate,
            wer_low=low,
            wer_high=high,
            cer=character_errors(texts, list(found.values())).rate,
            sub=int(counts.sub.sum()),
            dele=int(counts.dele.sum()),
            ins=int(counts.ins.sum()),
            words=int(counts.words.sum()),
            utterances=len(references),
            audio_seconds=facts["audio_seconds"],
            decode_seconds=facts["decode_seconds"],
            parameters=int(facts["parameters"]),
            lm_weight=facts["lm_weight"],
            latency_ms=round(footer_number(footer, "latency_ms", hypotheses)) if streams else None,
        )
        contracts.write_table(pa.table(columns, schema=contracts.SCORES), out.with_suffix(".parquet"), names)
        versions = {"jiwer": version("jiwer"), "normaliser": NORMALISER}
        write_json(out, summary.to_json() | versions)
    print(f"{run} {search} {testset}: {summary.wer:.2f} % WER [{low:.2f}, {high:.2f}], {summary.utterances} utterances")
