"""Emission delays against a loop over labels, quantiles against sorting, and what cannot be compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrans.contracts import ALIGNMENTS, FRAME_SHIFT_MS, ContractError
from kdtrans.scoring.delay import label_delays, pooled

A, B = Path("kd/test.parquet"), Path("teacher/test.parquet")
alignments = st.lists(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), max_size=8), min_size=1, max_size=6)


def table(frames: dict[str, list[int]], tokens: dict[str, list[int]] | None = None) -> pa.Table:
    """Rows of ALIGNMENTS, in the order given."""
    rows = [
        {
            "utt_id": utt_id,
            "tokens": tokens[utt_id] if tokens else [7] * len(of_labels),
            "token_frames": of_labels,
            "num_frames": 250,
            "path_logp": -1.0,
        }
        for utt_id, of_labels in frames.items()
    ]
    return pa.Table.from_pylist(rows, schema=ALIGNMENTS)


def slow_quantile(values: list[int], share: float) -> float:
    """The value at a share of the sorted list, between neighbours in proportion."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@settings(deadline=None, max_examples=20)
@given(alignments)
def test_delays_match_a_loop(utterances: list[list[tuple[int, int]]]) -> None:
    ours = {f"u{n}": [own for own, _ in pairs] for n, pairs in enumerate(utterances)}
    teacher = {f"u{n}": [its for _, its in pairs] for n, pairs in enumerate(utterances)}
    expected = [FRAME_SHIFT_MS * (own - its) for pairs in utterances for own, its in pairs]
    # The order of the rows is no matter.
    found = label_delays(table(ours), table(dict(reversed(teacher.items()))), A, B)
    assert found.tolist() == expected
    delay = pooled([found, found + FRAME_SHIFT_MS])
    if not expected:
        assert delay is None
        return
    both = expected + [value + FRAME_SHIFT_MS for value in expected]
    assert delay is not None
    assert delay.mean == pytest.approx(sum(both) / len(both))
    assert delay.p50 == pytest.approx(slow_quantile(both, 0.5))
    assert delay.p90 == pytest.approx(slow_quantile(both, 0.9))
    assert delay.labels == len(expected)


def test_a_model_has_no_delay_against_itself() -> None:
    one = table({"u1": [3, 9], "u2": [1]})
    assert np.array_equal(label_delays(one, one, A, B), [0, 0, 0])


def test_refuses_what_cannot_be_compared() -> None:
    one = table({"u1": [3, 9], "u2": [1]})
    with pytest.raises(ContractError, match=r"kd/test.parquet \(2 utterances\) and teacher/test.parquet \(1\)"):
        label_delays(one, table({"u1": [3, 9]}), A, B)
    other = table({"u1": [3, 9], "u2": [1]}, {"u1": [7, 7], "u2": [8]})
    with pytest.raises(ContractError, match=r"utterance u2 has other labels in kd/test\.parquet"):
        label_delays(one, other, A, B)
    with pytest.raises(ContractError, match="utterance u1 has other labels"):
        label_delays(one, table({"u1": [3], "u2": [1, 4]}), A, B)
