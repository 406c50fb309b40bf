"""Check text against the tokenizer and write the manifest shards."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdtrans.artifacts import read_json, run_record, write_json
from kdtrans.config import CorpusConfig, read
from kdtrans.contracts import FRAME_SHIFT_MS, UNKNOWN

if TYPE_CHECKING:
    from lhotse import MonoCut

    from kdtrans.data.tokenizer import Tokenizer


def main(*, config: Path, prepared: Path, tokenizer: Path, out_dir: Path) -> None:
    """Check the text of every split against the tokenizer and write train in shards, dev and the test sets whole.

    Labelled training cuts that fail a check are dropped or stop the stage, as configured; in dev and the test sets they
    are only counted. Writes {split}/cuts.NNNNN.jsonl.gz and, last, summary.json.

    Args:
        config: YAML file with the corpus section.
        prepared: folder that `prepare` wrote.
        tokenizer: sentencepiece model.
        out_dir: folder for the shards.
    """
    from kdtrans.data.manifest import read_cuts, text_of, write_cuts
    from kdtrans.data.prepare import Tally, refuse_or_drop, size_of
    from kdtrans.data.tokenizer import Tokenizer

    corpus = read(CorpusConfig, config)
    pieces = Tokenizer(tokenizer)
    splits = ["train", "dev", *corpus.test]
    manifests = {split: prepared / f"{split}.jsonl.gz" for split in splits}
    summary = read_json(prepared / "summary.json")
    with run_record(
        out_dir / "summary.json", "check", corpus.model_dump(mode="json"), [tokenizer, *manifests.values()]
    ) as record:
        for split in splits:
            failed, kept = Tally(), []
            for cut in read_cuts([manifests[split]]):
                problem = text_problem(cut, pieces)
                if problem is not None:
                    check, message = problem
                    failed.add(check, cut.duration)
                    if split == "train":
                        refuse_or_drop(getattr(corpus.checks, check), check, message)
                        continue
                kept.append(cut)
            if split == "train":
                labelled = [cut for cut in kept if text_of(cut) is not None]
                unlabelled = [cut for cut in kept if text_of(cut) is None]
                if not labelled:
                    raise ValueError(f"{manifests[split]}: no labelled utterance is left: {failed.to_json()}")
                _merge(summary["splits"]["train-labelled"], size_of(labelled), "dropped", failed.to_json())
                _merge(summary["splits"]["train-unlabelled"], size_of(unlabelled), "dropped", {})
                write_shards(shard(labelled, unlabelled, corpus.num_shards, corpus.split.seed), out_dir / split)
            else:
                _merge(summary["splits"][split], size_of(kept), "counted", failed.to_json())
                write_cuts(kept, out_dir / split / "cuts.00000.jsonl.gz")
            record[split] = len(kept)
        write_json(out_dir / "summary.json", summary)


def text_problem(cut: MonoCut, tokenizer: Tokenizer) -> tuple[str, str] | None:
    """The check that a cut's text fails and a message that names the cut; None when it passes or is unlabelled."""
    text = cut.supervisions[0].text
    if text is None:
        return None
    tokens = tokenizer.encode(text)
    if UNKNOWN in tokens:
        return "unknown_characters", f"utterance '{cut.id}': the tokenizer lacks a character of '{text}'"
    frames = int(cut.duration * 1000 / FRAME_SHIFT_MS)
    if frames < len(tokens):
        message = f"utterance '{cut.id}' has {frames} frames of {FRAME_SHIFT_MS} ms for {len(tokens)} labels"
        return "too_short_for_labels", message
    return None


def shard(labelled: list[MonoCut], unlabelled: list[MonoCut], num_shards: int, seed: int) -> list[list[MonoCut]]:
    """Deal the cuts to shards in a seeded order; every shard gets its share of the labelled and of the unlabelled.

    Raises:
        ValueError: when there are fewer cuts than shards.
    """
    if len(labelled) + len(unlabelled) < num_shards:
        raise ValueError(
            f"corpus.num_shards is {num_shards}, but there are only {len(labelled) + len(unlabelled)} training "
            "utterances: lower it"
        )
    rng = random.Random(seed)
    cuts = rng.sample(labelled, len(labelled)) + rng.sample(unlabelled, len(unlabelled))
    return [cuts[first::num_shards] for first in range(num_shards)]


def write_shards(shards: list[list[MonoCut]], folder: Path) -> None:
    """Write cuts.NNNNN.jsonl.gz for every shard; shards left over from a run with more of them are removed first."""
    from kdtrans.data.manifest import write_cuts

    paths = [folder / f"cuts.{number:05d}.jsonl.gz" for number in range(len(shards))]
    for stale in set(folder.glob("cuts.*.jsonl.gz")) - set(paths):
        stale.unlink()
    for path, cuts in zip(paths, shards, strict=True):
        write_cuts(cuts, path)


def _merge(entry: dict[str, Any], size: dict[str, float], kind: str, tally: dict[str, Any]) -> None:
    """Bring a split's entry of prepare's summary up to date: its size now, and what this stage dropped or counted."""
    entry |= size
    entry[kind] = {**entry[kind], **tally}
