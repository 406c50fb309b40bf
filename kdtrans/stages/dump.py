"""Stage dump: one or several teachers' paths and distributions for one manifest shard."""

from __future__ import annotations

from pathlib import Path


def main(
    config: Path,
    model: list[Path],
    cuts: Path,
    tokenizer: Path,
    out: Path,
    lm: Path | None = None,
    along: Path | None = None,
) -> None:
    """Write the target shard that belongs to one manifest shard.

    Args:
        config: YAML of the targets (TargetsConfig).
        model: the teacher's model.pt; several: their mean.
        cuts: one manifest shard; cuts without text get pseudo text.
        tokenizer: sentencepiece model.
        out: part-NNNNN.parquet.
        lm: language model of the kind that search.lm names; needed if it names one.
        along: another set's target shard of these cuts, whose paths are followed; needed if the config names a set.
    """
    import time

    from kdtrans import config as configuration
    from kdtrans.artifacts import code_revision, run_record, sha256_file
    from kdtrans.contracts import TargetsFooter
    from kdtrans.data.batches import inference_batches
    from kdtrans.data.manifest import read_cuts
    from kdtrans.data.tokenizer import Tokenizer
    from kdtrans.models.lm import load_lm
    from kdtrans.targets.make import make_targets, read_paths
    from kdtrans.targets.shards import Target, write_shard
    from kdtrans.training.checkpoint import ready_models
    from kdtrans.training.progress import Reporter

    settings = configuration.read(configuration.TargetsConfig, config)
    kind = settings.search.lm
    if kind and lm is None:
        raise ValueError(f"{config}: search.lm is {kind}: give --lm")
    if settings.along and along is None:
        raise ValueError(f"{config}: along is {settings.along}: give --along")
    inputs = [*model, cuts, tokenizer, *([lm] if lm else []), *([along] if along else [])]
    with run_record(out, "dump", settings.model_dump(mode="json"), inputs) as record:
        pieces, manifest = Tokenizer(tokenizer), sha256_file(cuts)
        paths = read_paths(along, pieces, manifest) if along else None
        teacher, device = ready_models(model, pieces)
        fusion = load_lm(kind, lm, pieces).to(device) if kind and lm else None
        utterances = read_cuts([cuts])
        if not utterances:
            raise ValueError(f"{cuts}: no utterance is in this shard: lower corpus.num_shards")
        reporter = Reporter(f"dump {out.name}", len(utterances))
        targets: dict[str, list[Target]] = {}
        started = time.monotonic()
        batches = inference_batches(utterances, teacher.encoder.extract, settings.max_duration_s)
        for done, (batch, features_BFC, lengths_B) in enumerate(batches):
            features_BFC, lengths_B = features_BFC.to(device), lengths_B.to(device)
            made = make_targets(teacher, batch, features_BFC, lengths_B, pieces, settings, fusion, paths)
            targets |= {cut.id: ranked for cut, ranked in zip(batch, made, strict=True)}
            reporter.update(len(targets), f"{len(targets)} utterances" if done % 10 == 9 else "")
        reporter.close()
        footer = TargetsFooter(
            teacher_sha256=teacher.fingerprint,
            tokenizer_sha256=pieces.sha256,
            vocab_size=pieces.vocab_size,
            top_k=min(settings.top_k, pieces.vocab_size),
            frame_offset=settings.frame_offset,
            manifest_sha256=manifest,
            lm_sha256=sha256_file(lm) if kind and lm else None,
            lm_weight=settings.lm_weight,
            code_revision=code_revision(),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            min_probability=settings.min_probability,
            logp_step=settings.logp_step,
        )
        # In the manifest's order: batches are an accident of durations.
        rows = [target for cut in utterances for target in targets[cut.id]]
        write_shard(rows, footer, out)
        seconds, audio = time.monotonic() - started, sum(cut.duration for cut in utterances)
        nodes = sum(len(target.path) for target in rows)
        record |= {"utterances": len(targets), "paths": len(rows), "nodes": nodes, "audio_seconds": round(audio, 1)}
        record |= {"audio_per_second": round(audio / seconds, 1), "bytes": out.stat().st_size}
        record["sha256"] = sha256_file(out)
        print(f"{out}: {len(targets)} utterances, {nodes} nodes, {audio / seconds:.0f}x real time", flush=True)
