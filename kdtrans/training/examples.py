"""Which utterances a model trains on, with which labels and which teacher targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from statistics import median

from lhotse import MonoCut

from kdtrans.config import StudentConfig
from kdtrans.contracts import ContractError
from kdtrans.data.batches import Example, Labelling
from kdtrans.data.manifest import text_of
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.losses.distillation import NodeTargets
from kdtrans.targets.filters import unfit
from kdtrans.targets.shards import Target, TargetStore


def labelled_examples(cuts: list[MonoCut], tokenizer: Tokenizer) -> list[Example]:
    """The labelled cuts, as a teacher or a baseline trains on them."""
    texts = [(cut, text_of(cut)) for cut in cuts]
    return [Example(cut, True, (Labelling(tuple(tokenizer.encode(text))),)) for cut, text in texts if text is not None]


def student_examples(
    cuts: list[MonoCut], tokenizer: Tokenizer, config: StudentConfig, store: TargetStore | None
) -> tuple[list[Example], Counter[str]]:
    """What a student system trains on, and how many unlabelled utterances are left out for which reason.

    Labels of unlabelled audio are those that the teacher's paths spell, so that path and labels agree node by node.

    Raises:
        ContractError: when a target is missing, or a labelled utterance's path does not spell its text.
        ValueError: when a filter compares with labelled speech and there is none.
    """
    examples = labelled_examples(cuts, tokenizer)
    pace = _labels_per_second(examples) if config.filters.max_length_ratio is not None else None
    if config.kd.reads_shards:
        examples = [_with_target(example, _targets(store, example.cut)[0], store, config) for example in examples]
    dropped: Counter[str] = Counter()
    for cut in cuts if config.unlabelled else []:
        if text_of(cut) is not None:
            continue
        targets = _targets(store, cut)
        reasons = [unfit(t.labels, t.num_frames, t.confidence, cut.duration, config.filters, pace) for t in targets]
        kept = [target for target, reason in zip(targets, reasons, strict=True) if reason is None]
        if not kept:
            dropped[str(reasons[0])] += 1
            continue
        total = sum(target.weight for target in kept)
        labellings = tuple(_labelling(target, target.weight / total, store, config) for target in kept)
        examples.append(Example(cut, False, labellings))
    return examples, dropped


def _labels_per_second(labelled: list[Example]) -> float:
    if not labelled:
        raise ValueError("filters.max_length_ratio compares with labelled speech, and there is none: set it to null")
    return median(len(example.labellings[0].labels) / example.cut.duration for example in labelled)


def _targets(store: TargetStore | None, cut: MonoCut) -> list[Target]:
    if store is None or cut.id not in store:
        raise ContractError(f"utterance {cut.id} has no target in the shards given: dump its shard again")
    return store[cut.id]


def _with_target(example: Example, target: Target, store: TargetStore | None, config: StudentConfig) -> Example:
    """A labelled example with its target, which has to spell its text."""
    labels = example.labellings[0].labels
    if tuple(target.labels.tolist()) != labels:
        raise ContractError(
            f"utterance {example.cut.id}: its target spells '{target.text}', its manifest says "
            f"'{text_of(example.cut)}': dump again"
        )
    return Example(example.cut, True, (_labelling(target, 1.0, store, config),))


def _labelling(target: Target, weight: float, store: TargetStore | None, config: StudentConfig) -> Labelling:
    distils_paths = config.kd.reads_shards and config.kd.loss == "one_best"
    load = _loader(store, target) if store and distils_paths else None
    return Labelling(tuple(target.labels.tolist()), weight, load, target.total_logp)


def _loader(store: TargetStore, target: Target) -> Callable[[], NodeTargets]:
    utt_id, rank = target.utt_id, target.rank  # read again when it is needed: no closure holds distributions
    return lambda: store.target(utt_id, rank).node_targets(store.frame_offset)
