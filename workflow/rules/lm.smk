"""Transcripts and text -> token n-gram. Made only where a search of the configuration uses it."""


rule lm:
    input:
        cuts=TRAIN_CUTS,
        tokenizer=TOKENIZER,
        corpus_text=f"{R}/corpus/lm.txt" if MAKES_CORPUS else [],
        given=[*CFG.lm.texts, *([CFG.lm.arpa] if CFG.lm.arpa else [])],
    output:
        arpa=LM,
    log:
        f"{R}/logs/lm.log",
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/lm.yaml",
        cfg=SECTIONS["lm"],
        texts=lambda w, input: option("--texts", input.corpus_text),
    shell:
        "exec kdtrans lm --config {params.config} --cuts {input.cuts} --tokenizer {input.tokenizer}"
        " {params.texts} --out {output.arpa} > {log} 2>&1"
