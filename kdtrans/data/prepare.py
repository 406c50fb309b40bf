"""From a corpus's own parts to the splits of an experiment: roles, the split by speaker, and the checks of audio."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lhotse import MonoCut

from kdtrans.config import ConfigError, CorpusConfig, Policy, SplitConfig
from kdtrans.data.corpora import Utterance, read_part
from kdtrans.data.corpora.audio import AudioError, open_cut
from kdtrans.data.manifest import speaker_of

READ_THREADS = 8  # opening a file is waiting for the disk, and libsndfile lets other threads run meanwhile


@dataclass
class Tally:
    """Utterances and seconds that a check found, by reason."""

    utterances: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, reason: str, seconds: float) -> None:
        """Count one utterance."""
        self.utterances[reason] = self.utterances.get(reason, 0) + 1
        self.seconds[reason] = self.seconds.get(reason, 0.0) + seconds

    def to_json(self) -> dict[str, dict[str, float]]:
        """{reason: {utterances, hours}}, reasons sorted."""
        return {
            reason: {"utterances": self.utterances[reason], "hours": hours(self.seconds[reason])}
            for reason in sorted(self.utterances)
        }


def hours(seconds: float) -> float:
    """Hours with four decimals."""
    return round(seconds / 3600, 4)


def size_of(cuts: Iterable[MonoCut]) -> dict[str, float]:
    """Utterances, hours and speakers of some cuts."""
    cuts = list(cuts)
    return {
        "utterances": len(cuts),
        "hours": hours(sum(cut.duration for cut in cuts)),
        "speakers": len({speaker_of(cut) for cut in cuts}),
    }


def refuse_or_drop(policy: Policy, check: str, message: str) -> None:
    """Do what the configuration says about one bad utterance: raise for `fail`, return for `drop`.

    Raises:
        ValueError: the message and how to have such utterances left out.
    """
    if policy == "fail":
        raise ValueError(
            f"{check}: {message}; mend it, or set corpus.checks.{check}: drop to leave it out and count it"
        )


def read_roles(config: CorpusConfig, root: Path) -> dict[str, list[Utterance]]:
    """Utterances of every split: train-labelled, train-unlabelled, dev and each test set.

    Those of train-unlabelled still have the text that the corpus has for them.

    Raises:
        ConfigError: when a test set has the name of a training split.
    """

    if reserved := {"train-labelled", "train-unlabelled"} & config.test.keys():
        raise ConfigError(f"corpus.test: a test set may not be called '{reserved.pop()}'")

    def parts(names: list[str]) -> list[Utterance]:
        return [utterance for name in names for utterance in read_part(config.name, root, name)]

    labelled, dev, rest = split_by_speaker(parts(config.labelled), config.split)
    splits = {
        "train-labelled": labelled,
        "train-unlabelled": rest + parts(config.unlabelled),
        "dev": dev + parts(config.dev),
    }
    return splits | {name: parts(names) for name, names in config.test.items()}


def split_by_speaker(
    utterances: list[Utterance], split: SplitConfig
) -> tuple[list[Utterance], list[Utterance], list[Utterance]]:
    """Split into (labelled, dev, unlabelled) with no speaker in two of them.

    The speakers are shuffled with the seed; the first ones are dev, the next ones labelled, the others unlabelled, so a
    larger labelled fraction only adds speakers to the labelled ones of a smaller.
    """
    speakers = sorted({utterance.speaker for utterance in utterances})
    random.Random(split.seed).shuffle(speakers)
    first = max(1, round(split.dev_fraction * len(speakers))) if split.dev_fraction > 0 else 0
    last = round((split.dev_fraction + split.labelled_fraction) * len(speakers))
    role = {speaker: 1 if i < first else 0 if i < last else 2 for i, speaker in enumerate(speakers)}
    groups: tuple[list[Utterance], list[Utterance], list[Utterance]] = ([], [], [])
    for utterance in utterances:
        groups[role[utterance.speaker]].append(utterance)
    return groups


def check_split(
    name: str, utterances: list[Utterance], config: CorpusConfig, seen: dict[str, Path]
) -> tuple[list[MonoCut], dict[str, Any]]:
    """Open the audio of one split and apply the checks.

    A length outside the limits is no reason to leave an utterance out of dev or a test set, where that would flatter
    every system: it is counted there, and only what cannot be decoded or scored is dropped.

    Args:
        name: `train-labelled`, `train-unlabelled`, `dev` or a test set.
        utterances: as the corpus lists them.
        config: limits, and for each check whether it fails or drops.
        seen: ids so far and their files; extended. Splits that go into one manifest share it.

    Returns:
        The cuts that are kept (text None in train-unlabelled) and the split's entry of the summary.

    Raises:
        ValueError: naming the utterance and its file, when a check fails whose policy is `fail`.
    """
    policies, dropped, counted = config.checks, Tally(), Tally()
    is_train = name.startswith("train-")
    found_s, resampled = 0.0, 0
    kept: list[MonoCut] = []

    def drop(check: str, message: str, seconds: float) -> None:
        refuse_or_drop(getattr(policies, check), check, message)
        dropped.add(check, seconds)

    with ThreadPoolExecutor(READ_THREADS) as threads:
        opened = threads.map(_outcome(open_cut), _without_text(utterances, name))
        for utterance, cut in zip(utterances, opened, strict=True):
            where = f"{utterance.audio} (utterance '{utterance.id}')"
            if isinstance(cut, AudioError):
                drop(cut.reason, str(cut), 0.0)
                continue
            found_s += cut.duration
            out_of_duration = not config.min_duration_s <= cut.duration <= config.max_duration_s
            if utterance.id in seen:
                drop("duplicate_id", f"{where}: the id is already that of {seen[utterance.id]}", cut.duration)
            elif name != "train-unlabelled" and not utterance.text:
                drop("empty_text", f"{where} has no text", cut.duration)
            elif out_of_duration and is_train:
                limits = f"{config.min_duration_s:g} .. {config.max_duration_s:g} s"
                drop("out_of_duration", f"{where} lasts {cut.duration:.2f} s, allowed are {limits}", cut.duration)
            else:
                if out_of_duration:
                    counted.add("out_of_duration", cut.duration)
                seen[utterance.id] = utterance.audio
                resampled += bool(cut.recording.transforms)
                kept.append(cut)
    found = {
        "utterances": len(utterances),
        "hours": hours(found_s),
        "speakers": len({utterance.speaker for utterance in utterances}),
    }
    entry = {
        **size_of(kept),
        "found": found,
        "dropped": dropped.to_json(),
        "counted": counted.to_json(),
        "resampled": resampled,
    }
    return kept, entry


def shared_speakers(splits: dict[str, list[MonoCut]]) -> dict[str, int]:
    """Speakers that are in train and in dev or a test set, or in dev and in a test set: {'train & dev': count}."""
    speakers = {name: {speaker_of(cut) for cut in cuts} for name, cuts in splits.items()}
    pairs = [(first, second) for first in ("train", "dev") for second in splits if second not in ("train", first)]
    counts = {f"{first} & {second}": len(speakers[first] & speakers[second]) for first, second in pairs}
    return {pair: count for pair, count in counts.items() if count}


def _outcome(function: Callable[[Utterance], MonoCut]) -> Callable[[Utterance], MonoCut | AudioError]:
    def call(utterance: Utterance) -> MonoCut | AudioError:
        try:
            return function(utterance)
        except AudioError as problem:
            return problem

    return call


def _without_text(utterances: list[Utterance], name: str) -> list[Utterance]:
    """Nothing that trains may see the text of unlabelled speech, so it does not get into the manifest."""
    return [replace(utterance, text=None) for utterance in utterances] if name == "train-unlabelled" else utterances
