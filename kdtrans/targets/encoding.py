"""Which of a node's classes a shard stores, and with which precision.

Rounding costs a student most where it falsifies the tail: at a node that is certain of its class, an error of one step
in log p is many times the mass that all other classes share. So a node's log-probabilities are rounded down, what the
lower classes lose is given to the most probable one, and that one is rounded on a scale that grows finer towards
log p = 0. The tail keeps its mass (but for this last rounding), the order stays, and no node sums to more than 1.
Measured in docs/target-size.md.

Shapes: N nodes, K classes a node.
"""

from __future__ import annotations

import numpy as np

FIRST_BITS = 6  # of the mantissa of the most probable class's log-probability, as fp16 counts them (it has 10)


def encode(
    ids_NK: np.ndarray, logp_NK: np.ndarray, min_probability: float, logp_step: float
) -> tuple[np.ndarray, np.ndarray]:
    """What is stored of the most probable classes of each node.

    Args:
        ids_NK: the classes, most probable first.
        logp_NK: their log-probabilities, normalised over the full vocabulary, nats.
        min_probability: classes below it are left out, to be part of the tail; the first of a node stays. 0: none is.
        logp_step: log-probabilities are rounded down to multiples of it, nats, but for the first of a node, which takes
            what the others lose and keeps FIRST_BITS bits of its mantissa; 0: fp16's nearest.

    Returns:
        Ids (N, K) uint16 and log-probabilities (N, K) float16; where a class is left out, 0 and -inf.
    """
    logp_NK = logp_NK.astype(np.float64)
    is_kept_NK = np.exp(logp_NK) >= max(min_probability, np.finfo(np.float32).tiny)
    is_kept_NK[:, 0] = True
    stored_NK = np.where(is_kept_NK, _rounded(logp_NK, is_kept_NK, logp_step) if logp_step else logp_NK, -np.inf)
    return np.where(is_kept_NK, ids_NK, 0).astype(np.uint16), stored_NK.astype(np.float16)


def _rounded(logp_NK: np.ndarray, is_kept_NK: np.ndarray, step: float) -> np.ndarray:
    rounded_NK = np.floor(logp_NK / step) * step
    lost_NK = np.where(is_kept_NK, np.exp(logp_NK) - np.exp(rounded_NK), 0.0)
    first_N = np.log(np.exp(logp_NK[:, 0]) + lost_NK[:, 1:].sum(1))
    # Teachers' sums exceed 1 by fp32's rounding; and log p = -0.0 would be a second name of 0 in the files' statistics.
    mantissa_N, exponent_N = np.frexp(np.where(first_N < 0, first_N, 0.0))
    scale = 2.0 ** (FIRST_BITS + 1)  # frexp's mantissa lies in [1/2, 1)
    first_N = np.ldexp(np.floor(mantissa_N * scale) / scale, exponent_N)
    # Of classes as good as equal the first must stay the first: a step may be finer than its mantissa.
    second_N = np.where(is_kept_NK, rounded_NK, -np.inf)[:, 1:2].max(1, initial=-np.inf)
    rounded_NK[:, 0] = np.maximum(first_N, second_N)
    return rounded_NK
