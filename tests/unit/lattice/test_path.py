from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdtrans.lattice.path import check_path, nodes, path_from_frames
from tests.unit.lattice.twins import every_path


def walk(path: list[int]) -> list[tuple[int, int]]:
    """Node coordinates by walking."""
    t = u = 0
    visited = []
    for token in path:
        visited.append((t, u))
        t, u = (t + 1, u) if token == 0 else (t, u + 1)
    return visited


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_nodes_are_cumulative_sums(path: list[int]) -> None:
    t_N, u_N = nodes(torch.tensor(path))
    assert list(zip(t_N.tolist(), u_N.tolist(), strict=True)) == walk(path)


def test_path_from_frames_rebuilds_every_path() -> None:
    paths = [torch.tensor(path) for path in every_path(4, [3, 3, 5])]
    labels = torch.stack([path[path != 0] for path in paths])
    frames = torch.stack([nodes(path)[0][path != 0] for path in paths])
    count = torch.full((len(paths),), 3)
    rebuilt = path_from_frames(labels, frames, torch.full((len(paths),), 4), count)
    assert torch.equal(rebuilt, torch.stack(paths))


def test_path_from_frames_ignores_padding() -> None:
    path = path_from_frames(
        torch.tensor([[7, 8, 9], [7, 5, 5]]),
        torch.tensor([[0, 0, 2], [1, 9, 9]]),
        torch.tensor([3, 2]),
        torch.tensor([3, 1]),
    )
    assert path[0].tolist() == [7, 8, 0, 0, 9, 0]
    assert path[1, :3].tolist() == [0, 7, 0]


def test_check_path_names_the_utterance_and_both_counts() -> None:
    check_path(torch.tensor([0, 4, 0]), 2, "utt1")
    with pytest.raises(ValueError, match="utt1: path has 2 blanks for 3 frames"):
        check_path(torch.tensor([0, 4, 0]), 3, "utt1")
    with pytest.raises(ValueError, match="ends with token 4"):
        check_path(torch.tensor([0, 0, 4]), 2, "utt1")
