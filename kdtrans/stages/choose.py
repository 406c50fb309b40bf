"""Choose between the runs of a sweep by their scores on dev."""

from __future__ import annotations

from pathlib import Path


def main(scores: list[Path], out: Path) -> None:
    """Write the runs by rising WER and the one chosen for each system: OUT and, for reading, OUT with suffix .txt.

    Args:
        scores: score summaries (NAME.score.json) of dev, all with one search.
        out: the JSON to write.
    """
    from kdtrans.artifacts import run_record, write_json, write_text
    from kdtrans.report.columns import align
    from kdtrans.scoring.sweep import chosen_runs, read_dev_scores

    with run_record(out, "choose", {}, scores):
        found = read_dev_scores(scores)
        chosen = chosen_runs(found)
        rows = [
            {
                "run": score.run,
                "system": score.system,
                "wer": score.wer,
                "wer_low": score.wer_low,
                "wer_high": score.wer_high,
                "chosen": chosen[score.system] == score.run,
            }
            for score in found
        ]
        lines = [
            [
                "*" if chosen[score.system] == score.run else "",
                score.run,
                score.system,
                f"{score.wer:.2f} [{score.wer_low:.2f}, {score.wer_high:.2f}]",
            ]
            for score in found
        ]
        title = f"Sweep on {found[0].testset}, {found[0].search}; *: the lowest WER of its system"
        table = f"{title}\n\n{align(['', 'run', 'system', 'WER %'], lines, labels=3)}\n"
        write_text(out.with_suffix(".txt"), table)
        write_json(out, {"testset": found[0].testset, "search": found[0].search, "chosen": chosen, "rows": rows})
    print(table, end="")
