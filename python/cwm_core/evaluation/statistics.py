"""Compute confidence intervals, and pass@k from samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000

# Quantiles of Student's t at (1 + CONFIDENCE) / 2, for 1, 2, ... degrees of freedom.
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

# Number of values drawn at a time: 32 MB of indices.
_BLOCK = 1 << 22


def wilson_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return Wilson's score interval of the share of successes (JASA 22, 1927).

    Raises:
        ValueError: Not 0 <= successes <= trials, or no trials.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"expected 0 <= successes <= trials and trials > 0, got {successes} of {trials}")
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    share = successes / trials
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    # At the ends, the exact result is 0 and 1, which rounding may miss.
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == trials else middle + half)


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return Student's interval of the mean of a few independent values, such as the scores of seeds.

    The confidence is `CONFIDENCE`. More than 31 values have the quantile of 31, which is slightly too large.

    Raises:
        ValueError: There are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"expected at least two values, got {len(values)}")
    quantile = _STUDENT[min(len(values) - 1, len(_STUDENT)) - 1]
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    middle = statistics.fmean(values)
    return middle - half, middle + half


def bootstrap_interval(groups: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of the means of `groups`.

    Values are drawn with replacement within each group, `RESAMPLES` times. The confidence is `CONFIDENCE`.

    Args:
        groups: Values of each group; with one group, the interval is that of its mean.
        seed: Seed of the draws.

    Raises:
        ValueError: A group is empty.
    """
    rng = np.random.default_rng(seed)
    means = np.mean([_resampled_means(np.asarray(group, np.float64), rng) for group in groups], axis=0)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Return the unbiased estimate of the probability that one of `k` samples is correct (arXiv 2107.03374).

    Args:
        samples: Number of samples.
        right: Number of correct samples.
        k: Number of samples to draw.

    Raises:
        ValueError: Not 0 <= right <= samples, or not 1 <= k <= samples.
    """
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k}: expected 1 <= k <= samples, got {right} correct of {samples} samples")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def _resampled_means(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    if not len(values):
        raise ValueError("a group has no values")
    rows = max(_BLOCK // len(values), 1)
    blocks = [
        values[rng.integers(len(values), size=(min(rows, RESAMPLES - start), len(values)))].mean(1)
        for start in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(blocks)
