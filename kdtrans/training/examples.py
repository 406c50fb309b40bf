"""Which utterances a model trains on, with which labels and which teacher targets."""

from __future__ import annotations

from collections import Counter
from functools import partial
from statistics import median

from lhotse import MonoCut

from kdtrans.config import StudentConfig
from kdtrans.contracts import ContractError
from kdtrans.data.batches import Example, Labelling, Supervision, known
from kdtrans.data.manifest import text_of
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.targets.filters import unfit
from kdtrans.targets.store import TargetRow, TargetStore


def labelled_examples(cuts: list[MonoCut], tokenizer: Tokenizer) -> list[Example]:
    """The labelled cuts, as a teacher or a baseline trains on them."""
    texts = [(cut, text_of(cut)) for cut in cuts]
    return [
        Example(cut, True, (known(Supervision(tuple(tokenizer.encode(text)))),))
        for cut, text in texts
        if text is not None
    ]


def student_examples(
    cuts: list[MonoCut], tokenizer: Tokenizer, config: StudentConfig, store: TargetStore | None
) -> tuple[list[Example], Counter[str]]:
    """What a student system trains on, and how many unlabelled utterances are left out for which reason.

    Labels of unlabelled audio are those that the teacher's paths spell, so that path and labels agree node by node.
    They and the distributions are read when an utterance is visited; here, only the store's index is.

    Raises:
        ContractError: when a target is missing; at the visit, when a labelled utterance's path does not spell its text.
        ValueError: when a filter compares with labelled speech and there is none.
    """
    examples = labelled_examples(cuts, tokenizer)
    pace = _labels_per_second(examples) if config.filters.max_length_ratio is not None else None
    if config.reads_labelled_targets:
        examples = [_with_target(example, store, config) for example in examples]
    dropped: Counter[str] = Counter()
    for cut in cuts if config.unlabelled else []:
        if text_of(cut) is not None:
            continue
        targets, rows = _rows(store, cut)
        reasons = [unfit(row, cut.duration, config.filters, pace) for row in rows]
        kept = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
        if not kept:
            dropped[str(reasons[0])] += 1
            continue
        total = sum(row.weight for row in kept)
        labellings = tuple(
            Labelling(row.num_labels, partial(_read, targets, cut.id, row.rank, config), row.weight / total)
            for row in kept
        )
        examples.append(Example(cut, False, labellings))
    return examples, dropped


def visits_for_words(examples: list[Example], share: float) -> list[float] | None:
    """Visits of each example in an epoch, such that rare words of the labelled text are heard often enough.

    A word of fewer labelled utterances than that has each of them repeated until their visits are as many; an
    utterance follows its rarest word (repeat factor sampling, Gupta et al. 2019, arXiv 1908.03195, but for their
    square root, with which a word of one utterance stays rare). The text of unlabelled audio is a guess, of rare words
    a bad one: it is visited once.

    Args:
        examples: labelled and unlabelled.
        share: of the labelled utterances; 0: every example is visited once, which is None.
    """
    if share == 0:
        return None
    words = [set((text_of(example.cut) or "").split()) for example in examples]  # unlabelled: none
    count = Counter(word for of_one in words for word in of_one)
    least = share * sum(example.labelled for example in examples)
    return [max([1.0, *(least / count[word] for word in of_one)]) for of_one in words]


def _labels_per_second(labelled: list[Example]) -> float:
    if not labelled:
        raise ValueError("filters.max_length_ratio compares with labelled speech, and there is none: set it to null")
    return median(example.labellings[0].num_labels / example.cut.duration for example in labelled)


def _rows(store: TargetStore | None, cut: MonoCut) -> tuple[TargetStore, list[TargetRow]]:
    if store is None:
        raise ContractError(f"utterance {cut.id} has no target: no index of targets is given")
    return store, store.rows(cut.id)


def _with_target(example: Example, store: TargetStore | None, config: StudentConfig) -> Example:
    """A labelled example with its target, which has to spell its text."""
    targets, [best, *_] = _rows(store, example.cut)
    labels = example.labellings[0].read().labels

    def check(spelled: str, same: bool) -> None:
        if not same:
            raise ContractError(
                f"utterance {example.cut.id}: its target spells {spelled}, its manifest says "
                f"'{text_of(example.cut)}', tokens {list(labels)}: dump again"
            )

    def read() -> Supervision:
        supervision = _read(targets, example.cut.id, 0, config)
        check(str(list(supervision.labels)), supervision.labels == labels)
        return supervision

    check(f"{best.num_labels} labels", best.num_labels == len(labels))
    return Example(example.cut, True, (Labelling(len(labels), read),))


def _read(store: TargetStore, utt_id: str, rank: int, config: StudentConfig) -> Supervision:
    """One of an utterance's targets, as far as the configured loss looks at it."""
    target = store.target(utt_id, rank)
    nodes = target.node_targets(store.frame_offset) if config.reads_nodes else None
    return Supervision(tuple(target.labels.tolist()), nodes, target.total_logp)
