"""Scores, data summary, training curves and targets -> the table of systems and the HTML report."""

METRICS = {"teacher": f"{R}/teacher/checkpoints/metrics.jsonl"} | {
    name: f"{R}/systems/{name}/checkpoints/metrics.jsonl" for name in SYSTEMS
}


rule report:
    input:
        scores=scores_of(["teacher", *SYSTEMS]),
        rows=scores_of(["teacher", *SYSTEMS], "parquet"),
        data_summary=rules.check.output.summary,
        index=TARGETS_INDEX,
        targets=TARGETS,
        unlabelled_text=rules.prepare.output.unlabelled_text,
    output:
        page=f"{R}/report/index.html",
        summary=f"{R}/report/summary.json",
        table=f"{R}/report/table.txt",
    log:
        f"{R}/logs/report.log",
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/report.yaml",
        cfg=SECTIONS["report"],
        metrics=[f"{name}={path}" for name, path in METRICS.items()],  # beside the checkpoints: no declared output
        out_dir=lambda w, output: Path(output.page).parent,
    shell:
        "exec kdtrans report --config {params.config} --scores {input.scores}"
        " --data-summary {input.data_summary} --metrics {params.metrics} --index {input.index}"
        " --unlabelled-text {input.unlabelled_text} --targets {input.targets} --out-dir {params.out_dir} > {log} 2>&1"
