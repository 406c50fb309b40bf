"""Which pseudo-labelled targets are fit to train on; decided when they are read, so that no change dumps anew.

No torch.
"""

from __future__ import annotations

import numpy as np

from kdtrans.config import FilterConfig


def unfit(
    labels: np.ndarray,
    num_frames: int,
    confidence: float,
    seconds: float,
    filters: FilterConfig,
    labels_per_second: float | None = None,
) -> str | None:
    """Why a hypothesis is left out, or None if it is fit.

    Args:
        labels: its token ids (U,).
        num_frames: teacher frames of 40 ms.
        confidence: posterior of its path among those of its labels.
        seconds: duration of the audio.
        filters: the limits.
        labels_per_second: median of the labelled speech; needed with filters.max_length_ratio.
    """
    if len(labels) == 0:
        return "empty pseudo text"
    if num_frames < filters.min_frames_per_label * len(labels):
        return "too few frames a label"
    if confidence < filters.min_confidence:
        return "low confidence"
    if repetition(labels) > filters.max_repetition:
        return "repeated labels"
    if filters.max_length_ratio is not None and labels_per_second is not None:
        ratio = len(labels) / seconds / labels_per_second
        if max(ratio, 1 / ratio) > filters.max_length_ratio:
            return "unusual length"
    return None


def repetition(labels: np.ndarray) -> float:
    """Share of labels that repeat the label before them: hallucinated loops score high."""
    return float((labels[1:] == labels[:-1]).mean()) if len(labels) > 1 else 0.0
