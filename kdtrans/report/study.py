"""The study: rows of several runs' summary.json side by side, as JSON and as GitHub Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from kdtrans.artifacts import read_json
from kdtrans.contracts import ContractError
from kdtrans.report.tables import MINUS, NONE, millions
from kdtrans.scoring.sweep import DEV

LEGEND = """\
WER in % with its 95 % bootstrap interval over utterances; of several seeds the mean, and their range in brackets behind
their number (the intervals do not cover the choice of seeds). WERR: relative reduction of the WER in %, positive is
better, with its paired bootstrap interval; a reduction whose interval includes 0 is in italics: it is not significant.
Streaming systems are compared with the streaming baseline and control alone, once one of them is scored. x teacher: the
WER as a multiple of the teacher's, its interval paired too. Delay: how much later than the teacher a label of the
reference is emitted on Viterbi paths, median. Speed: seconds of audio decoded in a second."""

Row = dict[str, Any]


def read_rows(split: str, path: Path) -> list[Row]:
    """The rows of one summary.json that were scored on test sets.

    Args:
        split: the name that the study gives to this run of the workflow.
        path: its summary.json.

    Returns:
        A row for each system, search and test set; what is unknown is None.

    Raises:
        ContractError: naming the file, when it is no summary of a report.
    """
    try:
        return [_row(split, row) for row in read_json(path)["rows"] if row["testset"] != DEV]
    except (KeyError, TypeError) as error:
        raise ContractError(f"{path} is not a summary of `kdtrans report` ({error!r}): report again") from None


def _row(split: str, row: Mapping[str, Any]) -> Row:
    factor = row["real_time_factor"]
    return {
        "split": split,
        "name": row["system"],
        "streaming": row["streaming"],
        "wer": row["wer"],
        "wer_low": row["wer_low"],
        "wer_high": row["wer_high"],
        "wer_least": row["wer_least"],
        "wer_most": row["wer_most"],
        **_werr("baseline", row["against_baseline"]),
        **_werr("hard", row["against_control"]),
        **_multiples(row["against_teacher"]),
        "delay_ms_p50": row["delay_ms"]["p50"] if row["delay_ms"] else None,
        "latency_ms": row["latency_ms"],
        "params": row["parameters"],
        "seeds": row["seeds"],
        "runs": len(row["runs"]),
        "search": row["search"],
        "testset": row["testset"],
        "x_realtime": 1 / factor if factor and factor > 0 else None,
    }


def _werr(name: str, against: Mapping[str, Any] | None) -> dict[str, float | None]:
    return {f"werr_{name}{end}": against[f"werr{end}"] if against else None for end in ("", "_low", "_high")}


def _multiples(teacher: Mapping[str, Any] | None) -> dict[str, float | None]:
    def multiple(reduction: str) -> float | None:
        return None if teacher is None or teacher[reduction] is None else 1 - teacher[reduction] / 100

    # The higher reduction is the lower multiple.
    low, high = multiple("werr_high"), multiple("werr_low")
    return {"x_teacher": multiple("werr"), "x_teacher_low": low, "x_teacher_high": high}


def markdown(rows: Sequence[Row], command: str, date: str, machine: str) -> str:
    """The rows as tables, one for each split, test set and search, with a legend."""
    parts = ["# Study", f"Made by `{command}` on {date}, on {machine}.", LEGEND]
    for split, of_split in groupby(rows, key=lambda row: row["split"]):
        parts.append(f"## {split}")
        tables: dict[tuple[str, str], list[Row]] = {}
        for row in of_split:
            tables.setdefault((row["testset"], row["search"]), []).append(row)
        for (testset, search), found in tables.items():
            parts.append(f"### {testset}, {search}\n\n{_table(found)}")
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Row]) -> str:
    header = ["system", "parameters", "latency", "seeds", "WER", "WERR baseline", "WERR hard", "x teacher"]
    header += ["delay", "speed"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for row in rows:
        several = f" ({row['wer_least']:.1f}{NONE}{row['wer_most']:.1f})" if row["runs"] > 1 else ""
        lines.append(
            [
                row["name"],
                millions(row["params"]),
                f"{row['latency_ms']} ms" if row["streaming"] else "whole utterance",
                f"{row['runs']}{several}",
                f"{row['wer']:.2f} [{row['wer_low']:.2f}, {row['wer_high']:.2f}]",
                _reduction(row, "werr_baseline"),
                _reduction(row, "werr_hard"),
                _multiple(row),
                NONE if row["delay_ms_p50"] is None else f"{row['delay_ms_p50']:.0f} ms".replace("-", MINUS),
                NONE if row["x_realtime"] is None else f"{row['x_realtime']:.0f}x",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _reduction(row: Row, key: str) -> str:
    value, low, high = (row[f"{key}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return NONE
    text = f"{value:.1f} [{low:.1f}, {high:.1f}]".replace("-", MINUS)
    return f"*{text}*" if low <= 0 <= high else text


def _multiple(row: Row) -> str:
    value, low, high = (row[f"x_teacher{end}"] for end in ("", "_low", "_high"))
    return NONE if value is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"
