"""Last in the folder: what has been counted. No other module's name may come after this one's."""

from __future__ import annotations

import pytest

from tests.hostile.judge import KINDS, Judge

LEAST = 200


def test_total(judge: Judge, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{judge.table()}")
    if not all(judge.counts[kind] for kind in KINDS):
        pytest.skip("only a part of the folder has run")
    assert sum(counts.total() for counts in judge.counts.values()) >= LEAST
