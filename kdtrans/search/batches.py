"""Batches for a search: larger than an encoder's.

Shapes: B utterances, T encoder frames, E encoder width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_FRAMES = 2**15
Cut = TypeVar("Cut")


def gathered(
    batches: Iterable[tuple[list[Cut], Tensor, Tensor]], max_frames: int = MAX_FRAMES
) -> Iterator[tuple[list[Cut], Tensor, Tensor]]:
    """Put encoded batches together: a search's step costs much the same for 200 utterances as for 20.

    Args:
        batches: cuts, encoder output (B, T, E) and lengths (B,).
        max_frames: most frames of encoder output, padding included; a single batch may have more.
    """
    waiting: list[tuple[list[Cut], Tensor, Tensor]] = []
    for batch in batches:
        longest = max(enc_BTE.shape[1] for _, enc_BTE, _ in [*waiting, batch])
        if waiting and longest * sum(len(cuts) for cuts, *_ in [*waiting, batch]) > max_frames:
            yield _together(waiting)
            waiting = []
        waiting.append(batch)
    if waiting:
        yield _together(waiting)


def _together(batches: list[tuple[list[Cut], Tensor, Tensor]]) -> tuple[list[Cut], Tensor, Tensor]:
    longest = max(enc_BTE.shape[1] for _, enc_BTE, _ in batches)
    enc_BTE = torch.cat([F.pad(enc_BTE, (0, 0, 0, longest - enc_BTE.shape[1])) for _, enc_BTE, _ in batches])
    return [cut for cuts, *_ in batches for cut in cuts], enc_BTE, torch.cat([lengths_B for *_, lengths_B in batches])
