"""Teacher and manifest shards -> one-best paths and their distributions, a job and a file a shard."""


rule targets:
    input:
        [[*shards_of(name), index_of(name)] for name in target_sets_of(RUNS)],


rule dump:
    input:
        model=TEACHER,
        gate=ancient(rules.gate.output.gate),  # has to stand there; passing it anew changes no target
        cuts=f"{R}/data/train/cuts.{{shard}}.jsonl.gz",
        tokenizer=TOKENIZER,
        lm=lambda w: lm_of(CFG.target_set(w.targetset).search.lm),
    output:
        targets=f"{R}/targets/{{targetset}}/train/part-{{shard}}.parquet",
    log:
        f"{R}/logs/dump/{{targetset}}.{{shard}}.log",
    priority: 2  # students wait for it
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/targets/{{targetset}}.yaml",
        cfg=lambda w: SECTIONS[f"targets/{w.targetset}"],
        lm=lambda w, input: option("--lm", input.lm),
    shell:
        "exec kdtrans dump --config {params.config} --model {input.model} --cuts {input.cuts}"
        " --tokenizer {input.tokenizer} {params.lm} --out {output.targets} > {log} 2>&1"


rule verify:
    input:
        targets=lambda w: shards_of(w.targetset),
        cuts=TRAIN_CUTS,
        model=TEACHER,
        tokenizer=TOKENIZER,
    output:
        index=f"{R}/targets/{{targetset}}/train/index.json",
    log:
        f"{R}/logs/verify/{{targetset}}.log",
    priority: 2  # students wait for it
    conda:
        "../../envs/kdtrans.yaml"
    shell:
        "exec kdtrans verify --targets {input.targets} --cuts {input.cuts} --model {input.model}"
        " --tokenizer {input.tokenizer} --out {output.index} > {log} 2>&1"
