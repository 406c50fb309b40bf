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
        "exec kdtrans lm --config {params.config} --cuts {input.cuts} --tokenizer {input.tokenizer}"
        " {params.texts} --out {output.arpa} > {log} 2>&1"


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
        "exec kdtrans lstm-lm --config {params.config} --cuts {input.cuts} --dev {input.dev}"
        " --tokenizer {input.tokenizer} {params.texts} --out {output.model} > {log} 2>&1"
