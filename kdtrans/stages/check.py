"""Check text against the tokenizer and write the manifest shards."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdtrans.artifacts import read_json, run_record, sha256_files, write_json
from kdtrans.config import CorpusConfig, read
from kdtrans.contracts import FRAME_SHIFT_MS, UNKNOWN, ContractError, manifest_files

if TYPE_CHECKING:
    from lhotse import MonoCut

    from kdtrans.data.prepare import Tally
    from kdtrans.data.tokenizer import Tokenizer


def main(*, config: Path, prepared: Path, tokenizer: Path, out_dir: Path) -> None:
    """Check the text of every split against the tokenizer and write train in shards, dev and the test sets whole.

    Training cuts are written once for each of corpus.speeds, every copy checked and counted as an utterance of its own.
    Those that fail a check are dropped or stop the stage, as configured; in dev and the test sets they are only
    counted. Writes {split}/cuts.NNNNN.jsonl.gz and, last, summary.json, which says with one hash
    whether any of train's shards has changed.

    Args:
        config: YAML file with the corpus section.
        prepared: folder that `prepare` wrote.
        tokenizer: sentencepiece model.
        out_dir: folder for the shards.
    """
    from kdtrans.data.manifest import read_cuts, write_cuts
    from kdtrans.data.prepare import size_of
    from kdtrans.data.tokenizer import Tokenizer

    corpus = read(CorpusConfig, config)
    pieces = Tokenizer(tokenizer)
    splits = ["train", "dev", *corpus.test]
    manifests = {split: prepared / f"{split}.jsonl.gz" for split in splits}
    summary = read_summary(prepared / "summary.json", ["train-labelled", "train-unlabelled", *splits[1:]])
    with run_record(
        out_dir / "summary.json", "check", corpus.model_dump(mode="json"), [tokenizer, *manifests.values()]
    ) as record:
        for split in splits:
            cuts = read_cuts([manifests[split]])
            if split == "train":
                parts = check_train(cuts, corpus, pieces)
                for part, (kept, dropped) in parts.items():
                    _merge(summary["splits"][part], size_of(kept), "dropped", dropped)
                (labelled, dropped), (unlabelled, _) = parts.values()
                if not labelled:
                    raise ValueError(f"{manifests[split]}: no labelled utterance is left: {dropped.to_json()}")
                write_shards(shard(labelled, unlabelled, corpus.num_shards, corpus.split.seed), out_dir / split)
                record[split] = len(labelled) + len(unlabelled)
            else:
                _merge(summary["splits"][split], size_of(cuts), "counted", text_problems(cuts, pieces))
                write_cuts(cuts, out_dir / split / "cuts.00000.jsonl.gz")
                record[split] = len(cuts)
        shards_sha256 = sha256_files(manifest_files([out_dir / "train"]))
        write_json(out_dir / "summary.json", {**summary, "speeds": corpus.speeds, "train_sha256": shards_sha256})


def read_summary(path: Path, parts: list[str]) -> dict[str, Any]:
    """What `prepare` says of some parts; raises ContractError naming the file that does not."""
    summary = read_json(path)
    splits = summary.get("splits") if isinstance(summary, dict) else None
    for part in parts:
        entry = splits.get(part) if isinstance(splits, dict) else None
        if not isinstance(entry, dict) or not all(isinstance(entry.get(kind), dict) for kind in ("dropped", "counted")):
            raise ContractError(f"{path} is no summary of `kdtrans prepare` with the part '{part}': prepare again")
    return {**summary}


def check_train(
    cuts: list[MonoCut], corpus: CorpusConfig, tokenizer: Tokenizer
) -> dict[str, tuple[list[MonoCut], Tally]]:
    """What is kept of train-labelled and of train-unlabelled, in this order, at every speed, and what is dropped.

    Raises:
        ValueError: naming the utterance, when a check fails whose policy is `fail`.
    """
    from kdtrans.data.manifest import text_of
    from kdtrans.data.prepare import Tally, refuse_or_drop

    parts: dict[str, tuple[list[MonoCut], Tally]] = {
        "train-labelled": ([], Tally()),
        "train-unlabelled": ([], Tally()),
    }
    for copy in (at_speed(cut, speed) for cut in cuts for speed in corpus.speeds):
        kept, dropped = parts["train-unlabelled" if text_of(copy) is None else "train-labelled"]
        problem = duration_problem(copy, corpus) or text_problem(copy, tokenizer)
        if problem is None:
            kept.append(copy)
            continue
        check, message = problem
        refuse_or_drop(getattr(corpus.checks, check), check, message)
        dropped.add(check, copy.duration)
    return parts


def at_speed(cut: MonoCut, speed: float) -> MonoCut:
    """The cut played that much faster, pitch and all, with an id of its own; at speed 1 the cut itself."""
    from lhotse.utils import fastcopy

    if speed == 1.0:
        return cut
    played = cut.perturb_speed(speed, affix_id=False)
    utt_id = f"{cut.id}-sp{speed:g}"
    return fastcopy(played, id=utt_id, supervisions=[fastcopy(played.supervisions[0], id=utt_id)])


def text_problems(cuts: list[MonoCut], tokenizer: Tokenizer) -> Tally:
    """How many cuts fail which check of the text."""
    from kdtrans.data.prepare import Tally

    failed = Tally()
    for cut in cuts:
        if problem := text_problem(cut, tokenizer):
            failed.add(problem[0], cut.duration)
    return failed


def duration_problem(cut: MonoCut, corpus: CorpusConfig) -> tuple[str, str] | None:
    """A slow or fast copy may leave the limits that the cut itself has kept: `text_problem`'s counterpart for them."""
    if corpus.min_duration_s <= cut.duration <= corpus.max_duration_s:
        return None
    limits = f"{corpus.min_duration_s:g} .. {corpus.max_duration_s:g} s"
    return "out_of_duration", f"utterance '{cut.id}' lasts {cut.duration:.2f} s, allowed are {limits}"


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


def _merge(entry: dict[str, Any], size: dict[str, float], kind: str, tally: Tally) -> None:
    """Bring a split's entry of prepare's summary up to date: its size now, and what this stage dropped or counted."""
    entry |= size
    for reason, found in tally.to_json().items():
        before = entry[kind].get(reason, {"utterances": 0, "hours": 0.0})
        entry[kind][reason] = {key: round(before[key] + value, 4) for key, value in found.items()}
