"""The vectorised bootstrap against a loop over resamples, and what must hold of intervals and comparisons."""

from __future__ import annotations

import numpy as np
import pytest

from kdtrans.scoring.bootstrap import RESAMPLES, compare, draws, mean_errors, wer_interval

RNG = np.random.default_rng(7)
WORDS = RNG.integers(1, 20, 50)
BASELINE = RNG.binomial(WORDS, 0.3)
BETTER = RNG.binomial(BASELINE, 0.5)


def slow_rates(errors: np.ndarray) -> list[float]:
    """WER of every resample, utterance by utterance."""
    rates = []
    for draw in draws(len(WORDS)):
        wrong = total = 0
        for utterance in draw:
            wrong += int(errors[utterance])
            total += int(WORDS[utterance])
        rates.append(100 * wrong / total)
    return rates


def test_interval_matches_the_loop() -> None:
    expected = np.percentile(slow_rates(BASELINE), [2.5, 97.5])
    assert np.allclose(wer_interval(WORDS, BASELINE), expected)
    assert wer_interval(WORDS, BASELINE) == wer_interval(WORDS, BASELINE)


def test_comparison_matches_the_loop() -> None:
    base, better = np.array(slow_rates(BASELINE)), np.array(slow_rates(BETTER))
    found = compare(WORDS, BASELINE, BETTER)
    assert found.werr == pytest.approx(100 * (1 - BETTER.sum() / BASELINE.sum()))
    assert (found.werr_low, found.werr_high) == pytest.approx(
        tuple(np.percentile(100 * (1 - better / base), [2.5, 97.5]))
    )
    assert (found.difference_low, found.difference_high) == pytest.approx(
        tuple(np.percentile(better - base, [2.5, 97.5]))
    )
    assert found.difference == pytest.approx(100 * (BETTER.sum() - BASELINE.sum()) / WORDS.sum())


def test_interval_covers_the_true_rate_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        errors = np.random.default_rng(seed).binomial(WORDS, 0.2)
        low, high = wer_interval(WORDS, errors)
        covered += low <= 20.0 <= high
    assert covered >= 86  # 95 expected; binomial 0.1 % quantile of an interval that is a little narrow at N = 50


def test_p_value() -> None:
    assert compare(WORDS, BASELINE, BETTER).p == pytest.approx(2 / (RESAMPLES + 1))
    assert compare(WORDS, BASELINE, BASELINE).p == 1.0
    shuffled = np.where(np.arange(50) % 2, BASELINE, np.minimum(RNG.binomial(WORDS, 0.3), WORDS))
    assert compare(WORDS, BASELINE, shuffled).p > 0.01


def test_swapping_the_systems_swaps_the_signs() -> None:
    one, other = compare(WORDS, BASELINE, BETTER), compare(WORDS, BETTER, BASELINE)
    assert one.difference == pytest.approx(-other.difference)
    assert one.difference_low == pytest.approx(-other.difference_high)
    assert one.p == other.p


def test_perfect_baseline_has_no_relative_reduction() -> None:
    found = compare(WORDS, np.zeros_like(WORDS), BETTER)
    assert found.werr is found.werr_low is found.werr_high is None
    assert found.difference > 0


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no word of reference"):
        wer_interval(np.zeros(3, dtype=int), np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="different lengths"):
        compare(WORDS, BASELINE, BETTER[:-1])


def test_seeds_pool_as_a_loop_over_all_of_them() -> None:
    """Twin: errors and words of every drawn utterance of every seed, one after the other."""
    seeds = [RNG.binomial(WORDS, chance) for chance in (0.2, 0.25, 0.3)]
    rates = []
    for draw in draws(len(WORDS)):
        wrong = total = 0
        for errors in seeds:
            for utterance in draw:
                wrong += int(errors[utterance])
                total += int(WORDS[utterance])
        rates.append(100 * wrong / total)
    assert wer_interval(WORDS, mean_errors(seeds)) == pytest.approx(tuple(np.percentile(rates, [2.5, 97.5])))
    against_one = compare(WORDS, BASELINE, mean_errors(seeds))
    differences = np.array(rates) - slow_rates(BASELINE)
    assert (against_one.difference_low, against_one.difference_high) == pytest.approx(
        tuple(np.percentile(differences, [2.5, 97.5]))
    )
    mean_wer = np.mean([100 * errors.sum() / WORDS.sum() for errors in seeds])
    assert against_one.difference == pytest.approx(mean_wer - 100 * BASELINE.sum() / WORDS.sum())
    # Repeating a seed changes nothing, and a system is not better than itself.
    assert compare(WORDS, BASELINE, mean_errors([BETTER] * 3)) == compare(WORDS, BASELINE, BETTER)
    assert not compare(WORDS, mean_errors(seeds), mean_errors(seeds)).significant
    with pytest.raises(ValueError, match=r"errors of \[49, 50\] utterances"):
        mean_errors([BETTER, BETTER[:-1]])
