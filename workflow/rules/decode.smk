"""Models and test sets -> hypotheses, scores, alignments. Language-model weights are chosen on dev, for each run."""

RESCORED = {name: search.rescore for name, search in SEARCHES.items() if search.rescore}

for name in CFG.systems:

    rule:  # a system by its name: all its runs trained, decoded, scored
        name:
            name
        input:
            [f"{R}/systems/{run}/model.pt" for run in RUNS if RUNS[run].system == name],
            decodings_of([run for run in RUNS if RUNS[run].system == name], "score.json"),


rule decode:
    input:
        decodings_of(["teacher", *RUNS], "parquet"),


rule score:
    input:
        decodings_of(["teacher", *RUNS], "score.json"),
        decodings_of(["teacher", *RUNS], "score.parquet"),
        alignments_of(["teacher", *RUNS]),


rule tune_lm:
    input:
        model=model_of,
        cuts=DEV_CUTS,
        tokenizer=TOKENIZER,
        lm=lambda w: lm_of(SEARCHES[w.search]),
    output:
        weight=f"{R}/decode/{{run}}/{{search}}/lm_weight.json",
    log:
        f"{R}/logs/tune_lm/{{run}}.{{search}}.log",
    wildcard_constraints:
        search=one_of([name for name in LM_SEARCHES if name not in RESCORED]),
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/decode.yaml",
        cfg=lambda w: [
            SECTIONS["decode"]["searches"][w.search],
            SECTIONS["decode"]["lm_weights"],
        ],
    shell:
        "exec kdtrans tune-lm --config {params.config:q} --search {wildcards.search:q} --model {input.model:q}"
        " --cuts {input.cuts:q} --tokenizer {input.tokenizer:q} --lm {input.lm:q} --out {output.weight:q}"
        " > {log:q} 2>&1"


rule decode_testset:
    input:
        model=model_of,
        cuts=f"{R}/data/{{testset}}/cuts.00000.jsonl.gz",
        tokenizer=TOKENIZER,
        lm=lambda w: lm_of(SEARCHES[w.search]),
        lm_weight=lambda w: (rules.tune_lm.output.weight if w.search in LM_SEARCHES else []),
    output:
        hypotheses=f"{R}/decode/{{run}}/{{search}}/{{testset}}.parquet",
    log:
        f"{R}/logs/decode/{{run}}.{{search}}.{{testset}}.log",
    wildcard_constraints:
        search=one_of([name for name in SEARCHES if name not in RESCORED]),
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/decode.yaml",
        cfg=lambda w: [
            SECTIONS["decode"]["searches"][w.search],
            SECTIONS["decode"]["max_duration_s"],
        ],
        lm=lambda w, input: option("--lm", input.lm) + option("--lm-weight", input.lm_weight),
    shell:
        "exec kdtrans decode --config {params.config:q} --search {wildcards.search:q} --model {input.model:q}"
        " --cuts {input.cuts:q} --tokenizer {input.tokenizer:q} {params.lm:q} --out {output.hypotheses:q}"
        " > {log:q} 2>&1"


rule rescore:
    input:
        nbest=lambda w: f"{R}/decode/{w.run}/{RESCORED[w.search]}/{w.testset}.parquet",
        dev=lambda w: f"{R}/decode/{w.run}/{RESCORED[w.search]}/dev.parquet",
        dev_cuts=DEV_CUTS,
        tokenizer=TOKENIZER,
        lm=lambda w: lm_of(SEARCHES[w.search]),
    output:
        hypotheses=f"{R}/decode/{{run}}/{{search}}/{{testset}}.parquet",
    log:
        f"{R}/logs/rescore/{{run}}.{{search}}.{{testset}}.log",
    wildcard_constraints:
        search=one_of(RESCORED) or "(?!)",  # with none to rescore, no name is one
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/decode.yaml",
        cfg=lambda w: [
            SECTIONS["decode"]["searches"][w.search],
            SECTIONS["decode"]["lm_weights"],
        ],
    shell:
        "exec kdtrans rescore --config {params.config:q} --search {wildcards.search:q} --nbest {input.nbest:q}"
        " --dev {input.dev:q} --dev-cuts {input.dev_cuts:q} --tokenizer {input.tokenizer:q} --lm {input.lm:q}"
        " --out {output.hypotheses:q} > {log:q} 2>&1"


rule score_testset:
    input:
        hypotheses=f"{R}/decode/{{run}}/{{search}}/{{testset}}.parquet",
        cuts=f"{R}/data/{{testset}}/cuts.00000.jsonl.gz",
    output:
        summary=f"{R}/decode/{{run}}/{{search}}/{{testset}}.score.json",
        rows=f"{R}/decode/{{run}}/{{search}}/{{testset}}.score.parquet",
    log:
        f"{R}/logs/score/{{run}}.{{search}}.{{testset}}.log",
    conda:
        "../../envs/kdtrans.yaml"
    params:
        system=lambda w: STUDENTS[w.run].system if w.run in STUDENTS else w.run,
    shell:
        "exec kdtrans score --hypotheses {input.hypotheses:q} --cuts {input.cuts:q} --run {wildcards.run:q}"
        " --system {params.system:q} --search {wildcards.search:q} --testset {wildcards.testset:q}"
        " --out {output.summary:q} > {log:q} 2>&1"


rule align:
    input:
        model=model_of,
        cuts=f"{R}/data/{{testset}}/cuts.00000.jsonl.gz",
        tokenizer=TOKENIZER,
    output:
        alignments=f"{R}/align/{{run}}/{{testset}}.parquet",
    log:
        f"{R}/logs/align/{{run}}.{{testset}}.log",
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/decode.yaml",
        cfg=SECTIONS["decode"]["max_duration_s"],
    shell:
        "exec kdtrans align --config {params.config:q} --model {input.model:q} --cuts {input.cuts:q}"
        " --tokenizer {input.tokenizer:q} --out {output.alignments:q} > {log:q} 2>&1"
