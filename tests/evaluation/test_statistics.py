"""Intervals by the bootstrap."""

import numpy as np
import pytest

from omni_jax.evaluation.metrics import accuracy
from omni_jax.evaluation.statistics import difference, interval

TOTAL = accuracy().total


def right(share, count):
    return np.array([(float(i < share * count), 1.0) for i in range(count)])


def test_interval_of_a_share_is_that_of_the_binomial():
    low, high = interval(right(0.5, 400), TOTAL)
    spread = 1.96 * np.sqrt(0.25 / 400)
    assert low == pytest.approx(0.5 - spread, abs=0.01) and high == pytest.approx(0.5 + spread, abs=0.01)
    assert interval(right(1.0, 20), TOTAL) == (1, 1)
    assert interval(right(0.5, 400), TOTAL) == (low, high)  # of a fixed seed


def test_the_interval_of_a_difference_knows_that_lines_are_the_same():
    before, after = right(0.5, 200), right(0.6, 200)
    value, (low, high) = difference(before, after, TOTAL)
    assert value == pytest.approx(0.1)
    assert 0.05 < low < 0.1 < high < 0.15  # 20 lines of 200 changed, all for the better
    shuffled = after[np.random.default_rng(0).permutation(200)]
    _, (wider, _) = difference(before, shuffled, TOTAL)
    assert wider < low
