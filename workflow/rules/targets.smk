"""Teacher and manifest shards -> one-best paths and their distributions, a job and a file a shard."""


rule targets:
    input:
        TARGETS,
        TARGETS_INDEX,


rule dump:
    input:
        model=TEACHER,
        gate=ancient(rules.gate.output.gate),  # has to stand there; passing it anew changes no target
        cuts=f"{R}/data/train/cuts.{{shard}}.jsonl.gz",
        tokenizer=TOKENIZER,
        lm=LM if CFG.targets.search.lm else [],
    output:
        targets=f"{R}/targets/teacher/train/part-{{shard}}.parquet",
    log:
        f"{R}/logs/dump/{{shard}}.log",
    priority: 2  # students wait for it
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/targets.yaml",
        cfg=SECTIONS["targets"],
        lm=lambda w, input: option("--lm", input.lm),
    shell:
        "exec kdtrans dump --config {params.config} --model {input.model} --cuts {input.cuts}"
        " --tokenizer {input.tokenizer} {params.lm} --out {output.targets} > {log} 2>&1"


rule verify:
    input:
        targets=TARGETS,
        cuts=TRAIN_CUTS,
        model=TEACHER,
        tokenizer=TOKENIZER,
    output:
        index=TARGETS_INDEX,
    log:
        f"{R}/logs/verify.log",
    priority: 2  # students wait for it
    conda:
        "../../envs/kdtrans.yaml"
    shell:
        "exec kdtrans verify --targets {input.targets} --cuts {input.cuts} --model {input.model}"
        " --tokenizer {input.tokenizer} --out {output.index} > {log} 2>&1"
