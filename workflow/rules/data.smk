"""Audio and text -> tokenizer and manifest shards. The corpus is made (synth), fetched (LibriSpeech) or given."""


rule prepare:
    input:
        f"{R}/data/summary.json",
        [f"{R}/data/{testset}/cuts.00000.jsonl.gz" for testset in TEST_SETS],
        TOKENIZER,


if MAKES_CORPUS:

    rule synth:
        output:
            sums=f"{R}/corpus/SHA256SUMS",
            text=f"{R}/corpus/lm.txt",
        log:
            f"{R}/logs/synth.log",
        conda:
            "../../envs/kdtrans.yaml"
        params:
            config=f"{R}/config/corpus.yaml",
            cfg=SECTIONS["corpus"]["synth"],
            root=lambda w, output: Path(output.sums).parent,
        shell:
            "exec kdtrans synth --config {params.config:q} --root {params.root:q} > {log:q} 2>&1"


rule download:  # only when it is asked for: `snakemake download`
    output:
        touch(f"{R}/corpus/.downloaded"),
    log:
        f"{R}/logs/download.log",
    conda:
        "../../envs/kdtrans.yaml"
    params:
        parts=CORPUS_PARTS,
        root=lambda w, output: Path(output[0]).parent,
    shell:
        "exec kdtrans download --root {params.root:q} --parts {params.parts:q} > {log:q} 2>&1"


rule prepare_corpus:
    input:
        corpus_ready,
    output:
        splits=[f"{R}/data/prepared/{split}.jsonl.gz" for split in ("train", *TEST_SETS)],
        unlabelled_text=f"{R}/data/prepared/unlabelled_text.jsonl",
        summary=f"{R}/data/prepared/summary.json",
    log:
        f"{R}/logs/prepare.log",
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/corpus.yaml",
        cfg=SECTIONS["corpus"],
        root=CORPUS_ROOT,
        out_dir=lambda w, output: Path(output.summary).parent,
    shell:
        "exec kdtrans prepare --config {params.config:q} --root {params.root:q} --out-dir {params.out_dir:q}"
        " > {log:q} 2>&1"


rule tokenizer:
    input:
        cuts=f"{R}/data/prepared/train.jsonl.gz",
    output:
        model=TOKENIZER,
    log:
        f"{R}/logs/tokenizer.log",
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/tokenizer.yaml",
        cfg=SECTIONS["tokenizer"],
    shell:
        "exec kdtrans tokenizer --config {params.config:q} --cuts {input.cuts:q} --out {output.model:q}"
        " > {log:q} 2>&1"


rule check:
    input:
        splits=rules.prepare_corpus.output.splits,
        summary=rules.prepare_corpus.output.summary,
        tokenizer=TOKENIZER,
    output:
        tests=[f"{R}/data/{testset}/cuts.00000.jsonl.gz" for testset in TEST_SETS],
        summary=f"{R}/data/summary.json",
    log:
        f"{R}/logs/check.log",
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/corpus.yaml",
        cfg=SECTIONS["corpus"],
        prepared=lambda w, input: Path(input.summary).parent,
        out_dir=lambda w, output: Path(output.summary).parent,
    shell:
        "exec kdtrans check --config {params.config:q} --prepared {params.prepared:q} --tokenizer {input.tokenizer:q}"
        " --out-dir {params.out_dir:q} > {log:q} 2>&1"
