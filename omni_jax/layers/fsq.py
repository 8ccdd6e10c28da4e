"""Finite scalar quantisation: every channel is rounded to one of a few levels (Mentzer et al., arXiv:2309.15505).

A code is the number that the channels' levels spell, the first channel counting least. There is no codebook to learn,
and so none that could collapse.

    levels (8, 8, 8, 16)   ->   8,192 codes;   code 0 is (-4, -4, -4, -8), code 1 is (-3, -4, -4, -8)
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from omni_jax.errors import ConfigError

_MARGIN = 1e-3  # keeps the outermost levels within reach of tanh


def check_levels(levels: tuple[int, ...]) -> tuple[int, ...]:
    """The levels. Raises ConfigError for a channel of fewer than two, which could say nothing."""
    if min(levels, default=0) < 2:
        raise ConfigError(f"levels = {list(levels)}: a channel needs two levels at least. Leave out the others.")
    return levels


def quantise(x: Float[Array, "... K"], levels: tuple[int, ...]) -> Float[Array, "... K"]:
    """Nearest levels, as numbers in [-1, 1]; gradients pass as if nothing had been rounded. Float32.

    An even number of levels lies unevenly about zero, -L/2 … L/2 - 1: a shift by half a step gives each the same
    share, and keeps 0 at 0. Two levels, -1 and 0, are told apart by the sign of x: no shift could keep 0 in the middle
    of the upper one.

    Raises:
        ConfigError: a channel of fewer than two levels.
    """
    count = np.asarray(check_levels(levels))
    half = (count - 1) * (1 - _MARGIN) / 2
    offset = np.where(count % 2 == 0, 0.5, 0.0)
    shift = np.arctanh(np.where(count > 2, offset / half, 0.0))
    bounded = jnp.tanh(x.astype(jnp.float32) + shift) * half - offset
    rounded = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
    return rounded / (count // 2)


def codes_of(quantised: Float[Array, "... K"], levels: tuple[int, ...]) -> Int[Array, "..."]:
    """The code of each vector that `quantise` gave."""
    count = np.asarray(levels)
    digits = jnp.round(quantised * (count // 2)).astype(jnp.int32) + count // 2
    return jnp.sum(digits * _place_values(levels), axis=-1)


def vectors_of(codes: Int[Array, "..."], levels: tuple[int, ...]) -> Float[Array, "... K"]:
    """The vector of each code, as `quantise` gives it."""
    count = np.asarray(levels)
    digits = codes[..., None] // _place_values(levels) % count
    return (digits - count // 2) / (count // 2).astype(np.float32)


def _place_values(levels: tuple[int, ...]) -> np.ndarray:
    return np.asarray([math.prod(levels[:i]) for i in range(len(levels))], np.int32)
