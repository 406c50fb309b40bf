"""Which frames of padded batches are real. Shapes: B utterances, T frames, of whatever length."""

from __future__ import annotations

import torch
from torch import Tensor


def real_frames(lengths_B: Tensor, longest: int) -> Tensor:
    """True (B, longest) where a frame belongs to its utterance, on the lengths' device."""
    return torch.arange(longest, device=lengths_B.device) < lengths_B[:, None]
