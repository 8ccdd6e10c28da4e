"""Rotary position embeddings: three-axis (TMRoPE) for the decoders, two-axis for the vision encoder.

Angles, cosines and sines are float32. Halves are rotated: channel j pairs with channel j + H/2.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

Tables = tuple[Float[Array, "... H"], Float[Array, "... H"]]  # [B, T, H], or packed [P, H]


def tmrope_tables(position_ids: Int[Array, "3 B T"], *, head_dim: int, sections: Sequence[int], theta: float) -> Tables:
    """Cosine and sine tables of TMRoPE (paper, section 2.2).

    The first `sections[0]` frequencies turn with the time id, the next with the height id, the last with the width
    id; contiguous blocks. Text has three equal ids, for which this is ordinary rotary embedding.
    """
    frequencies = jnp.asarray(theta ** (-np.arange(0, head_dim, 2) / head_dim), jnp.float32)
    axis = np.repeat(np.arange(3), sections)  # which id each frequency follows
    ids = position_ids.astype(jnp.float32)[axis]  # [H/2, B, T]
    angles = jnp.moveaxis(ids, 0, -1) * frequencies
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def axial_tables(coordinates: Int[Array, "*B P 2"], *, head_dim: int, theta: float) -> Tables:
    """Cosine and sine tables [P, H] of the vision encoder: the first quarter turns with the row, the next with
    the column, and the two quarters repeat.

    Row and column share one list of frequencies theta^(-2j / (H/2)).
    """
    half = head_dim // 2
    frequencies = jnp.asarray(theta ** (-np.arange(0, half, 2) / half), jnp.float32)
    angles = (coordinates.astype(jnp.float32)[..., None] * frequencies).reshape(*coordinates.shape[:-1], half)
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "... N H"], tables: Tables, *, dtype: DTypeLike | None = None) -> Float[Array, "... N H"]:
    """Turns each head of `x` by its position's angles; tables are broadcast over heads.

    The rotation runs in `dtype` (default: that of `x`) and the result has the dtype of `x`.
    """
    compute = dtype or x.dtype
    cos, sin = (table[..., None, :].astype(compute) for table in tables)
    wide = x.astype(compute)
    low, high = jnp.split(wide, 2, axis=-1)
    turned = jnp.concatenate([-high, low], axis=-1)
    return (wide * cos + turned * sin).astype(x.dtype)
