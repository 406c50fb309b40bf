"""A log-mel spectrogram as bytes, for pictures: numpy only.

Shapes: S samples, F frames, N points of the FFT, M mel bands.
"""

from __future__ import annotations

import numpy as np

WINDOW_S, SHIFT_S = 0.025, 0.010
BANDS = 64
LOWEST_HZ = 60.0
RANGE_DB = 70.0  # what lies further below the loudest is white


def log_mel_bytes(samples_S: np.ndarray, rate: int) -> np.ndarray:
    """Log-mel energies of Hann windows of 25 ms every 10 ms, as brightness.

    Args:
        samples_S: one channel.
        rate: samples a second.

    Returns:
        (F, M) uint8, lowest band first: 255 = the loudest of this audio, 0 = RANGE_DB or more below it.
    """
    window, shift = round(WINDOW_S * rate), round(SHIFT_S * rate)
    padded = np.pad(samples_S.astype(np.float64), window // 2)  # frame f is centred on f * SHIFT_S
    frames_FN = np.lib.stride_tricks.sliding_window_view(padded, window)[::shift]
    points = 1 << (window - 1).bit_length()
    power_FN = np.abs(np.fft.rfft(frames_FN * np.hanning(window), points)) ** 2
    energy_FM = power_FN @ mel_filters(points, rate).T
    decibel_FM = 10 * np.log10(np.maximum(energy_FM, 1e-10))
    shown_FM = 1 + (decibel_FM - decibel_FM.max()) / RANGE_DB
    return np.round(255 * shown_FM.clip(0, 1)).astype(np.uint8)


def mel_filters(points: int, rate: int) -> np.ndarray:
    """Triangular filters (M, points // 2 + 1), evenly spaced on the mel scale (O'Shaughnessy), each of sum 1."""
    highest = 2595 * np.log10(1 + rate / 2 / 700)
    lowest = 2595 * np.log10(1 + LOWEST_HZ / 700)
    corners = 700 * (10 ** (np.linspace(lowest, highest, BANDS + 2) / 2595) - 1)
    hertz = np.arange(points // 2 + 1) * rate / points
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    filters = np.minimum((hertz - low) / (centre - low), (high - hertz) / (high - centre)).clip(0)
    # The lowest bands are narrower than a point of the FFT: each takes its nearest point at least.
    nearest = np.abs(hertz - centre).argmin(1)
    filters[np.arange(BANDS), nearest] = np.maximum(filters[np.arange(BANDS), nearest], 1e-3)
    return filters / filters.sum(1, keepdims=True)
