"""Chance from one seed: each item draws from a generator of its own, whatever the number of others."""

import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def generator(seed: int, name: str, index: int = 0) -> np.random.Generator:
    """The generator of item `index` of the group `name`."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), index])


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    return items[int(rng.integers(len(items)))]
