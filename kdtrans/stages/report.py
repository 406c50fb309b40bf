"""Write the table of systems, its JSON, and the HTML report."""

from __future__ import annotations

from pathlib import Path


def main(
    config: Path,
    scores: list[Path],
    data_summary: Path,
    metrics: list[str],
    out_dir: Path,
    index: Path | None = None,
    unlabelled_text: Path | None = None,
    targets: list[Path] | None = None,
) -> None:
    """Write OUT_DIR/table.txt, summary.json and index.html, and print the table.

    Args:
        config: YAML of the report section.
        scores: score summaries (NAME.score.json), in the order of the table.
        data_summary: data/summary.json.
        metrics: NAME=metrics.jsonl of each trained system.
        out_dir: folder to write into.
        index: index.json of the targets.
        unlabelled_text: the hidden text of unlabelled audio, to judge the pseudo text by.
        targets: target shards with that pseudo text.
    """
    import time

    from kdtrans.artifacts import code_revision, read_json, run_record, write_json, write_text
    from kdtrans.config import ReportConfig, read
    from kdtrans.report.curves import read_metrics
    from kdtrans.report.diagnostics import pseudo_labels
    from kdtrans.report.page import Material, html_page
    from kdtrans.report.results import read_results
    from kdtrans.report.tables import text_table

    section = read(ReportConfig, config)
    page = out_dir / "index.html"
    inputs = [*scores, data_summary, *([index] if index else [])]
    with run_record(page, "report", section.model_dump(), inputs):
        results = read_results(scores, section.baseline)
        material = Material(
            title=section.title,
            revision=code_revision(),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            results=results,
            data=read_json(data_summary),
            metrics=read_metrics(metrics),
            targets=read_json(index) if index else None,
            pseudo=pseudo_labels(unlabelled_text, targets) if unlabelled_text and targets else None,
        )
        table = text_table(results)
        summary = {
            "title": section.title,
            "baseline": section.baseline,
            "created": material.created,
            "code_revision": material.revision,
            "headline": results.headline(),
            "rows": [row.to_json() for row in results.rows],
        }
        write_text(out_dir / "table.txt", table)
        write_json(out_dir / "summary.json", summary)
        write_text(page, html_page(material))
    print(table, end="")
