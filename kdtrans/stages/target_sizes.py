"""Stage target-sizes: what the settings of target shards cost in bytes and in truth, on a sample of real targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def main(config: Path, model: Path, cuts: Path, tokenizer: Path, out: Path, utterances: int = 60) -> None:
    """Dump a sample with every class, store it in many ways, and print a table: bytes an hour against divergence.

    Args:
        config: YAML of the targets (TargetsConfig); its setting is the one that others are compared with.
        model: the teacher's model.pt.
        cuts: one manifest shard.
        tokenizer: sentencepiece model.
        out: the tables as JSON.
        utterances: how many to take from the manifest's start; fewer cost more bytes an hour.
    """
    from kdtrans import config as configuration
    from kdtrans.artifacts import run_record, write_json
    from kdtrans.data.batches import inference_batches
    from kdtrans.data.manifest import read_cuts
    from kdtrans.data.tokenizer import Tokenizer
    from kdtrans.targets.make import make_targets
    from kdtrans.targets.shards import Target
    from kdtrans.targets.sizes import bytes_by_column, encoded, hours_of, layouts, losses_of, ordered_by_id, settings_of
    from kdtrans.training.checkpoint import ready_model

    settings = configuration.read(configuration.TargetsConfig, config)
    if settings.search.lm:
        raise ValueError(
            f"{config}: search.lm is {settings.search.lm}, but sizes are studied without one: leave it out"
        )
    with run_record(out, "target-sizes", settings.model_dump(mode="json"), [model, cuts, tokenizer]):
        pieces = Tokenizer(tokenizer)
        teacher, device = ready_model(model, pieces)
        everything = {"top_k": pieces.vocab_size, "min_probability": 0.0, "logp_step": 0.0, "nbest": 1}
        whole = settings.model_copy(update=everything)
        sample = read_cuts([cuts])[:utterances]
        if not sample:
            raise ValueError(f"{cuts}: no utterance is in this shard: name another one")
        by_id: dict[str, Target] = {}
        for batch, features_BFC, lengths_B in inference_batches(
            sample, teacher.encoder.extract, settings.max_duration_s
        ):
            made = make_targets(teacher, batch, features_BFC.to(device), lengths_B.to(device), pieces, whole)
            by_id |= {cut.id: ranked[0] for cut, ranked in zip(batch, made, strict=True)}
        full = [by_id[cut.id] for cut in sample]
        hours = hours_of(full)

        def megabytes(sizes: dict[str, int]) -> dict[str, float]:
            return {name: round(size / 1e6 / hours, 4) for name, size in sizes.items()}

        setting = (settings.top_k, settings.min_probability, settings.logp_step)
        rows: list[dict[str, Any]] = []
        for top_k, least, step in settings_of(pieces.vocab_size, *setting):
            stored = encoded(full, top_k, least, step)
            row: dict[str, Any] = {"top_k": top_k, "min_probability": least, "logp_step": step}
            rows.append(row | losses_of(full, stored) | {"mb_per_hour": megabytes(bytes_by_column(stored))})
        stored = encoded(full, *setting)
        ways = {name: megabytes(bytes_by_column(stored, **layout)) for name, layout in layouts().items()}
        ways["classes by id, not by probability"] = megabytes(bytes_by_column(list(map(ordered_by_id, stored))))
        facts = {"utterances": len(full), "hours": hours, "nodes": sum(len(target.path) for target in full)}
        facts |= {"vocab_size": pieces.vocab_size}
        write_json(out, facts | {"settings": rows, "layouts": ways})
    print("\n".join(tables(facts, rows, ways)), flush=True)


def tables(facts: dict[str, Any], rows: list[dict[str, Any]], ways: dict[str, dict[str, float]]) -> list[str]:
    """The two tables in Markdown, line by line."""
    columns = ("total", "topk_logp", "topk_ids", "path", "footer")
    lines = [
        f"{facts['utterances']} utterances, {facts['nodes']} nodes, {facts['hours']:.3f} h, V = {facts['vocab_size']}"
    ]
    lines += [
        "",
        "| k | min_probability | logp_step | classes | MB/h | log-probs | ids | tail mass | KL taught | KL full |",
    ]
    lines += ["|" + "---:|" * 10]
    for row in rows:
        sizes = " | ".join(f"{row['mb_per_hour'][name]:.2f}" for name in columns[:3])
        step = f"1/{1 / row['logp_step']:g}" if row["logp_step"] else "fp16"
        lines.append(
            f"| {row['top_k']} | {row['min_probability']:g} | {step} | {row['classes']:.1f} | {sizes} "
            f"| {row['tail_mass']:.2%} | {row['kl_taught']:.1e} | {row['kl_full']:.1e} |"
        )
    lines += ["", "| layout | MB/h | log-probs | ids | path | footer |", "|---|" + "---:|" * 5]
    lines += [f"| {name} | " + " | ".join(f"{sizes[c]:.3f}" for c in columns) + " |" for name, sizes in ways.items()]
    return lines
