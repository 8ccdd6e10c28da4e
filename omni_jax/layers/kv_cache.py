"""The key-value cache of a decoder: explicit state, passed in and returned.

Keys and values are [B, K, S, H] a layer. The layers are either stacked on a leading axis (one array, for a scanned
decoder) or held apart (a tuple, for an unrolled decoder): see `omni_jax/layers/decoder.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from omni_jax.layers.partitioning import constrain

# Rows up to this many are written one by one, in place; more rows as one scatter.
_ROW_BY_ROW = 8


@struct.dataclass
class KVCache:
    key: Any  # [L, B, K, S, H], or L arrays [B, K, S, H]
    value: Any

    @property
    def length(self) -> int:
        """Number of slots S."""
        return (self.key[0] if isinstance(self.key, tuple) else self.key).shape[-2]

    def on_mesh(self) -> "KVCache":
        """Rows and heads on the devices that compute them."""
        return jax.tree.map(lambda x: constrain(x, *(None,) * (x.ndim - 4), "batch", "kv_heads", None, None), self)

    def write(
        self, layer: int | Array, key: Float[Array, "B T K H"], value: Float[Array, "B T K H"], start: Int[Array, "B"]
    ) -> "KVCache":
        """Puts T new entries of one layer at slots start…start+T of each row. The caller keeps them inside S."""
        key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
        if isinstance(self.key, tuple):
            keys, values = list(self.key), list(self.value)
            keys[layer] = _write_rows(keys[layer][None], key, start, 0)[0]
            values[layer] = _write_rows(values[layer][None], value, start, 0)[0]
            return KVCache(tuple(keys), tuple(values))
        return KVCache(_write_rows(self.key, key, start, layer), _write_rows(self.value, value, start, layer))

    def read(self, layer: int | Array) -> tuple[Array, Array]:
        """Keys and values [B, K, S, H] of one layer."""
        if isinstance(self.key, tuple):
            return self.key[layer], self.value[layer]
        return tuple(jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in (self.key, self.value))


def empty_cache(
    *, layers: int, batch: int, kv_heads: int, length: int, head_dim: int, dtype: DTypeLike, unrolled: bool = False
) -> KVCache:
    """A cache of zeros."""
    shape = (batch, kv_heads, length, head_dim)
    if unrolled:
        return KVCache(*(tuple(jnp.zeros(shape, dtype) for _ in range(layers)) for _ in range(2)))
    return KVCache(jnp.zeros((layers, *shape), dtype), jnp.zeros((layers, *shape), dtype))


def _write_rows(stack: Array, new: Array, start: Array, layer: int | Array) -> Array:
    """stack [L, B, K, S, H], new [B, K, T, H]."""
    new = new.astype(stack.dtype)
    if stack.shape[1] <= _ROW_BY_ROW:
        for row in range(stack.shape[1]):
            at = (layer, row, 0, start[row], 0)
            stack = jax.lax.dynamic_update_slice(stack, new[row][None, None], at)
        return stack
    slots = start[:, None] + jnp.arange(new.shape[2])
    # advanced indices at both ends of a slice put the indexed axes first: [B, T, K, H]
    return stack.at[layer, jnp.arange(stack.shape[1])[:, None], :, slots].set(new.swapaxes(1, 2))
