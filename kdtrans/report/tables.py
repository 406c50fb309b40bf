"""Tables: a plain-text one for the terminal, and HTML ones for the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from kdtrans.report.columns import align
from kdtrans.report.plots import whisker
from kdtrans.report.results import Against, Condition, Results, Row

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
DETAILS = ["test set", "search", "S", "D", "I", "words", "CER %", "LM weight", "RTF"]
DELAYS = ["test set", "latency ms", "delay ms: p50 (p90)", "mean"]
WHOLE = "whole utterance"


def text_table(results: Results) -> str:
    """The results as plain text of ~110 columns: a table a condition, delays, then details of each score."""
    parts = [results.headline()]
    for dev in (False, True):
        parts += [_condition(results, condition) for condition in results.conditions(dev)]
    if lines := delay_lines(results):
        parts.append("Latency and emission delay\n" + align(["system", *DELAYS], lines, labels=2))
    parts.append("Details\n" + align(["system", *DETAILS], [detail(row) for row in results.rows], labels=3))
    parts.append("\n".join(_legend(results)))
    # Signs of the keyboard only, because a terminal may know no others.
    return "\n\n".join(parts).replace(MINUS, "-").replace(NONE, "-") + "\n"


def _condition(results: Results, condition: Condition) -> str:
    """Text: the systems in one condition."""
    rows = [row for row in results.rows if row.condition == condition]
    several = any(len(row.runs) > 1 for row in rows)
    header = ["system", "size", "WER %", *(["seeds"] if several else []), f"vs {results.baseline} %"]
    header += [f"vs {results.control} %"] if results.control else []
    lines = []
    for row in rows:
        line = [row.system, millions(row.parameters), f"{row.wer:.2f} [{row.wer_low:.2f}, {row.wer_high:.2f}]"]
        line += [seeds(row)] if several else []
        line += [_marked(row.baseline)] + ([_marked(row.control)] if results.control else [])
        lines.append(line)
    testset, search = condition
    note = " (systems, checkpoints and LM weights were chosen on it)" if condition in results.conditions(True) else ""
    return f"{testset}, {search}{note}\n{align(header, lines)}"


def _legend(results: Results) -> list[str]:
    lines = [
        "[low, high]: 95 % bootstrap interval over utterances; vs: relative change of the WER, paired;",
        "ns: its interval includes 0, not significant; RTF: seconds of decoding for a second of audio.",
    ]
    if any(len(row.runs) > 1 for row in results.rows):
        lines.append("Of several seeds: the WER is their mean; seeds: their number and their lowest and highest WER,")
        lines.append("which the intervals, over utterances, do not cover.")
    if twins := streaming_twins(results):
        lines.append(f"Streaming systems are compared with streaming ones alone: {' and '.join(twins)}.")
    if results.delays:
        lines.append("delay: how much later than the teacher a label of the reference is emitted, on Viterbi paths.")
    return lines


def streaming_twins(results: Results) -> list[str]:
    """The systems, other than the baseline and the control, that some are compared with."""
    found = dict.fromkeys(a.system for row in results.rows for a in (row.baseline, row.control) if a)
    return [name for name in found if name not in (results.baseline, results.control)]


def reduction(against: Against | None) -> str:
    """Relative change of the WER in %, with its interval; fewer errors carry a minus sign."""
    found = against.comparison if against else None
    if found is None or found.werr is None or found.werr_low is None or found.werr_high is None:
        return NONE
    return f"{signed(-found.werr)} [{signed(-found.werr_high)}, {signed(-found.werr_low)}]"


def signed(value: float) -> str:
    """A whole number with a typographic sign."""
    rounded = round(value)
    return f"{MINUS if rounded < 0 else '+' if rounded > 0 else ''}{abs(rounded)}"


def millions(parameters: int) -> str:
    """A number of parameters, as millions with three figures."""
    value = parameters / 1e6
    return f"{value:.0f} M" if value >= 100 else f"{value:.1f} M" if value >= 10 else f"{value:.2f} M"


def seeds(row: Row) -> str:
    """The number of runs and the range of their WER; a dash for a single one."""
    low, high = row.spread
    return f"{len(row.runs)}: {low:.2f}{NONE}{high:.2f}" if len(row.runs) > 1 else NONE


def delay_lines(results: Results) -> list[list[str]]:
    """System, test set, latency and delay of every system but the teacher, whose delay is 0 by definition.

    Where the searches of a streaming system differ in their chunks, all their latencies are named; delays are measured
    with the system's own chunk.
    """
    lines = []
    for (system, testset), delay in results.delays.items():
        rows = [row for row in results.rows if (row.system, row.condition[0]) == (system, testset)]
        latencies = dict.fromkeys(WHOLE if row.latency_ms is None else f"{row.latency_ms}" for row in rows)
        typical = f"{signed(delay.p50)} ({signed(delay.p90)})"
        lines.append([system, testset, ", ".join(latencies) or NONE, typical, signed(delay.mean)])
    return lines


def detail(row: Row) -> list[str]:
    """What the details show of one row; the counts are of all its runs."""
    counts = [f"{row.total(count):,}" for count in ("sub", "dele", "ins", "words")]
    weights = ", ".join(dict.fromkeys(f"{run.lm_weight:g}" for run in row.runs))
    return [row.system, *row.condition, *counts, f"{row.cer:.2f}", weights, f"{row.real_time_factor:.3f}"]


def html_table(header: Sequence[str], lines: Sequence[Sequence[str]], labels: int = 1) -> str:
    """A table of cells that are HTML already.

    Args:
        header: one text a column.
        lines: rows of as many cells.
        labels: number of columns, from the left, that hold words and not numbers.
    """

    def cells(tag: str, values: Sequence[str]) -> str:
        kinds = ["label" if column < labels else "number" for column in range(len(values))]
        return "".join(f'<{tag} class="{kind}">{value}</{tag}>' for kind, value in zip(kinds, values, strict=True))

    body = "\n".join(f"<tr>{cells('td', line)}</tr>" for line in lines)
    head = f"<thead><tr>{cells('th', header)}</tr></thead>"
    return f'<div class="scroll"><table>{head}\n<tbody>{body}</tbody></table></div>'


def wer_table(results: Results, dev: bool) -> str:
    """HTML: systems down, conditions across; a cell is a WER, its interval drawn, and the changes."""
    conditions = results.conditions(dev)
    best = results.best_student()
    header = ["", *(f"{escape(testset)} <small>{escape(search)}</small>" for testset, search in conditions)]
    lines = []
    for system in results.systems:
        rows = [results.row(system, condition) for condition in conditions]
        scored = [row for row in rows if row]
        if scored:
            name = escape(system)
            if best and system == best.system:
                name = f"<strong>{name}</strong>"
            compared = [kind for kind in ("baseline", "control") if any(getattr(row, kind) for row in scored)]
            cells = [_cell(row, scale(results, row.condition), compared) if row else NONE for row in rows]
            lines.append([name + _label(scored, compared), *cells])
    return html_table(header, lines)


def delay_table(results: Results) -> str:
    """HTML: latency and emission delay; empty where no alignment was given."""
    lines = [[escape(cell) for cell in line] for line in delay_lines(results)]
    return html_table(["", *DELAYS], lines, labels=2) if lines else ""


def detail_table(results: Results) -> str:
    """HTML: counts, CER and speed of each row."""
    return html_table(["", *DETAILS], [[escape(cell) for cell in detail(row)] for row in results.rows], labels=3)


def scale(results: Results, condition: Condition) -> float:
    """The WER at the right end of the whiskers of one condition."""
    return max(row.wer_high for row in results.rows if row.condition == condition)


def _marked(against: Against | None) -> str:
    """Text: a change, with `ns` behind it where it is not significant; the same width either way."""
    change = reduction(against)
    mark = "ns" if change != NONE and against and not against.comparison.significant else "  "
    return f"{change} {mark}"


def _label(rows: Sequence[Row], compared: Sequence[str]) -> str:
    """HTML: what stands below a system's name; its lines are beside those of the cells."""
    several = f", {len(rows[0].runs)} seeds" if len(rows[0].runs) > 1 else ""
    parts = [f'<span class="size">{millions(rows[0].parameters)}{several}</span>']
    for kind in compared:
        against = next(found for row in rows if (found := getattr(row, kind)))
        parts.append(f'<span class="change">vs {escape(against.system)}</span>')
    return "".join(parts)


def _cell(row: Row, largest: float, compared: Sequence[str]) -> str:
    interval = f"[{row.wer_low:.1f}, {row.wer_high:.1f}]"
    parts = [
        f'<span class="wer">{row.wer:.1f}</span><span class="interval">{interval}</span>',
        whisker(row.wer, row.wer_low, row.wer_high, largest, [run.wer for run in row.runs]),
        *(_change(getattr(row, kind)) for kind in compared),
    ]
    return "".join(parts)


def _change(against: Against | None) -> str:
    """HTML: one line of a cell; faint where the change is not significant."""
    value, _, interval = reduction(against).partition(" ")
    if not against or not interval:
        return '<span class="change"></span>'
    kind = "change" if against.comparison.significant else "change unsure"
    return f'<span class="{kind}"><b>{value} %</b><span class="interval">{interval}</span></span>'
