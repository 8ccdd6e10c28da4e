"""Loops in generated sequences."""

from collections.abc import Sequence

import numpy as np

LONGEST_CYCLE = 25  # codes: half a second


def is_looping(sequence: Sequence[int], span: int, longest: int = LONGEST_CYCLE) -> bool:
    """Whether the last `span` items are one cycle of at most `longest` (and at most span / 2) items, repeated.

    is_looping([9, 1, 2, 1, 2, 1, 2], span=6)  ->  True
    """
    if len(sequence) < span:
        return False
    tail = np.asarray(sequence[-span:])
    return any(np.array_equal(tail[period:], tail[:-period]) for period in range(1, min(longest, span // 2) + 1))
