"""The state of all artifacts as plain text, a line for each or for each series of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kdtrans.report.columns import align
from kdtrans.report.status import MOST_NAMED, OLDER_CODE, PRESENT, STATES, Row, named

HEADER = ["artifact", "state", "seconds", "size", "created (UTC)"]


def status_text(rows: Sequence[Row], results: str, configs: Sequence[str], each: bool) -> str:
    """The table, the totals, and what makes anew what older code has made.

    Args:
        rows: of all artifacts.
        results: their folder, which is left out of their names.
        configs: the configuration files, for a command line to copy.
        each: a line for each artifact; otherwise one for a series: the shards of a target set, the scores of a run.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        name = row.artifact.path if each else row.artifact.series or row.artifact.path
        groups.setdefault((row.artifact.phase, name), []).append(row)
    header, rule, *lines = align(HEADER, [_cells(name, group) for (_, name), group in groups.items()], 2).splitlines()
    parts, before = [header, rule], ""
    for ((phase, _), group), line in zip(groups.items(), lines, strict=True):
        parts += [phase] * (phase != before)
        parts += [line, *(f"      {reason}" for reason in _reasons(group))]
        before = phase
    parts += ["", _totals(rows), *_forced(rows, configs)]
    return "\n".join(parts).replace(f"{results}/", "")


def _cells(name: str, group: list[Row]) -> list[str]:
    counts = Counter(row.state for row in group)
    states = [f"{counts[state]:,} {state}" if len(group) > 1 else state for state in STATES if counts[state]]
    seconds, size = sum(row.seconds for row in group), sum(row.size for row in group)
    created = max(row.created for row in group).replace("T", " ")[:16]
    name = group[0].artifact.path if len(group) == 1 else name
    return [f"  {name}", ", ".join(states), f"{seconds:,.1f}" if seconds else "", _size(size) if size else "", created]


def _reasons(group: list[Row]) -> list[str]:
    """What is odd about the members of a group; their names where they differ."""
    odd: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for row in group:
        if row.state != PRESENT:
            folder, _, _ = row.artifact.series.partition("*")
            name = row.artifact.path.removeprefix(folder[: folder.rfind("/") + 1])
            odd.setdefault((row.state, row.why), []).append(name)
    if [len(names) for names in odd.values()] == [len(group)]:  # what is so of all of them
        return [reason for _, why in odd for reason in why]
    lines = [f"{state}: {named(names)}" + f" ({'; '.join(why)})" * bool(why) for (state, why), names in odd.items()]
    left = len(lines) - MOST_NAMED
    return lines[:MOST_NAMED] + [f"and {left:,} other reasons: --all has a line for each"] * (left > 0)


def _totals(rows: Sequence[Row]) -> str:
    counts = Counter(row.state for row in rows)
    states = ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts[state])
    size, hours = sum(row.size for row in rows), sum(row.seconds for row in rows) / 3600
    return f"{len(rows):,} artifacts: {states}; {_size(size)}, {hours:,.2f} machine hours"


def _forced(rows: Sequence[Row], configs: Sequence[str]) -> list[str]:
    """How to make again what older code has made: Snakemake does not by itself."""
    rules = dict.fromkeys(row.artifact.rule for row in rows if row.state == OLDER_CODE)
    if not rules:
        return []
    files = ["--configfile", *configs] if configs else []
    command = " ".join(["snakemake --forcerun", *rules, *files])
    return [f"Snakemake keeps what older code has made. To make it, and what follows, again: {command}"]


def _size(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size} B"
