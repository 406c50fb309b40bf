"""Transcripts and text -> token language models. Each is made only where a search of the configuration uses it."""

# Not the shards: they hold a transcript once for each of corpus.speeds, which would multiply the counts of an n-gram.
TRANSCRIPTS = f"{R}/data/prepared/train.jsonl.gz"


rule lm:
    input:
        cuts=TRANSCRIPTS,
        tokenizer=TOKENIZER,
        corpus_text=f"{R}/corpus/lm.txt" if MAKES_CORPUS else [],
        given=[*CFG.lm.texts, *([CFG.lm.arpa] if CFG.lm.arpa else [])],
    output:
        arpa=LMS["ngram"],
    log:
        f"{R}/logs/lm.log",
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/lm.yaml",
        cfg={key: value for key, value in SECTIONS["lm"].items() if key != "lstm"},
        texts=lambda w, input: option("--texts", input.corpus_text),
    shell:
        "exec kdtrans lm --config {params.config:q} --cuts {input.cuts:q} --tokenizer {input.tokenizer:q}"
        " {params.texts:q} --out {output.arpa:q} > {log:q} 2>&1"


rule lstm_lm:
    input:
        cuts=TRANSCRIPTS,
        dev=DEV_CUTS,
        tokenizer=TOKENIZER,
        corpus_text=f"{R}/corpus/lm.txt" if MAKES_CORPUS else [],
        given=CFG.lm.texts,
    output:
        model=LMS["lstm"],
    log:
        f"{R}/logs/lstm_lm.log",
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/lm.yaml",
        cfg=[SECTIONS["lm"][key] for key in ("lstm", "transcripts", "texts")],
        texts=lambda w, input: option("--texts", input.corpus_text),
    shell:
        "exec kdtrans lstm-lm --config {params.config:q} --cuts {input.cuts:q} --dev {input.dev:q}"
        " --tokenizer {input.tokenizer:q} {params.texts:q} --out {output.model:q} > {log:q} 2>&1"
