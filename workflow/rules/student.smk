"""Manifests, and targets where a system reads them -> one student a system."""


rule students:
    input:
        expand(f"{R}/systems/{{system}}/model.pt", system=SYSTEMS),


rule train_student:
    input:
        train=TRAIN_CUTS,
        dev=DEV_CUTS,
        tokenizer=TOKENIZER,
        targets=targets_of,
        index=lambda w: TARGETS_INDEX if targets_of(w) else [],
    output:
        model=f"{R}/systems/{{system}}/model.pt",
    log:
        f"{R}/logs/train_student/{{system}}.log",
    priority: 1  # long jobs first, so that the short ones fill the gaps at the end
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/systems/{{system}}.yaml",
        cfg=lambda w: SECTIONS[f"systems/{w.system}"],
        checkpoints=f"{R}/systems/{{system}}/checkpoints",
        targets=lambda w, input: f"{option('--targets', input.targets)} {option('--index', input.index)}",
        budget=max_seconds,
    shell:
        "exec kdtrans train-student --config {params.config} --train {input.train}"
        " --dev {input.dev} --tokenizer {input.tokenizer} {params.targets} --checkpoints {params.checkpoints}"
        " {params.budget} --out {output.model} > {log} 2>&1"
