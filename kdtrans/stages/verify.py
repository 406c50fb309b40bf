"""Stage verify: open and check every target shard, and write the index that students depend on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdtrans.targets.verify_shard import Verdict

MOST_NAMED = 100  # shards on the line that removes them


def main(
    folder: Path,
    /,
    *,
    cuts: list[Path] | None = None,
    model: list[Path] | None = None,
    tokenizer: Path | None = None,
    out: Path | None = None,
    repair: bool = False,
) -> int:
    """Check target shards by themselves and against what they were made from; list every problem of every shard.

    Args:
        folder: of part-NNNNN.parquet.
        cuts: manifest shards or their folder: part-NNNNN.parquet has the utterances of cuts.NNNNN.jsonl.gz.
        model: the teacher's model.pt; several: of all whose mean the shards have.
        tokenizer: sentencepiece model.
        out: index.json, written with index.arrow beside it if all shards are sound.
        repair: remove the bad shards, so that the next `snakemake` makes just these again.
    """
    import sys

    from kdtrans.artifacts import run_record
    from kdtrans.data.tokenizer import Tokenizer
    from kdtrans.targets.index import write_index
    from kdtrans.targets.verify import verify_folder
    from kdtrans.training.checkpoint import read_model
    from kdtrans.training.progress import Reporter

    pieces = Tokenizer(tokenizer) if tokenizer else None
    teacher = "+".join(read_model(path, pieces)["fingerprint"] for path in model) if model else None
    reporter = Reporter("verify", len(list(folder.glob("part-*.parquet"))))
    verdicts = verify_folder(folder, cuts, teacher, pieces, reporter.update)
    reporter.close()
    for verdict in verdicts:
        for problem in verdict.problems:
            print(f"kdtrans verify: {problem}", file=sys.stderr)
    if bad := [verdict for verdict in verdicts if verdict.problems]:
        print(f"kdtrans verify: {len(bad)} of {len(verdicts)} shards are bad or missing", file=sys.stderr)
        _repair(folder, verdicts, repair)
        return 1
    shards = [verdict.indexed for verdict in verdicts if verdict.indexed]
    footer = verdicts[0].footer
    if out and footer:
        with run_record(out, "verify", {}, [*(model or []), *([tokenizer] if tokenizer else [])]):
            write_index(out, footer, shards)
    print(f"{len(shards)} shards are sound: {sum(shard.utterances for shard in shards)} utterances", flush=True)
    return 0


def _repair(folder: Path, verdicts: list[Verdict], repair: bool) -> None:
    """Remove the bad shards, their records and the index, or say how."""
    import shlex
    import sys

    bad = [verdict.path for verdict in verdicts if verdict.problems and verdict.path.exists()]
    if repair and all(verdict.foreign for verdict in verdicts):
        raise ValueError(
            f"all {len(bad)} shards are of another teacher or tokenizer than the one given: nothing is removed, "
            "because it is likelier that --model or --tokenizer is wrong; if it is not, "
            f"rm -r {shlex.quote(str(folder))}"
        )
    if repair:
        for path in (folder / "index.json", folder / "index.arrow", folder / "index.json.run.json"):
            path.unlink(missing_ok=True)
        for path in bad:
            path.unlink()
            Path(f"{path}.run.json").unlink(missing_ok=True)
        print(f"kdtrans verify: removed {len(bad)} shards: run snakemake again to make them", file=sys.stderr)
    elif not bad:
        print("kdtrans verify: run snakemake again to make the missing ones", file=sys.stderr)
    elif len(bad) <= MOST_NAMED:
        names = shlex.join(map(str, bad))
        print(f"kdtrans verify: rm {names} and run snakemake again, or verify with --repair", file=sys.stderr)
    else:
        print("kdtrans verify: verify with --repair, which removes them, and run snakemake again", file=sys.stderr)
