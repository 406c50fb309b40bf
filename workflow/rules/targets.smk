"""Teacher and manifest shards -> one-best paths and their distributions, a job and a file a shard."""


rule targets:
    input:
        [[*shards_of(name), index_of(name)] for name in target_sets_of(RUNS)],


rule dump:
    input:
        unpack(made_from),
        data=rules.check.output.summary,
        tokenizer=TOKENIZER,
        lm=lambda w: lm_of(TARGET_SETS[w.targetset].search),
    output:
        targets=f"{R}/targets/{{targetset}}/train/part-{{shard}}.parquet",
    log:
        f"{R}/logs/dump/{{targetset}}.{{shard}}.log",
    priority: 2  # students wait for it
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/targets/{{targetset}}.yaml",
        cuts=f"{TRAIN}/cuts.{{shard}}.jsonl.gz",
        cfg=lambda w: SECTIONS[f"targets/{w.targetset}"],
        options=lambda w, input: sum((option(f"--{n}", input.get(n)) for n in ("lm", "along")), []),
    shell:
        "exec kdtrans dump --config {params.config:q} --model {input.model:q} --cuts {params.cuts:q}"
        " --tokenizer {input.tokenizer:q} {params.options:q} --out {output.targets:q} > {log:q} 2>&1"


rule verify:
    input:
        targets=lambda w: shards_of(w.targetset),
        data=rules.check.output.summary,
        model=teachers_of,
        tokenizer=TOKENIZER,
    output:
        rows=f"{R}/targets/{{targetset}}/train/index.arrow",
        index=f"{R}/targets/{{targetset}}/train/index.json",
    log:
        f"{R}/logs/verify/{{targetset}}.log",
    priority: 2  # students wait for it
    conda:
        "../../envs/kdtrans.yaml"
    params:
        cuts=TRAIN,
        folder=lambda w, output: Path(output.index).parent,
    shell:
        "exec kdtrans verify {params.folder:q} --cuts {params.cuts:q} --model {input.model:q}"
        " --tokenizer {input.tokenizer:q} --out {output.index:q} > {log:q} 2>&1"
