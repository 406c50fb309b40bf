"""Write the table of systems, its JSON, and the HTML report."""

from __future__ import annotations

from pathlib import Path


def main(
    config: Path,
    scores: list[Path],
    data_summary: Path,
    metrics: list[str],
    out_dir: Path,
    alignments: list[Path] | None = None,
    indices: list[Path] | None = None,
    unlabelled_text: Path | None = None,
) -> None:
    """Write OUT_DIR/table.txt, summary.json and index.html, and print the table.

    Args:
        config: YAML of the report section.
        scores: score summaries (NAME.score.json), in the order of the table.
        data_summary: data/summary.json.
        metrics: RUN=metrics.jsonl of each trained run.
        out_dir: folder to write into.
        alignments: RUN/TESTSET.parquet of align, the teacher's among them, for the emission delays.
        indices: SET/train/index.json of the target sets, their shards beside each.
        unlabelled_text: the hidden text of unlabelled audio, to judge the pseudo text by.
    """
    import time

    from kdtrans.artifacts import code_revision, read_json, run_record, write_json, write_text
    from kdtrans.config import ReportConfig, read
    from kdtrans.report.curves import read_metrics
    from kdtrans.report.diagnostics import pseudo_labels, shards_of
    from kdtrans.report.page import Material, html_page
    from kdtrans.report.results import read_results
    from kdtrans.report.tables import text_table

    section = read(ReportConfig, config)
    page = out_dir / "index.html"
    sets = {index.resolve().parent.parent.name: index for index in indices or []}
    inputs = [*scores, *(alignments or []), data_summary, *sets.values()]
    with run_record(page, "report", section.model_dump(), inputs):
        results = read_results(scores, section.baseline, section.control, alignments or [])
        judged = (
            {name: pseudo_labels(unlabelled_text, shards_of(index)) for name, index in sets.items()}
            if unlabelled_text
            else {}
        )
        material = Material(
            title=section.title,
            revision=code_revision(),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            results=results,
            data=read_json(data_summary),
            metrics=read_metrics(metrics),
            targets={name: read_json(index) for name, index in sets.items()},
            pseudo={name: found for name, found in judged.items() if found},
        )
        table = text_table(results)
        summary = {
            "title": section.title,
            "baseline": section.baseline,
            "control": results.control,
            "created": material.created,
            "code_revision": material.revision,
            "headline": results.headline(),
            "rows": results.to_json(),
        }
        write_text(out_dir / "table.txt", table)
        write_json(out_dir / "summary.json", summary)
        write_text(page, html_page(material))
    print(table, end="")
