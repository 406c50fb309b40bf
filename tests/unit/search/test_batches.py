"""Encoded batches put together: the same utterances, in order, with their frames."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrans.search.batches import gathered


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), max_size=6), st.integers(1, 60))
def test_nothing_is_lost(lengths: list[list[int]], max_frames: int) -> None:
    batches = []
    for n, batch in enumerate(lengths):
        enc_BTE = torch.randn(len(batch), max(batch), 2)
        batches.append(([f"{n}-{b}" for b in range(len(batch))], enc_BTE, torch.tensor(batch)))
    found = list(gathered(batches, max_frames))
    expected = [(cut, enc[:n]) for cuts, enc, frames in batches for cut, enc, n in zip(cuts, enc, frames, strict=True)]
    got = [(cut, enc[:n]) for cuts, enc, frames in found for cut, enc, n in zip(cuts, enc, frames, strict=True)]
    assert [cut for cut, _ in got] == [cut for cut, _ in expected]
    assert all(torch.equal(mine, theirs) for (_, mine), (_, theirs) in zip(got, expected, strict=True))
    single = max((enc.shape[0] * enc.shape[1] for _, enc, _ in batches), default=0)
    assert all(enc.shape[0] * enc.shape[1] <= max(max_frames, single) for _, enc, _ in found)
