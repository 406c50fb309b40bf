"""Transcripts and text -> token language models. Each is made only where a search of the configuration uses it."""

# Not the shards: they hold a transcript once for each of corpus.speeds, which would multiply the counts of an n-gram.
TRANSCRIPTS = f"{R}/data/prepared/train.jsonl.gz"


rule lm:
    input:
        cuts=TRANSCRIPTS,
        tokenizer=TOKENIZER,
        corpus_text=lambda w: LAYOUT.corpus_text if w.ngram == "lm" else [],
        given=lambda w: [*LAYOUT.ngrams[w.ngram].texts, *filter(None, [LAYOUT.ngrams[w.ngram].arpa])],
    output:
        arpa=f"{R}/lm/{{ngram}}.arpa",
    log:
        f"{R}/logs/lm/{{ngram}}.log",
    wildcard_constraints:
        ngram=one_of(LAYOUT.ngrams),
    conda:
        "../../envs/kdtrans.yaml"
    params:
        config=f"{R}/config/ngrams/{{ngram}}.yaml",
        cfg=lambda w: {key: value for key, value in SECTIONS[f"ngrams/{w.ngram}"].items() if key != "lstm"},
        texts=lambda w, input: option("--texts", input.corpus_text),
    shell:
        "exec kdtrans lm --config {params.config:q} --cuts {input.cuts:q} --tokenizer {input.tokenizer:q}"
        " {params.texts:q} --out {output.arpa:q} > {log:q} 2>&1"


rule lstm_lm:
    input:
        cuts=TRANSCRIPTS,
        dev=DEV_CUTS,
        tokenizer=TOKENIZER,
        corpus_text=LAYOUT.corpus_text,
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
