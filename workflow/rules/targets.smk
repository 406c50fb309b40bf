"""Teacher and manifest shards -> one-best paths and their distributions, a job and a file a shard."""


rule targets:
    input:
        [[*shards_of(name), index_of(name)] for name in target_sets_of(RUNS)],


rule dump:
    input:
        unpack(made_from),
        data=rules.check.output.summary,
        tokenizer=TOKENIZER,
        lm=lambda w: lm_of(TARGET_SETS[w.targetset].search.lm),
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
        options=lambda w, input: " ".join(option(f"--{n}", input.get(n)) for n in ("lm", "along")),
    shell:
        "exec kdtrans dump --config {params.config} --model {input.model} --cuts {params.cuts}"
        " --tokenizer {input.tokenizer} {params.options} --out {output.targets} > {log} 2>&1"


rule verify:
    input:
        targets=lambda w: shards_of(w.targetset),
        data=rules.check.output.summary,
        model=teacher_of,
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
        "exec kdtrans verify {params.folder} --cuts {params.cuts} --model {input.model}"
        " --tokenizer {input.tokenizer} --out {output.index} > {log} 2>&1"
