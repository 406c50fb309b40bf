"""Which utterances a model trains on, with which labels and which teacher targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from lhotse import MonoCut

from kdtrans.config import StudentConfig
from kdtrans.contracts import ContractError
from kdtrans.data.batches import Example
from kdtrans.data.manifest import text_of
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.losses.distillation import NodeTargets
from kdtrans.targets.shards import Target, TargetStore

MOST_LABELS_PER_FRAME = 1.0  # pseudo labels denser than this are hallucinated


def labelled_examples(cuts: list[MonoCut], tokenizer: Tokenizer) -> list[Example]:
    """The labelled cuts, as a teacher or a baseline trains on them."""
    labelled = [(cut, text_of(cut)) for cut in cuts]
    return [Example(cut, tuple(tokenizer.encode(text)), labelled=True) for cut, text in labelled if text is not None]


def student_examples(
    cuts: list[MonoCut], tokenizer: Tokenizer, config: StudentConfig, store: TargetStore | None
) -> tuple[list[Example], Counter[str]]:
    """What a student system trains on, and how many unlabelled utterances are left out for which reason.

    Labels of unlabelled audio are those that the teacher's path spells, so that path and labels agree node by node.

    Raises:
        ContractError: when a target is missing, or a labelled utterance's path does not spell its text.
    """
    dropped: Counter[str] = Counter()
    examples = []
    for cut in cuts:
        text = text_of(cut)
        if text is None and not config.unlabelled:
            continue
        target = _target(store, cut.id) if text is None or config.kd.weight > 0 else None
        labels = tuple(tokenizer.encode(text)) if text is not None else tuple(target.labels.tolist()) if target else ()
        if text is None and target is not None:
            reason = _unfit(target, config.min_confidence)
            if reason:
                dropped[reason] += 1
                continue
        elif target is not None and tuple(target.labels.tolist()) != labels:
            raise ContractError(
                f"utterance {cut.id}: its target spells '{target.text}', its manifest says '{text}': dump again"
            )
        frame_offset = store.footer.frame_offset if store and store.footer else 0
        load = _loader(store, cut.id, frame_offset) if store and config.kd.weight > 0 else None
        examples.append(Example(cut, labels, text is not None, load))
    return examples, dropped


def _target(store: TargetStore | None, utt_id: str) -> Target:
    if store is None or utt_id not in store:
        raise ContractError(f"utterance {utt_id} has no target in the shards given: dump its shard again")
    return store[utt_id]


def _loader(store: TargetStore, utt_id: str, frame_offset: int) -> Callable[[], NodeTargets]:
    return lambda: store[utt_id].node_targets(frame_offset)


def _unfit(target: Target, min_confidence: float) -> str | None:
    """Why a pseudo-labelled utterance is left out; None if it is fit."""
    if len(target.labels) == 0:
        return "empty pseudo text"
    if len(target.labels) > MOST_LABELS_PER_FRAME * target.num_frames:
        return "more labels than frames"
    if target.confidence < min_confidence:
        return "low confidence"
    return None
