"""Scores, alignments, data summary, training curves and targets -> the table of systems, the report, the sweep's choice."""

# Of every training: the further teachers' folders name them.
RUN_METRICS = {folder: f"{R}/{folder}/checkpoints/metrics.jsonl" for folder in LAYOUT.read_teachers(RUNS)}
RUN_METRICS |= {run: f"{LAYOUT.checkpoints_of(run)}/metrics.jsonl" for run in RUNS}
REPORTED = LAYOUT.reported_runs


rule report:
    input:
        scores=reported(decodings_of(REPORTED, "score.json")),
        rows=reported(decodings_of(REPORTED, "score.parquet")),
        alignments=reported(alignments_of(REPORTED)),
        data_summary=rules.check.output.summary,
        indices=reported(index_of(name) for name in target_sets_of(RUNS)),
        unlabelled_text=rules.prepare_corpus.output.unlabelled_text,
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
        # Beside the checkpoints: no declared output.
        metrics=[f"{run}={path}" for run, path in RUN_METRICS.items() if reported([path])],
        alignments=lambda w, input: option("--alignments", input.alignments),
        indices=lambda w, input: option("--indices", input.indices),
        out_dir=lambda w, output: Path(output.page).parent,
    shell:
        "exec kdtrans report --config {params.config:q} --scores {input.scores:q} {params.alignments:q}"
        " --data-summary {input.data_summary:q} --metrics {params.metrics:q} {params.indices:q}"
        " --unlabelled-text {input.unlabelled_text:q} --out-dir {params.out_dir:q} > {log:q} 2>&1"


rule sweep:  # only when it is asked for: `snakemake sweep`
    input:
        f"{R}/report/sweep.txt",


rule choose:
    input:
        scores=sweep_scores,
    output:
        table=f"{R}/report/sweep.txt",
        summary=f"{R}/report/sweep.json",
    log:
        f"{R}/logs/choose.log",
    conda:
        "../../envs/kdtrans.yaml"
    shell:
        "exec kdtrans choose --scores {input.scores:q} --out {output.summary:q} > {log:q} 2>&1"
