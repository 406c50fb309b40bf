"""Manifests, and targets where a system reads them -> one student a run."""


rule student:
    input:
        expand(f"{R}/systems/{{run}}/model.pt", run=RUNS),


rule train_student:
    input:
        unpack(distils_from),
        data=rules.check.output.summary,
        dev=DEV_CUTS,
        tokenizer=TOKENIZER,
    output:
        model=f"{R}/systems/{{run}}/model.pt",
    log:
        f"{R}/logs/train_student/{{run}}.log",
    priority: 1  # long jobs first, so that the short ones fill the gaps at the end
    conda:
        "../../envs/kdtrans.yaml"
    params:
        trainer=trainer,
        config=f"{R}/config/systems/{{run}}.yaml",
        cfg=lambda w: training_identity(SECTIONS[f"systems/{w.run}"]),
        checkpoints=f"{R}/systems/{{run}}/checkpoints",
        train=TRAIN,
        source=lambda w, input: sum((option(f"--{n}", input.get(n)) for n in ("index", "teacher")), []),
        budget=max_seconds,
    shell:
        "exec {params.trainer} train-student --config {params.config:q} --train {params.train:q}"
        " --dev {input.dev:q} --tokenizer {input.tokenizer:q} {params.source:q} --checkpoints {params.checkpoints:q}"
        " {params.budget:q} --out {output.model:q} > {log:q} 2>&1"
