"""Models and test sets -> hypotheses and scores. Language-model weights are chosen on dev, for each system."""

for name in SYSTEMS:

    rule:  # a system by its name: trained, decoded, scored
        name:
            name
        input:
            f"{R}/systems/{name}/model.pt",
            scores_of(name),


rule decode:
    input:
        scores_of(["teacher", *SYSTEMS]),
        expand(
            f"{R}/decode/{{system}}/{{search}}/{{testset}}.parquet",
            system=["teacher", *SYSTEMS],
            search=list(CFG.decode.searches),
            testset=TEST_SETS,
        ),


rule tune_lm:
    input:
        model=model_of,
        cuts=DEV_CUTS,
        tokenizer=TOKENIZER,
        lm=LM,
    output:
        weight=f"{R}/decode/{{system}}/{{search}}/lm_weight.json",
    log:
        f"{R}/logs/tune_lm/{{system}}.{{search}}.log",
    wildcard_constraints:
        search=one_of(LM_SEARCHES),
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/decode.yaml",
        cfg=lambda w: [
            SECTIONS["decode"]["searches"][w.search],
            SECTIONS["decode"]["lm_weights"],
        ],
    shell:
        "exec kdtrans tune-lm --config {params.config} --search {wildcards.search} --model {input.model}"
        " --cuts {input.cuts} --tokenizer {input.tokenizer} --lm {input.lm} --out {output.weight} > {log} 2>&1"


rule decode_testset:
    input:
        model=model_of,
        cuts=f"{R}/data/{{testset}}/cuts.00000.jsonl.gz",
        tokenizer=TOKENIZER,
        lm=lambda w: LM if w.search in LM_SEARCHES else [],
        lm_weight=lambda w: (rules.tune_lm.output.weight if w.search in LM_SEARCHES else []),
    output:
        hypotheses=f"{R}/decode/{{system}}/{{search}}/{{testset}}.parquet",
    log:
        f"{R}/logs/decode/{{system}}.{{search}}.{{testset}}.log",
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/decode.yaml",
        cfg=lambda w: [
            SECTIONS["decode"]["searches"][w.search],
            SECTIONS["decode"]["max_duration_s"],
        ],
        lm=lambda w, input: (f"--lm {input.lm} --lm-weight {input.lm_weight}" if input.lm else ""),
    shell:
        "exec kdtrans decode --config {params.config} --search {wildcards.search} --model {input.model}"
        " --cuts {input.cuts} --tokenizer {input.tokenizer} {params.lm} --out {output.hypotheses} > {log} 2>&1"


rule score:
    input:
        hypotheses=rules.decode_testset.output.hypotheses,
        cuts=f"{R}/data/{{testset}}/cuts.00000.jsonl.gz",
    output:
        summary=f"{R}/decode/{{system}}/{{search}}/{{testset}}.score.json",
        rows=f"{R}/decode/{{system}}/{{search}}/{{testset}}.score.parquet",
    log:
        f"{R}/logs/score/{{system}}.{{search}}.{{testset}}.log",
    conda:
        "../../envs/kdtrans.yaml"
    shell:
        "exec kdtrans score --hypotheses {input.hypotheses} --cuts {input.cuts} --system {wildcards.system}"
        " --search {wildcards.search} --testset {wildcards.testset} --out {output.summary} > {log} 2>&1"
