"""Bootstrap over utterances: the interval of a WER, and of the difference between two systems.

Source: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004.
Utterances are drawn with replacement; both systems of a pair are judged on the same draws, so that what makes an
utterance hard for both cancels out. Of a system with several seeds, an utterance's errors are their mean over the
seeds: the WER is then the mean of the seeds' WERs, and systems with different numbers of seeds stay comparable.

Shapes: N utterances, R resamples, S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
SEED = 1
TAILS = (2.5, 97.5)  # percentiles that bound 95 %

Integers = NDArray[np.int64]
Errors = NDArray[np.int64] | NDArray[np.float64]  # means over seeds are no whole numbers


@dataclass(frozen=True)
class Comparison:
    """A system against a baseline on the same utterances. Rates in %, `low` and `high` bound 95 %."""

    difference: float  # WER of the system minus WER of the baseline, points; negative is better
    difference_low: float
    difference_high: float
    werr: float | None  # relative reduction of the baseline's WER, %; None when the baseline makes no error
    werr_low: float | None
    werr_high: float | None
    p: float  # two-sided, of the hypothesis that both are equally good

    @property
    def significant(self) -> bool:
        """Whether the interval of the difference lies on one side of 0."""
        return not self.difference_low <= 0 <= self.difference_high

    def to_json(self) -> dict[str, float | None]:
        return asdict(self)


def mean_errors(errors: Sequence[Integers]) -> NDArray[np.float64]:
    """Mean errors of each utterance over the seeds of a system.

    Args:
        errors: S counts of errors, (N,) each, of the same utterances in the same order.

    Returns:
        (N,); times S they are the errors of all seeds together.

    Raises:
        ValueError: when there is no seed, or the lengths differ.
    """
    lengths = sorted({len(counts) for counts in errors})
    if len(lengths) != 1:
        raise ValueError(f"errors of {lengths} utterances: every seed must be scored on the same ones")
    return np.stack(list(errors)).mean(0)


def wer_interval(words: Integers, errors: Errors) -> tuple[float, float]:
    """95 % percentile interval of the WER, in %.

    Args:
        words: reference length of each utterance, (N,).
        errors: errors of each utterance, a mean over seeds or of one, (N,).

    Raises:
        ValueError: when there is no utterance or no word of reference.
    """
    _check(words, errors)
    low, high = np.percentile(_rates(errors, words, draws(len(words))), TAILS)
    return float(low), float(high)


def compare(words: Integers, baseline_errors: Errors, system_errors: Errors) -> Comparison:
    """Paired bootstrap of a system against a baseline.

    Args:
        words: reference length of each utterance, (N,).
        baseline_errors: errors of the baseline on each utterance, (N,).
        system_errors: errors of the system on the same utterances in the same order, (N,).

    Raises:
        ValueError: when there is no utterance, no word of reference, or the lengths differ.
    """
    _check(words, baseline_errors, system_errors)
    draws_RN = draws(len(words))
    baseline_R, system_R = (_rates(errors, words, draws_RN) for errors in (baseline_errors, system_errors))
    difference_R = system_R - baseline_R
    low, high = np.percentile(difference_R, TAILS)
    # +1: the p value of a finite number of resamples is never nought (Davison and Hinkley 1997, 4.11).
    tail = min(int((difference_R <= 0).sum()), int((difference_R >= 0).sum()))
    total = words.sum()
    baseline, system = 100 * baseline_errors.sum() / total, 100 * system_errors.sum() / total
    p = min(1.0, 2 * (tail + 1) / (RESAMPLES + 1))
    werr: tuple[float, float, float] | tuple[None, None, None] = (None, None, None)
    if baseline > 0:
        possible = baseline_R > 0  # a draw without an error of the baseline has no relative reduction
        bounds = np.percentile(100 * (1 - system_R[possible] / baseline_R[possible]), TAILS)
        werr = (float(100 * (1 - system / baseline)), float(bounds[0]), float(bounds[1]))
    return Comparison(float(system - baseline), float(low), float(high), werr[0], werr[1], werr[2], p)


def draws(utterances: int) -> Integers:
    """The resamples: R rows of N utterance numbers, (R, N), the same for the same N."""
    return np.random.default_rng(SEED).integers(0, utterances, size=(RESAMPLES, utterances))


def _rates(errors_N: Errors, words_N: Integers, draws_RN: Integers) -> NDArray[np.float64]:
    # A resample may hold nothing but empty references in a tiny test set: one word then, rather than a division by 0.
    return 100.0 * errors_N[draws_RN].sum(1) / np.maximum(words_N[draws_RN].sum(1), 1)


def _check(words: Integers, *errors: Errors) -> None:
    lengths = [len(counts) for counts in (words, *errors)]
    if len(set(lengths)) != 1:
        raise ValueError(f"counts of different lengths {lengths}: every system must be scored on the same utterances")
    if not words.sum():
        raise ValueError("no word of reference: a bootstrap needs at least one utterance with text")
