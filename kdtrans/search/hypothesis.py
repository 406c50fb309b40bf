"""What a search returns, and the path that it stands for."""

from __future__ import annotations

from dataclasses import dataclass

from kdtrans.contracts import BLANK


@dataclass(frozen=True)
class Hypothesis:
    """One label sequence for one utterance, with its best path. Scores are natural logarithms.

    Attributes:
        tokens: the U labels.
        frames: the encoder frame (40 ms) on which each label is emitted; never decreases.
        logps: acoustic log-probability of each label at its node.
        score: am_score + lm_weight * lm_score; what hypotheses are ranked by.
        am_score: log-probability of the labels under the transducer, blanks included: of the one path (greedy, fsa),
            or summed over the paths that the search kept (beam).
        lm_score: log-probability of the labels under the language model, sentence end excluded; 0 without one.
    """

    tokens: list[int]
    frames: list[int]
    logps: list[float]
    score: float
    am_score: float
    lm_score: float


def path_of(hypothesis: Hypothesis, num_frames: int) -> list[int]:
    """The path with blanks: T blanks and U labels; a label stays on its frame and a blank moves to the next.

    Raises:
        ValueError: when a label lies outside the frames or before the label in front of it.
    """
    frames = hypothesis.frames
    if frames != sorted(frames) or (frames and not 0 <= frames[0] <= frames[-1] < num_frames):
        raise ValueError(f"labels on frames {frames} do not make a path over {num_frames} frames")
    path: list[int] = []
    blanks = 0
    for token, frame in zip(hypothesis.tokens, frames, strict=True):
        path += [BLANK] * (frame - blanks) + [token]
        blanks = frame
    return path + [BLANK] * (num_frames - blanks)
