"""Which utterances a student trains on: labellings, filters and refusals."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdtrans.config import FilterConfig, StudentConfig, validate
from kdtrans.contracts import ContractError, TargetsFooter
from kdtrans.data.batches import BatchOrder, Example, FeatureCache, TrainingBatches
from kdtrans.data.manifest import text_of
from kdtrans.data.splice import Splice
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.targets.filters import repetition, unfit
from kdtrans.targets.index import index_shard, row_groups, write_index
from kdtrans.targets.shards import Target, read_shard, row_to_target, write_shard
from kdtrans.targets.store import TargetRow, TargetStore
from kdtrans.training.examples import student_examples, visits_for_words
from tests.tiny import Workspace


# ------------------------------------------------------------------------------------------------------------- filters
@pytest.mark.parametrize(
    ("filters", "change", "reason"),
    [
        ({}, {}, None),
        ({}, {"num_labels": 0}, "empty pseudo text"),
        ({"min_frames_per_label": 0.0}, {"num_labels": 0}, "empty pseudo text"),
        ({}, {"num_frames": 3}, "too few frames a label"),
        ({"min_frames_per_label": 0.5}, {"num_frames": 3}, None),
        ({"min_frames_per_label": 6.25}, {}, None),
        ({"min_frames_per_label": 6.3}, {}, "too few frames a label"),
        ({"min_confidence": 0.5}, {}, None),
        ({"min_confidence": 0.51}, {}, "low confidence"),
        ({"max_repetition": 0.34}, {}, None),
        ({"max_repetition": 0.33}, {}, "repeated labels"),
        ({"max_repetition": 0.1}, {"repetition": float(np.float32(0.1))}, None),  # as the index has it
        ({"min_confidence": 0.7}, {"confidence": float(np.float32(0.7))}, None),
        ({"max_length_ratio": 2.0}, {"labels_per_second": 2.0}, None),
        ({"max_length_ratio": 2.0}, {"labels_per_second": 1.9}, "unusual length"),
        ({"max_length_ratio": 2.0}, {"labels_per_second": 8.0}, None),
        ({"max_length_ratio": 2.0}, {"labels_per_second": 8.1}, "unusual length"),
        ({}, {"labels_per_second": 100.0}, None),
    ],
)
def test_each_filter(filters: dict[str, float], change: dict[str, Any], reason: str | None) -> None:
    """Four labels, one of them a repetition, in 25 frames of 1 s."""
    pace = change.pop("labels_per_second", None)
    row = replace(TargetRow(0, 1.0, num_frames=25, num_labels=4, confidence=0.5, repetition=1 / 3), **change)
    assert unfit(row, 1.0, validate(FilterConfig, filters, "test"), pace) == reason


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


def store_of(rows: list[Target], footer: TargetsFooter, folder: Path) -> TargetStore:
    part = folder / "part-00000.parquet"
    write_shard(rows, footer, part)
    write_index(folder / "index.json", footer, [index_shard(part, footer, row_groups(part))])
    return TargetStore(folder / "index.json", footer.tokenizer_sha256, footer.vocab_size)


@pytest.fixture
def store(toy: Workspace, tmp_path: Path) -> TargetStore:
    """The toy's targets, where every unlabelled utterance has three hypotheses: [2, 3], [2] and [4, 4, 4]."""
    footer, table = read_shard(toy.part)
    rows = []
    for row in range(len(table)):
        target = row_to_target(table, row, footer.top_k)
        if target.origin == "viterbi":
            rows.append(target)
            continue
        for rank, (labels, weight) in enumerate((([2, 3], 0.5), ([2], 0.3), ([4, 4, 4], 0.2))):
            rows.append(respell(target, labels, rank=rank, weight=weight, path_logp=-3.0 - rank, total_logp=-2.5))
    return store_of(rows, footer, tmp_path / "nbest")


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
            assert list(labelling.read().labels) == tokenizer.encode(text_of(example.cut) or "")
        else:
            assert [labelling.read().labels for labelling in example.labellings] == [(2, 3), (2,), (4, 4, 4)]
            assert [labelling.weight for labelling in example.labellings] == pytest.approx([0.5, 0.3, 0.2])
        for rank, labelling in enumerate(example.labellings):
            target, read = store.target(example.cut.id, rank), labelling.read()
            assert read.total_logp == target.total_logp
            assert read.targets is not None
            assert len(read.targets) == len(read.labels) + target.num_frames
            assert labelling.num_labels == len(read.labels)

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
    ("changes", "distributions", "totals"),
    [
        ({"kd": {"weight": 0.0}}, (False, False), (False, True)),
        ({"kd": {"weight": 0.0}, "splice": 0.5}, (True, True), (True, True)),
        ({"kd": {"weight": 0.5}}, (True, True), (True, True)),
        ({"kd": {"weight": 0.5, "loss": "full_sum"}}, (False, False), (True, True)),
        ({"kd": {"weight": 0.5, "loss": "full_lattice"}}, (False, False), (False, True)),
    ],
)
def test_a_system_gets_what_it_reads(
    toy: Workspace,
    tokenizer: Tokenizer,
    store: TargetStore,
    changes: dict[str, Any],
    distributions: tuple[bool, bool],
    totals: tuple[bool, bool],
) -> None:
    """(labelled, unlabelled)."""
    examples, _ = student_examples(toy.cuts, tokenizer, student(**changes), store)
    for example in examples:
        for labelling in example.labellings:
            read = labelling.read()
            assert (read.targets is not None) == distributions[not example.labelled]
            assert (read.total_logp is not None) == totals[not example.labelled]


def test_refusals(toy: Workspace, tokenizer: Tokenizer, store: TargetStore, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="utterance utt00 has no target"):
        student_examples(toy.cuts, tokenizer, student(), None)
    footer, table = read_shard(tmp_path / "nbest" / "part-00000.parquet")
    rows = [row_to_target(table, row, footer.top_k) for row in range(len(table))]
    shorter = store_of([respell(rows[0], [3]), *rows[1:]], footer, tmp_path / "shorter")
    with pytest.raises(ContractError, match=r"utterance utt00: its target spells 1 labels, .* dump again"):
        student_examples(toy.cuts, tokenizer, student(), shorter)
    other = store_of([respell(rows[0], [3] * len(rows[0].labels)), *rows[1:]], footer, tmp_path / "other")
    [first, *_], _ = student_examples(toy.cuts, tokenizer, student(), other)
    with pytest.raises(ContractError, match=r"utterance utt00: its target spells \[3, .* dump again"):
        first.labellings[0].read()
    assert student_examples(toy.cuts, tokenizer, student(unlabelled=False, kd={"weight": 0.0}), None)[0]


def test_no_distribution_is_read_before_its_visit(
    toy: Workspace, tokenizer: Tokenizer, store: TargetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "target", None)
    assert len(student_examples(toy.cuts, tokenizer, student(filters={"max_length_ratio": 9.0}), store)[0]) == 12


def test_every_word_of_the_labelled_text_is_visited_often_enough(toy: Workspace) -> None:
    def example(text: str | None) -> Example:
        cut = toy.cuts[0]
        return Example(replace(cut, supervisions=[replace(cut.supervisions[0], text=text)]), text is not None, ())

    texts = ["EIGHT ONE"] * 4 + ["ONE HALF", "ONE HALF HALF", "HALF PAST", "", None]
    examples = [example(text) for text in texts]
    assert visits_for_words(examples, 0.0) is None
    # of 8 labelled utterances 6 have ONE, 4 EIGHT, 3 HALF, 1 PAST
    assert visits_for_words(examples, 0.25) == [1.0] * 6 + [2.0, 1.0, 1.0]
    assert visits_for_words(examples, 0.5) == [1.0] * 4 + [4 / 3, 4 / 3, 4.0, 1.0, 1.0]


@pytest.mark.parametrize("splice", [None, Splice(0.7, torch.ones(99, dtype=torch.bool))])
def test_loader_processes_read_the_same_targets(
    toy: Workspace, tokenizer: Tokenizer, store: TargetStore, splice: Splice | None
) -> None:
    examples, _ = student_examples(toy.cuts, tokenizer, student(), store)
    seconds, labelled = [e.cut.duration for e in examples], [e.labelled for e in examples]
    store.target("utt00", 0)  # this process has files open

    def stream(workers: int) -> TrainingBatches:
        order = BatchOrder(seconds, labelled, 6.0)
        features = FeatureCache(lambda samples_S: samples_S[::160, None], 1.0)
        return TrainingBatches(examples, order, features, workers, change=splice)

    for here, there in islice(zip(stream(0).stream((0, 0)), stream(2).stream((0, 0)), strict=True), 12):
        assert (here.utt_ids, here.position) == (there.utt_ids, there.position)
        assert here.targets is not None
        assert there.targets is not None
        assert torch.equal(here.labels_BU, there.labels_BU)
        assert torch.equal(here.targets.ids_NK, there.targets.ids_NK)
        assert torch.equal(here.targets.logp_NK, there.targets.logp_NK)
        assert (here.teacher_totals_B is None) == (splice is not None)
        torch.testing.assert_close(here.teacher_totals_B, there.teacher_totals_B)
