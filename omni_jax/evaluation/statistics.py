"""Figures of a metric with what chance leaves open: bootstrap intervals over answers."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float

RESAMPLES = 1000
_CHUNK = 50
_SIDES = (2.5, 97.5)  # percentiles of a 95 % interval

Total = Callable[[np.ndarray], float]


def interval(stats: Float[np.ndarray, "N k"], total: Total, *, seed: int = 0) -> tuple[float, float]:
    """The middle 95 % of figures of as many answers, drawn with replacement (Efron's percentile bootstrap)."""
    figures = [total(sums) for sums in _resampled(stats, seed)]
    low, high = np.percentile(figures, _SIDES)
    return float(low), float(high)


def difference(
    before: Float[np.ndarray, "N k"], after: Float[np.ndarray, "N k"], total: Total, *, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """after - before on the same lines, and its 95 % interval: lines are drawn in pairs."""
    value = total(after.sum(0)) - total(before.sum(0))
    both = np.concatenate([before, after], axis=1)
    width = before.shape[1]
    figures = [total(sums[width:]) - total(sums[:width]) for sums in _resampled(both, seed)]
    low, high = np.percentile(figures, _SIDES)
    return float(value), (float(low), float(high))


def _resampled(stats: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Sums [k] of answers drawn with replacement, RESAMPLES times."""
    rng, count = np.random.default_rng(seed), len(stats)
    for start in range(0, RESAMPLES, _CHUNK):
        times = rng.multinomial(count, np.full(count, 1 / count), size=min(_CHUNK, RESAMPLES - start))
        yield from times @ stats
