"""Cache attention in plain jax.numpy: what the kernels are held to, and what runs where there is none."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_MASKED = -1e30


def cache_attention_reference(
    query: Float[Array, "B T N H"],
    key: Float[Array, "L B K S H"],
    value: Float[Array, "L B K S H"],
    layer: Int[Array, ""],
    start: Int[Array, "B"],
) -> Float[Array, "B T N H"]:
    """See `cache_attention`. Reads all S slots and holds all scores at once: B * N * T * S float32."""
    batch, length, heads, width = query.shape
    key, value = (jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in (key, value))
    kv_heads, slots = key.shape[1:3]
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, width)
    scores = jnp.einsum("btkgh,bksh->bkgts", grouped.astype(key.dtype), key, preferred_element_type=jnp.float32)
    slot, own = jnp.arange(slots), start[:, None] + jnp.arange(length)
    seen = (slot <= own[:, :, None])[:, None, None]
    weights = jax.nn.softmax(jnp.where(seen, scores * width**-0.5, _MASKED), axis=-1)
    # zero times NaN is NaN: what lies past the used part must not be multiplied
    used = (slot < start[:, None] + length)[:, None, :, None]
    value = jnp.where(used, value, 0)
    out = jnp.einsum("bkgts,bksh->btkgh", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return out.reshape(query.shape).astype(query.dtype)
