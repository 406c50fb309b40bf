"""Which pseudo-labelled targets are fit to train on; decided when they are read, so that no change dumps anew.

No torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kdtrans.config import FilterConfig

if TYPE_CHECKING:
    from kdtrans.targets.store import TargetRow


def unfit(row: TargetRow, seconds: float, filters: FilterConfig, labels_per_second: float | None = None) -> str | None:
    """Why a hypothesis is left out, or None if it is fit.

    Args:
        row: what the index says of it.
        seconds: duration of the audio.
        filters: the limits.
        labels_per_second: median of the labelled speech; needed with filters.max_length_ratio.
    """
    if row.num_labels == 0:
        return "empty pseudo text"
    if row.num_frames < filters.min_frames_per_label * row.num_labels:
        return "too few frames a label"
    # In the index's precision, so that a value of exactly the limit keeps it.
    if np.float32(row.confidence) < np.float32(filters.min_confidence):
        return "low confidence"
    if np.float32(row.repetition) > np.float32(filters.max_repetition):
        return "repeated labels"
    if filters.max_length_ratio is not None and labels_per_second is not None:
        ratio = row.num_labels / seconds / labels_per_second
        if max(ratio, 1 / ratio) > filters.max_length_ratio:
            return "unusual length"
    return None


def repetition(labels: np.ndarray) -> float:
    """Share of labels that repeat the label before them: hallucinated loops score high."""
    return float((labels[1:] == labels[:-1]).mean()) if len(labels) > 1 else 0.0
