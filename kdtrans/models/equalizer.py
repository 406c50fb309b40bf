"""Random equalisation: one recording sounds as if through many microphones, rooms and throats, and no frame moves.

(FilterAugment, Nam et al. 2022, arXiv 2110.03282, whose bands are drawn too; here their edges stand still.)

Shapes: B utterances, F frames, C mel channels, K knots.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtrans.models.features import LOG_MEL_SCALE
from kdtrans.models.padding import real_frames

KNOTS = 5  # evenly spread over the mel axis, so that the gain of neighbouring channels is alike, like a filter's
FEATURE_A_DB = math.log(10.0) / 10.0 / LOG_MEL_SCALE  # by which a log-mel feature grows with 1 dB


def equalize(features_BFC: Tensor, lengths_B: Tensor, widest_db: float) -> Tensor:
    """Add to each utterance a random gain for each frequency, the same on all frames.

    Time stays, so that the targets of the utterance as it was recorded remain its targets.
    Randomness comes from torch's global CPU generator on every device, so that a seed reproduces a run.

    Args:
        features_BFC: log-mel features, (B, F, C), zero beyond the lengths.
        lengths_B: (B,) frames.
        widest_db: the gain at each of KNOTS channels is drawn from -widest_db .. widest_db; between them it is a line.

    Returns:
        (B, F, C); still zero beyond the lengths.
    """
    gain_db_BK = widest_db * (2.0 * torch.rand(len(features_BFC), KNOTS) - 1.0)
    gain_db_BC = F.interpolate(gain_db_BK[:, None], features_BFC.shape[2], mode="linear", align_corners=True)[:, 0]
    gain_BC = (FEATURE_A_DB * gain_db_BC).to(features_BFC)
    return features_BFC + gain_BC[:, None] * real_frames(lengths_B, features_BFC.shape[1])[:, :, None]
