"""Tables: a plain-text one for the terminal, and HTML ones for the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from kdtrans.report.plots import whisker
from kdtrans.report.results import Condition, Results, Row

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
DETAILS = ["test set", "search", "S", "D", "I", "words", "CER %", "LM weight", "RTF"]


def text_table(results: Results) -> str:
    """The results as plain text: the systems, then details of each score, at most ~100 columns for two conditions."""
    parts = [results.headline()]
    for dev in (False, True):
        conditions = results.conditions(dev)
        if not conditions:
            continue
        header = ["system", "parameters"]
        for testset, search in conditions:
            header += [f"{testset} {search}: WER %", f"vs {results.baseline} %"]
        lines = []
        for system in results.systems:
            rows = [results.row(system, condition) for condition in conditions]
            cells = [cell for row in rows for cell in ((_wer(row), reduction(row)) if row else (NONE, NONE))]
            if any(rows):
                lines.append([system, next(millions(row.score.parameters) for row in rows if row), *cells])
        title = "Development set (systems, checkpoints and LM weights were chosen on it)" if dev else "Test sets"
        parts.append(f"{title}\n{align(header, lines)}")
    parts.append("Details\n" + align(["system", *DETAILS], [detail(row) for row in results.rows], labels=3))
    parts.append(
        "[low, high]: 95 % bootstrap interval over utterances; vs: relative change of the WER, paired;\n"
        "RTF: seconds of decoding for a second of audio."
    )
    # Signs of the keyboard only, because a terminal may know no others.
    return "\n\n".join(parts).replace(MINUS, "-").replace(NONE, "-") + "\n"


def align(header: Sequence[str], lines: Sequence[Sequence[str]], labels: int = 1) -> str:
    """Columns two spaces apart, the first `labels` flush left, the others flush right, a rule below the header."""
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header))]

    def join(cells: Sequence[str]) -> str:
        padded = zip(cells, widths, strict=True)
        return "  ".join(cell.ljust(w) if column < labels else cell.rjust(w) for column, (cell, w) in enumerate(padded))

    return "\n".join([join(header), "-" * (sum(widths) + 2 * (len(widths) - 1)), *map(join, lines)])


def reduction(row: Row) -> str:
    """Relative change of the WER against the baseline in %, with its interval; fewer errors carry a minus sign."""
    comparison = row.comparison
    if comparison is None or comparison.werr is None or comparison.werr_low is None or comparison.werr_high is None:
        return NONE
    return f"{signed(-comparison.werr)} [{signed(-comparison.werr_high)}, {signed(-comparison.werr_low)}]"


def signed(value: float) -> str:
    """A whole number with a typographic sign."""
    rounded = round(value)
    return f"{MINUS if rounded < 0 else '+' if rounded > 0 else ''}{abs(rounded)}"


def millions(parameters: int) -> str:
    """A number of parameters, as millions with three figures."""
    value = parameters / 1e6
    return f"{value:.0f} M" if value >= 100 else f"{value:.1f} M" if value >= 10 else f"{value:.2f} M"


def detail(row: Row) -> list[str]:
    """What the second table shows of one score."""
    score = row.score
    counts = [f"{count:,}" for count in (score.sub, score.dele, score.ins, score.words)]
    rates = [f"{score.cer:.2f}", f"{score.lm_weight:g}", f"{row.real_time_factor:.3f}"]
    return [score.system, score.testset, score.search, *counts, *rates]


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
    """HTML: systems down, conditions across; a cell is a WER, its interval drawn, and the change to the baseline."""
    conditions = results.conditions(dev)
    best = results.best_student()
    header = ["", *(f"{escape(testset)} <small>{escape(search)}</small>" for testset, search in conditions)]
    lines = []
    for system in results.systems:
        rows = [results.row(system, condition) for condition in conditions]
        if any(rows):
            size = next(millions(row.score.parameters) for row in rows if row)
            name = escape(system)
            if best and system == best.score.system:
                name = f"<strong>{name}</strong>"
            cells = [
                _cell(row, scale(results, row.condition), system == results.baseline) if row else NONE for row in rows
            ]
            lines.append([f'{name}<span class="size">{size}</span>', *cells])
    return html_table(header, lines)


def detail_table(results: Results) -> str:
    """HTML: counts, CER and speed of each score."""
    return html_table(["", *DETAILS], [[escape(cell) for cell in detail(row)] for row in results.rows], labels=3)


def scale(results: Results, condition: Condition) -> float:
    """The WER at the right end of the whiskers of one condition."""
    return max(row.score.wer_high for row in results.rows if row.condition == condition)


def _wer(row: Row) -> str:
    return f"{row.score.wer:.2f} [{row.score.wer_low:.2f}, {row.score.wer_high:.2f}]"


def _cell(row: Row, largest: float, is_baseline: bool) -> str:
    score, change = row.score, reduction(row)
    value, _, interval = change.partition(" ")
    change = f'{value} %<span class="interval">{interval}</span>' if interval else "baseline" if is_baseline else ""
    parts = [
        f'<span class="wer">{score.wer:.1f}</span>',
        f'<span class="interval">[{score.wer_low:.1f}, {score.wer_high:.1f}]</span>',
        whisker(score.wer, score.wer_low, score.wer_high, largest),
        f'<span class="change">{change}</span>',
    ]
    return "".join(parts)
