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
from kdtrans.report.tables import NONE, detail_table, html_table, wer_table

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
    targets: Mapping[str, Any] | None  # targets/index.json
    pseudo: PseudoLabels | None


def html_page(material: Material) -> str:
    """The whole page."""
    sections = {
        "Word error rate": error_rates(material.results),
        "Training": training_figures(material.metrics),
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
    """WER of every system and condition, dev apart, details folded away."""
    baseline = escape(results.baseline)
    chosen_on = "the development set" if results.conditions(dev=True) else "the first test set"
    parts = [
        wer_table(results, dev=False),
        '<p class="note">WER in %, with its 95 % bootstrap interval over utterances, drawn from 0 to the worst. '
        f"Below it: the relative change of errors against {baseline} and its interval, from a paired bootstrap. "
        f"Set in bold: the student with the lowest WER on {chosen_on}.</p>",
    ]
    if results.conditions(dev=True):
        parts.append("<h3>Development set</h3>")
        parts.append(wer_table(results, dev=True))
        parts.append('<p class="note">Systems, checkpoints and language-model weights were chosen on this set.</p>')
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
    shared = [f"{count:,} in {pair}" for pair, count in data.get("shared_speakers", {}).items() if count]
    if shared:
        parts.append(f'<p class="note">Speakers that two splits share: {escape(", ".join(shared))}.</p>')
    return "\n".join(parts)


def targets_section(targets: Mapping[str, Any] | None, pseudo: PseudoLabels | None) -> str:
    """Size of the teacher's targets, what they leave out, and the quality of the pseudo text."""
    if not targets:
        return ""
    hours = targets.get("hours") or 0.0
    size = (targets.get("bytes") or 0) / 1e6
    shards = len(targets.get("shards", []))
    per_hour = f" ({size / hours:.1f} MB for an hour of audio)" if hours else ""
    items = {
        "utterances": f"{_count(targets, 'utterances')}, {_hours(targets)} hours",
        "nodes": _count(targets, "nodes"),
        "size": f"{size:,.1f} MB in {shards} shard{'s' if shards != 1 else ''}{per_hour}",
        "probability outside the top k": _mean(targets, "mean_tail_mass"),
        "confidence of the path": _mean(targets, "mean_confidence"),
        "origin": ", ".join(f"{count:,} {name}" for name, count in targets.get("origin", {}).items()) or NONE,
    }
    if pseudo:
        items["WER of the pseudo text"] = (
            f"{pseudo.wer:.1f} % [{pseudo.wer_low:.1f}, {pseudo.wer_high:.1f}] over {pseudo.utterances:,} utterances, "
            f"{pseudo.exact:.0f} % of them without an error"
        )
    note = (
        '<p class="note">The WER of the pseudo text is a diagnostic: training never sees that reference text.</p>'
        if pseudo
        else ""
    )
    return _definitions(items) + note


def worst_section(results: Results) -> str:
    """A few utterances of the best student, reference above hypothesis."""
    best = results.best_student()
    utterances = worst_utterances(best) if best else ""
    if not best or not utterances:
        return ""
    score = best.score
    where = escape(f"{score.system}, {score.testset}, {score.search}")
    caption = f"{where}: the reference, and below it what differs; ∗ stands for no word."
    return f'<p class="note">{caption}</p>\n{utterances}'


def provenance(material: Material) -> str:
    """What made this page."""
    packages = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    scores = [row.score for row in material.results.rows]
    scored = ", ".join(dict.fromkeys(f"{score.testset} ({score.words:,} words)" for score in scores))
    items = {
        "code": material.revision,
        "created": material.created,
        "packages": packages,
        "scored": scored,
        "intervals": "percentile bootstrap over utterances, 1,000 resamples, 95 %",
    }
    return _definitions(items)


def _definitions(items: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in items.items()) + "</dl>"


def _hours(entry: Mapping[str, Any]) -> str:
    hours = entry.get("hours")
    return NONE if hours is None else f"{hours:,.1f}" if hours >= 10 else f"{hours:.2f}"


def _count(entry: Mapping[str, Any], key: str) -> str:
    return f"{entry[key]:,}" if entry.get(key) is not None else NONE


def _mean(entry: Mapping[str, Any], key: str) -> str:
    return f"{entry[key]:.4f} on average" if entry.get(key) is not None else NONE
