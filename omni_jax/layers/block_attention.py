"""Attention within blocks of fixed size and their neighbours, and the rotary embedding of its first head.

Only the keys inside the window are touched, so time and memory are linear in length.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omni_jax.kernels.target import current_target
from omni_jax.layers.interval_attention import attend_intervals


def rotary_angles(
    positions: Int[Array, "#B T"], head_dim: int, theta: float
) -> tuple[Float[Array, "#B T h"], Float[Array, "#B T h"]]:
    """Float32 cosines and sines of the head_dim / 2 rotation angles of each position."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate_first_head(
    x: Float[Array, "B T N H"], cos: Float[Array, "#B T h"], sin: Float[Array, "#B T h"]
) -> Float[Array, "B T N H"]:
    """Rotate the pairs (0,1), (2,3), … of head 0. The published model was trained with its other heads unrotated."""
    head = x[..., 0, :].astype(jnp.float32)
    even, odd = head[..., 0::2], head[..., 1::2]
    rotated = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(head.shape)
    return jnp.concatenate([rotated[..., None, :].astype(x.dtype), x[..., 1:, :]], axis=-2)


def block_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T N H"],
    value: Float[Array, "B T N H"],
    valid: Bool[Array, "B T"],
    *,
    block_size: int,
    look_back: int,
    look_ahead: int,
) -> Float[Array, "B T N H"]:
    """Attention of every block to itself, `look_back` blocks before and `look_ahead` after it.

    T is a multiple of `block_size`; keys that are not `valid` are not seen. Those that are form one run in each row.
    Softmax in float32.

        block b, looking back 1:   keys │ b-1 │ b │     block 0:  │ none │ 0 │
    """
    batch, time, _, head_dim = query.shape
    blocks = time // block_size
    if current_target().platform != "cpu":
        block = jnp.arange(time) // block_size
        first, last = jnp.argmax(valid, axis=1), time - jnp.argmax(valid[:, ::-1], axis=1)
        start = jnp.maximum((block - look_back) * block_size, first[:, None])
        stop = jnp.minimum((block + look_ahead + 1) * block_size, jnp.where(valid.any(axis=1), last, 0)[:, None])
        return attend_intervals(
            query, key, value, start, jnp.maximum(stop, start), reach=(1 + max(look_back, look_ahead)) * block_size
        )

    def window(x):
        """[B, T, ...] -> [B, blocks, keys of the window, ...]; beyond the ends zero, or False."""
        x = x.reshape(batch, blocks, block_size, *x.shape[2:])
        padded = jnp.pad(x, ((0, 0), (look_back, look_ahead)) + ((0, 0),) * (x.ndim - 2))
        seen = [padded[:, start : start + blocks] for start in range(look_back + look_ahead + 1)]
        return jnp.concatenate(seen, axis=2)

    query = query.reshape(batch, blocks, block_size, *query.shape[2:])
    scores = jnp.einsum("bcqnh,bcknh->bcnqk", query, window(key), preferred_element_type=jnp.float32)
    # A finite floor: a query without any key (padding) must not turn into NaN.
    scores = jnp.where(window(valid)[:, :, None, None, :], scores * head_dim**-0.5, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bcnqk,bcknh->bcqnh", weights, window(value)).reshape(batch, time, *value.shape[2:])
