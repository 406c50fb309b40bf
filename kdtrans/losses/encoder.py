"""Distillation of the encoder, beside the path (beyond the paper; the hints of FitNets, arXiv 1412.6550):

    L_encoder = 1/B sum_b sum_t 1/J || A h_student(t + tau) - n(h_teacher(t)) ||^2

with A a linear map that is learnt and then left behind, and n to mean 0 and variance 1 over a frame's J numbers, so
that the weight does not hang on a teacher's scale. A path is peaky: most of its nodes are near-certain blanks, which
say little about the sounds of their frames. The encoder's output says it on every frame.

Shapes: B utterances, T frames, J the teacher's joiner width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtrans.models.padding import real_frames


def encoder_loss(
    ours_BTJ: Tensor, theirs_BTJ: Tensor, our_frames_B: Tensor, their_frames_B: Tensor, shift: int = 0
) -> Tensor:
    """Squared distance of a student's encoder output from its teacher's, over the frames that both have.

    Args:
        ours_BTJ: the student's, mapped to the teacher's width.
        theirs_BTJ: the teacher's projected encoder output, as its joiner takes it; a constant. It may have more or
            fewer frames.
        our_frames_B: frames of each utterance, the student's.
        their_frames_B: the teacher's.
        shift: tau, frames by which the student lags behind; at least 0.

    Returns:
        The distance of each utterance (B,): the mean over J, summed over frames.
    """
    num_frames = max(min(ours_BTJ.shape[1] - shift, theirs_BTJ.shape[1]), 0)
    ours_BTJ, theirs_BTJ = ours_BTJ[:, shift : shift + num_frames], theirs_BTJ[:, :num_frames].float()
    distance_BT = (ours_BTJ - F.layer_norm(theirs_BTJ, theirs_BTJ.shape[2:])).square().mean(2)
    common_B = torch.minimum(our_frames_B - shift, their_frames_B)
    real_BT = real_frames(common_B, num_frames)
    return distance_BT.masked_fill(~real_BT, 0.0).sum(1)
