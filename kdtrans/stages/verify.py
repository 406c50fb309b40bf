"""Stage verify: open and check every target shard, and write the index that students depend on."""

from __future__ import annotations

from pathlib import Path


def main(targets: list[Path], cuts: list[Path], model: Path, tokenizer: Path, out: Path) -> int:
    """Check target shards against their manifest shards and their teacher; write index.json if all are sound.

    Args:
        targets: target shards.
        cuts: manifest shards, in the same order.
        model: the teacher's model.pt.
        tokenizer: sentencepiece model.
        out: index.json.
    """
    import sys

    from kdtrans.artifacts import run_record, write_json
    from kdtrans.contracts import ContractError
    from kdtrans.data.manifest import read_cuts
    from kdtrans.data.tokenizer import Tokenizer
    from kdtrans.targets.shards import read_shard
    from kdtrans.targets.verify import ShardFacts, index_of, verify_shard
    from kdtrans.training.checkpoint import read_model

    if len(targets) != len(cuts):
        raise ValueError(
            f"{len(targets)} target shards for {len(cuts)} manifest shards: give one for each, in the same order"
        )
    with run_record(out, "verify", {}, [model, tokenizer]):
        pieces = Tokenizer(tokenizer)
        teacher = read_model(model, pieces)["fingerprint"]
        facts: dict[str, ShardFacts] = {}
        broken = []
        for path, manifest in zip(targets, cuts, strict=True):
            try:
                footer, table = read_shard(path)
                ids = {cut.id for cut in read_cuts([manifest])}
                facts[str(path)] = verify_shard(path, footer, table, manifest, ids, teacher, pieces.sha256)
            except ContractError as error:
                broken.append(path)
                print(f"kdtrans verify: {error}", file=sys.stderr)
        if broken:
            raise ValueError(
                f"{len(broken)} of {len(targets)} shards are bad: "
                f"rm {' '.join(map(str, broken))} and run snakemake again"
            )
        write_json(out, index_of(facts, footer))
    print(f"{len(facts)} shards are sound: {sum(f.utterances for f in facts.values())} utterances", flush=True)
    return 0
