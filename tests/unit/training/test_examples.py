"""Which utterances a student trains on: labellings, filters and refusals."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdtrans.config import FilterConfig, StudentConfig, validate
from kdtrans.contracts import ContractError
from kdtrans.data.manifest import text_of
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.targets.filters import repetition, unfit
from kdtrans.targets.shards import Target, TargetStore, read_shard, row_to_target, write_shard
from kdtrans.training.examples import student_examples
from tests.tiny import Workspace


# ------------------------------------------------------------------------------------------------------------- filters
@pytest.mark.parametrize(
    ("filters", "change", "reason"),
    [
        ({}, {}, None),
        ({}, {"labels": []}, "empty pseudo text"),
        ({"min_frames_per_label": 0.0}, {"labels": []}, "empty pseudo text"),
        ({}, {"num_frames": 3}, "too few frames a label"),
        ({"min_frames_per_label": 0.5}, {"num_frames": 3}, None),
        ({"min_frames_per_label": 6.25}, {}, None),
        ({"min_frames_per_label": 6.3}, {}, "too few frames a label"),
        ({"min_confidence": 0.5}, {}, None),
        ({"min_confidence": 0.51}, {}, "low confidence"),
        ({"max_repetition": 0.34}, {}, None),
        ({"max_repetition": 0.33}, {}, "repeated labels"),
        ({"max_length_ratio": 2.0}, {"labels_per_second": 2.0}, None),
        ({"max_length_ratio": 2.0}, {"labels_per_second": 1.9}, "unusual length"),
        ({"max_length_ratio": 2.0}, {"labels_per_second": 8.0}, None),
        ({"max_length_ratio": 2.0}, {"labels_per_second": 8.1}, "unusual length"),
        ({}, {"labels_per_second": 100.0}, None),
    ],
)
def test_each_filter(filters: dict[str, float], change: dict[str, Any], reason: str | None) -> None:
    """Four labels, one of them a repetition, in 25 frames of 1 s."""
    facts: dict[str, Any] = {"labels": [5, 5, 6, 7], "num_frames": 25, "confidence": 0.5, "seconds": 1.0}
    facts |= change
    facts["labels"] = np.array(facts["labels"])
    assert unfit(**facts, filters=validate(FilterConfig, filters, "test")) == reason


def test_repetition() -> None:
    for labels in ([], [3], [3, 3], [3, 4, 4, 4, 3], [1, 2, 3]):
        pairs = list(pairwise(labels))
        expected = sum(one == two for one, two in pairs) / len(pairs) if pairs else 0.0
        assert repetition(np.array(labels)) == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------------ examples
@pytest.fixture
def tokenizer(toy: Workspace) -> Tokenizer:
    return Tokenizer(toy.tokenizer)


def respell(target: Target, labels: list[int], **changes: Any) -> Target:
    """A target with other labels, all on its first frame."""
    path = np.array([*labels, *[0] * target.num_frames], dtype=np.uint16)
    top_k = target.topk_ids.shape[1]
    ids = np.zeros((len(path), top_k), np.uint16)
    return replace(target, path=path, topk_ids=ids, topk_logp=np.full(ids.shape, -9, np.float16), **changes)


@pytest.fixture
def store(toy: Workspace, tmp_path: Path) -> TargetStore:
    """The toy's targets, where every unlabelled utterance has three hypotheses: [2, 3], [2] and [4, 4, 4]."""
    footer, table = read_shard(toy.folder / "part.parquet")
    rows = []
    for row in range(len(table)):
        target = row_to_target(table, row, footer.top_k)
        if target.origin == "viterbi":
            rows.append(target)
            continue
        for rank, (labels, weight) in enumerate((([2, 3], 0.5), ([2], 0.3), ([4, 4, 4], 0.2))):
            rows.append(respell(target, labels, rank=rank, weight=weight, path_logp=-3.0 - rank, total_logp=-2.5))
    write_shard(rows, footer, tmp_path / "nbest.parquet")
    return TargetStore([tmp_path / "nbest.parquet"], footer.teacher_sha256, footer.tokenizer_sha256, footer.vocab_size)


def student(**values: Any) -> StudentConfig:
    return validate(StudentConfig, {"unlabelled": True, "kd": {"weight": 0.5}} | values, "test")


def test_unlabelled_utterances_have_the_hypotheses_that_are_fit(
    toy: Workspace, tokenizer: Tokenizer, store: TargetStore
) -> None:
    examples, dropped = student_examples(toy.cuts, tokenizer, student(), store)
    assert len(examples) == 12
    assert not dropped
    for example in examples:
        if example.labelled:
            [labelling] = example.labellings
            assert list(labelling.labels) == tokenizer.encode(text_of(example.cut) or "")
        else:
            assert [labelling.labels for labelling in example.labellings] == [(2, 3), (2,), (4, 4, 4)]
            assert [labelling.weight for labelling in example.labellings] == pytest.approx([0.5, 0.3, 0.2])
        for rank, labelling in enumerate(example.labellings):
            assert labelling.total_logp == store.target(example.cut.id, rank).total_logp
            assert labelling.load_targets is not None
            nodes = labelling.load_targets()
            assert len(nodes) == len(labelling.labels) + store.target(example.cut.id, rank).num_frames

    examples, dropped = student_examples(toy.cuts, tokenizer, student(filters={"max_repetition": 0.5}), store)
    weights = [[labelling.weight for labelling in e.labellings] for e in examples if not e.labelled]
    assert weights == [pytest.approx([0.625, 0.375])] * 4
    assert not dropped
    examples, dropped = student_examples(toy.cuts, tokenizer, student(filters={"min_confidence": 0.9}), store)
    assert dropped == {"low confidence": 4}
    assert all(example.labelled for example in examples)


def test_length_is_compared_with_labelled_speech(toy: Workspace, tokenizer: Tokenizer, store: TargetStore) -> None:
    settings = student(filters={"max_length_ratio": 1.5})
    _, dropped = student_examples(toy.cuts, tokenizer, settings, store)
    assert dropped == {"unusual length": 4}
    unlabelled = [cut for cut in toy.cuts if text_of(cut) is None]
    with pytest.raises(ValueError, match="there is none"):
        student_examples(unlabelled, tokenizer, settings, store)


@pytest.mark.parametrize(
    ("kd", "distributions", "totals"),
    [
        ({"weight": 0.0}, (False, False), (False, True)),
        ({"weight": 0.5}, (True, True), (True, True)),
        ({"weight": 0.5, "loss": "full_sum"}, (False, False), (True, True)),
        ({"weight": 0.5, "loss": "full_lattice"}, (False, False), (False, True)),
    ],
)
def test_a_loss_gets_what_it_reads(
    toy: Workspace,
    tokenizer: Tokenizer,
    store: TargetStore,
    kd: dict[str, Any],
    distributions: tuple[bool, bool],
    totals: tuple[bool, bool],
) -> None:
    """(labelled, unlabelled)."""
    examples, _ = student_examples(toy.cuts, tokenizer, student(kd=kd), store)
    for example in examples:
        for labelling in example.labellings:
            assert (labelling.load_targets is not None) == distributions[not example.labelled]
            assert (labelling.total_logp is not None) == totals[not example.labelled]


def test_refusals(toy: Workspace, tokenizer: Tokenizer, store: TargetStore, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="utterance utt00 has no target"):
        student_examples(toy.cuts, tokenizer, student(), None)
    footer, table = read_shard(tmp_path / "nbest.parquet")
    rows = [row_to_target(table, row, footer.top_k) for row in range(len(table))]
    write_shard([respell(rows[0], [3]), *rows[1:]], footer, tmp_path / "other.parquet")
    other = TargetStore([tmp_path / "other.parquet"], footer.teacher_sha256, footer.tokenizer_sha256, footer.vocab_size)
    with pytest.raises(ContractError, match=r"utterance utt00: its target spells .* dump again"):
        student_examples(toy.cuts, tokenizer, student(), other)
    assert student_examples(toy.cuts, tokenizer, student(unlabelled=False, kd={"weight": 0.0}), None)[0]
