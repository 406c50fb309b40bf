"""Pre-trained encoder and labelled data -> transducer teachers, and the gate that each passes before it teaches."""


rule teacher:
    input:
        expand(f"{R}/{{teacher}}/{{file}}", teacher=LAYOUT.read_teachers(RUNS), file=["model.pt", "gate.json"]),


rule train_teacher:
    input:
        data=rules.check.output.summary,
        dev=DEV_CUTS,
        tokenizer=TOKENIZER,
    output:
        # One file, written last; Snakemake deletes the outputs of a failed job, so checkpoints are none.
        model=f"{R}/{{teacher}}/model.pt",
    log:
        f"{R}/logs/train_teacher/{{teacher}}.log",
    priority: 2  # everything but the baseline waits for it
    conda:
        "../../envs/kdtrans.yaml"
    threads: min(8, max(1, (os.cpu_count() or 1) // 2))  # and the baseline trains beside it
    params:
        trainer=trainer,
        train=TRAIN,
        config=f"{R}/config/{{teacher}}.yaml",
        cfg=lambda w: training_identity(SECTIONS[w.teacher]),
        checkpoints=f"{R}/{{teacher}}/checkpoints",
        budget=max_seconds,
    shell:
        "exec {params.trainer} train-teacher --config {params.config:q} --train {params.train:q} --dev {input.dev:q}"
        " --tokenizer {input.tokenizer:q} --checkpoints {params.checkpoints:q} {params.budget:q} --out {output.model:q}"
        " > {log:q} 2>&1"


rule gate:
    input:
        model=rules.train_teacher.output.model,
    output:
        gate=f"{R}/{{teacher}}/gate.json",
    log:
        f"{R}/logs/gate/{{teacher}}.log",
    priority: 2  # students wait for it
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/{{teacher}}.yaml",
        cfg=lambda w: SECTIONS[w.teacher]["max_wer"],
    shell:
        "exec kdtrans gate --config {params.config:q} --model {input.model:q} --out {output.gate:q} > {log:q} 2>&1"
