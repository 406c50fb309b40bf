from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrans.data.batches import BatchOrder, pack

seconds = st.lists(st.floats(0.3, 15.0), min_size=1, max_size=60)


@settings(deadline=None)
@given(seconds, st.floats(1.0, 60.0), st.integers(0, 3))
def test_an_epoch_holds_everyone_once_within_the_limit(durations: list[float], limit: float, epoch: int) -> None:
    order = BatchOrder(durations, [True] * len(durations), limit, seed=epoch)
    batches = order.epoch(epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(durations)))
    for batch in batches:
        assert len(batch) == 1 or max(durations[i] for i in batch) * len(batch) <= limit


def test_order_is_a_function_of_seed_and_epoch() -> None:
    durations = [1.0 + i % 7 for i in range(50)]
    one, two = (BatchOrder(durations, [True] * 50, 20.0, seed=3) for _ in range(2))
    assert one.epoch(5) == two.epoch(5)
    assert one.epoch(5) != one.epoch(6)
    assert one.epoch(0) != BatchOrder(durations, [True] * 50, 20.0, seed=4).epoch(0)


@pytest.mark.parametrize("consumed", [0, 1, 7, 23, 60])
def test_a_stream_resumes_where_it_was_left(consumed: int) -> None:
    durations = [1.0 + i % 7 for i in range(50)]
    whole = list(islice(BatchOrder(durations, [True] * 50, 20.0).stream(), 90))
    position = whole[consumed - 1][0] if consumed else (0, 0)
    resumed = list(islice(BatchOrder(durations, [True] * 50, 20.0).stream(position), 90 - consumed))
    assert resumed == whole[consumed:]


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0, 12.0])
def test_unlabelled_ratio_holds_and_nobody_is_forgotten(ratio: float) -> None:
    durations = [2.0] * 40 + [3.0] * 100
    labelled = [True] * 40 + [False] * 100
    members = [i for batch in BatchOrder(durations, labelled, 30.0, unlabelled_ratio=ratio).epoch(0) for i in batch]
    assert set(members) == set(range(140))
    unlabelled_s = sum(durations[i] for i in members if not labelled[i])
    labelled_s = sum(durations[i] for i in members if labelled[i])
    assert unlabelled_s / labelled_s == pytest.approx(ratio, rel=0.05)


def test_pack_keeps_the_order() -> None:
    assert pack([3, 1, 0, 2], [4.0, 3.0, 9.0, 1.0], 8.0) == [[3, 1], [0], [2]]
