"""Interval attention in plain jax.numpy: what the kernels are held to, and what runs where there is no kernel."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_MASKED = -1e30


def interval_attention_reference(
    query: Float[Array, "T N H"],
    key: Float[Array, "S K H"],
    value: Float[Array, "S K H"],
    start: Int[Array, " T"],
    stop: Int[Array, " T"],
) -> Float[Array, "T N H"]:
    """Softmax attention of query i over the keys start[i] <= j < stop[i]; see `interval_attention`.

    Holds all scores at once: memory is N * T * S float32.
    """
    length, heads, width = query.shape
    keys, kv_heads = key.shape[:2]
    grouped = query.reshape(length, kv_heads, heads // kv_heads, width)
    scores = jnp.einsum("tkgh,skh->kgts", grouped, key, preferred_element_type=jnp.float32) * width**-0.5
    index = jnp.arange(keys)
    mask = (start[:, None] <= index) & (index < stop[:, None])
    scores = jnp.where(mask, scores, _MASKED)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True)) * mask
    total = weights.sum(axis=-1, keepdims=True)
    weights = (weights / jnp.where(total > 0, total, 1)).astype(value.dtype)
    out = jnp.einsum("kgts,skh->tkgh", weights, value, preferred_element_type=jnp.float32)
    return out.reshape(length, heads, width).astype(query.dtype)
