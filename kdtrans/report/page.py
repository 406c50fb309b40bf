"""The report page: one self-contained HTML file, assembled from sections that are each a small function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from string import Template
from typing import Any

from kdtrans.artifacts import package_versions
from kdtrans.report.curves import Metrics, training_figures
from kdtrans.report.diagnostics import PseudoLabels, worst_utterances
from kdtrans.report.plots import bar
from kdtrans.report.results import Results
from kdtrans.report.style import STYLE
from kdtrans.report.tables import NONE, delay_table, detail_table, html_table, streaming_twins, wer_table

PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body><main>
<h1>$title</h1>
<p class="byline">kdtrans $revision, $created</p>
<p class="headline">$headline</p>
$sections
</main></body>
</html>
"""
)


@dataclass(frozen=True)
class Material:
    """All that the page is made of; parts that a run does not have are None or empty."""

    title: str
    revision: str
    created: str
    results: Results
    data: Mapping[str, Any]  # data/summary.json
    metrics: Metrics
    targets: Mapping[str, Mapping[str, Any]]  # target set -> its index.json
    pseudo: Mapping[str, PseudoLabels]  # target set -> quality of its pseudo text, where that can be known


def html_page(material: Material) -> str:
    """The whole page."""
    sections = {
        "Word error rate": error_rates(material.results),
        "Training": training_figures(material.metrics, material.results.runs),
        "Data": data_section(material.data),
        "Targets": targets_section(material.targets, material.pseudo),
        "Where the best student errs most": worst_section(material.results),
        "Provenance": provenance(material),
    }
    return PAGE.substitute(
        title=escape(material.title),
        style=STYLE,
        revision=escape(material.revision),
        created=material.created.replace("T", " ").replace("Z", " UTC"),
        headline=escape(material.results.headline()),
        sections="\n".join(f"<section><h2>{name}</h2>\n{body}</section>" for name, body in sections.items() if body),
    )


def error_rates(results: Results) -> str:
    """WER of every system and condition, dev apart, delays, details folded away."""
    chosen_on = "the development set" if results.conditions(dev=True) else "the first test set"
    compared = " and ".join([results.baseline, *([results.control] if results.control else [])])
    notes = [
        "WER in %, with its 95 % bootstrap interval over utterances, drawn from 0 to the worst. Below it: the relative "
        f"change of errors against {compared} and its interval, from a paired bootstrap; faint where the interval "
        f"includes 0. Set in bold: the student with the lowest WER on {chosen_on}."
    ]
    if any(len(row.runs) > 1 for row in results.rows):
        notes.append(
            "Of several seeds, the WER is the mean, and the small strokes are the seeds: the intervals do not cover "
            "their choice."
        )
    if twins := streaming_twins(results):
        notes.append(f"Streaming systems are compared with streaming ones alone: {' and '.join(twins)}.")
    parts = [wer_table(results, dev=False), _note(" ".join(notes))]
    if table := delay_table(results):
        parts += ["<h3>Latency and emission delay</h3>", table]
        parts.append(
            _note(
                "Latency: how long the first sound of a chunk waits for the last that its frames need, by design. "
                "Delay: how much later than the teacher a label of the reference is emitted, on the Viterbi paths of "
                "both: median, 90th percentile in brackets, and mean over all labels."
            )
        )
    if results.conditions(dev=True):
        parts += ["<h3>Development set</h3>", wer_table(results, dev=True)]
        parts.append(_note("Systems, checkpoints and language-model weights were chosen on this set."))
    parts.append(f"<details><summary>Error counts, characters, speed</summary>{detail_table(results)}</details>")
    return "\n".join(parts)


def data_section(data: Mapping[str, Any]) -> str:
    """Hours found and kept in each split, what failed a check, and whether it was dropped or is scored."""
    lines, reasons = [], []
    for split, entry in data.get("splits", {}).items():
        found = entry.get("found", {})
        share = entry.get("hours", 0.0) / found["hours"] if found.get("hours") else 0.0
        amounts = [_hours(found), _hours(entry), bar(share), _count(entry, "utterances"), _count(entry, "speakers")]
        lines.append([escape(split), *amounts])
        for kind, outcome in (("dropped", "dropped"), ("counted", "kept")):
            for reason, tally in entry.get(kind, {}).items():
                what = escape(reason.replace("_", " "))
                reasons.append([escape(split), what, outcome, _count(tally, "utterances"), _hours(tally)])
    if not lines:
        return ""
    parts = [html_table(["split", "hours found", "kept", "", "utterances", "speakers"], lines)]
    if reasons:
        parts.append(html_table(["split", "failed check", "outcome", "utterances", "hours"], reasons, labels=3))
    else:
        parts.append('<p class="note">Every utterance passed the checks.</p>')
    if len(speeds := data.get("speeds", [])) > 1:
        told = ", ".join(f"{speed:g}" for speed in speeds)
        parts.append(_note(f"Kept training audio counts at each of its speeds, {told}; what was found counts once."))
    shared = [f"{count:,} in {pair}" for pair, count in data.get("shared_speakers", {}).items() if count]
    if shared:
        parts.append(f'<p class="note">Speakers that two splits share: {escape(", ".join(shared))}.</p>')
    return "\n".join(parts)


def targets_section(targets: Mapping[str, Mapping[str, Any]], pseudo: Mapping[str, PseudoLabels]) -> str:
    """A column for each target set: its size, what it leaves out, and the quality of its pseudo text."""
    if not targets:
        return ""
    names, indices = list(targets), list(targets.values())
    origins = dict.fromkeys(origin for index in indices for origin in index.get("origin", {}))
    lines = [
        ["utterances", *(_count(index, "utterances") for index in indices)],
        ["hours", *map(_hours, indices)],
        ["nodes", *(_count(index, "nodes") for index in indices)],
        ["size, MB", *map(_megabytes, indices)],
        ["probability outside the top k", *(_mean(index, "mean_tail_mass") for index in indices)],
        ["confidence of the path", *(_mean(index, "mean_confidence") for index in indices)],
        *(
            [f"found by {escape(origin)}", *(_count(index.get("origin", {}), origin) for index in indices)]
            for origin in origins
        ),
    ]
    if pseudo:
        lines.append(["WER of the pseudo text, %", *(_pseudo(pseudo.get(name)) for name in names)])
        exact = [f"{pseudo[name].exact:.0f}" if name in pseudo else NONE for name in names]
        lines.append(["its utterances without an error, %", *exact])
    note = "Tail probability and confidence are means. "
    note += "The WER of the pseudo text is a diagnostic: training never sees that reference text." if pseudo else ""
    return html_table(["", *map(escape, names)], lines) + _note(note)


def worst_section(results: Results) -> str:
    """A few utterances of the best student, reference above hypothesis."""
    best = results.best_student()
    utterances = worst_utterances(best) if best else ""
    if not best or not utterances:
        return ""
    where = escape(", ".join([best.runs[0].run, *best.condition]))
    caption = f"{where}: the reference, and below it what differs; ∗ stands for no word."
    return f'<p class="note">{caption}</p>\n{utterances}'


def provenance(material: Material) -> str:
    """What made this page."""
    packages = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    scores = [row.runs[0] for row in material.results.rows]
    scored = ", ".join(dict.fromkeys(f"{score.testset} ({score.words:,} words)" for score in scores))
    items = {
        "code": material.revision,
        "created": material.created,
        "packages": packages,
        "scored": scored,
        "intervals": "percentile bootstrap over utterances, 1,000 resamples, 95 %",
    }
    return _definitions(items)


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _pseudo(found: PseudoLabels | None) -> str:
    if not found:
        return NONE
    return f'{found.wer:.1f}<span class="interval">[{found.wer_low:.1f}, {found.wer_high:.1f}]</span>'


def _megabytes(index: Mapping[str, Any]) -> str:
    hours, size = index.get("hours"), (index.get("bytes") or 0) / 1e6
    per_hour = f'<span class="interval">{size / hours:.1f} an hour</span>' if hours else ""
    return f"{size:,.1f}{per_hour}"


def _definitions(items: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in items.items()) + "</dl>"


def _hours(entry: Mapping[str, Any]) -> str:
    hours = entry.get("hours")
    return NONE if hours is None else f"{hours:,.1f}" if hours >= 10 else f"{hours:.2f}"


def _count(entry: Mapping[str, Any], key: str) -> str:
    return f"{entry[key]:,}" if entry.get(key) is not None else NONE


def _mean(entry: Mapping[str, Any], key: str) -> str:
    return f"{entry[key]:.4f}" if entry.get(key) is not None else NONE
