"""Attention of new tokens over a long key-value cache: one function for decoding and for chunked prefill."""

import functools

import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Float, Int

from omni_jax.errors import ConfigError
from omni_jax.kernels.cache_attention.reference import cache_attention_reference
from omni_jax.kernels.target import current_target

IMPLEMENTATIONS = ("reference", "tpu", "gpu")


def cache_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "L B K S H"],
    value: Float[Array, "L B K S H"],
    layer: int | Int[Array, ""],
    start: Int[Array, "B"],
    *,
    implementation: str | None = None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Token t of row b attends to the slots 0 … start[b] + t of one layer of the cache. Scale is H^-0.5.

    Query head n reads key-value head n // (N / K). The caller has written the T new keys and values at slots
    start … start + T, and keeps start + T within S. Slots from there on may hold anything, NaN included. The kernels
    take the layer out of the stack block by block, so that no layer is copied, and load no block past start + T.
    Softmax and sums are float32; the result has the query's dtype. There is no gradient.

    Args:
        query: bfloat16 or float32; T is 1 to decode, up to about 1,024 in a chunk of a prompt.
        key, value: the whole cache; bfloat16 or float32, products run in this dtype.
        layer: index of the layer, may be traced.
        implementation: "reference", "tpu" or "gpu"; None picks the kernel of `current_target()`, and the reference
            where there is none.
        interpret: runs a kernel in Pallas' interpreter, on any device.

    Raises:
        ConfigError: shapes that do not fit each other, or an implementation that does not exist.
    """
    _check(query, key, value, start)
    if implementation is None:
        implementation = _pick(current_target().platform, key.shape[-1])
    layer, start = jnp.asarray(layer, jnp.int32), start.astype(jnp.int32)
    if query.size == 0:
        return query
    if implementation == "tpu":
        from omni_jax.kernels.cache_attention.tpu import cache_attention_tpu

        return cache_attention_tpu(query, key, value, layer, start, interpret=interpret)
    if implementation == "gpu":
        from omni_jax.kernels.cache_attention.gpu import cache_attention_gpu

        return cache_attention_gpu(query, key, value, layer, start, interpret=interpret)
    if implementation != "reference":
        raise ConfigError(f"Cache attention has no implementation {implementation!r}: give one of {IMPLEMENTATIONS}.")
    return cache_attention_reference(query, key, value, layer, start)


def _pick(platform: str, width: int) -> str:
    if platform == "gpu" or (platform == "tpu" and width % 64 == 0):
        return platform
    _say_once(f"Cache attention runs as plain jax.numpy: no kernel for {platform} with heads of {width}.")
    return "reference"


@functools.cache
def _say_once(message: str) -> None:
    logging.warning(message)


def _check(query, key, value, start) -> None:
    batch, _, heads, width = query.shape
    if key.shape != value.shape:
        raise ConfigError(f"The cache's keys {key.shape} and values {value.shape} differ in shape: make both alike.")
    if (key.shape[1], key.shape[4]) != (batch, width) or heads % key.shape[2]:
        raise ConfigError(
            f"A query [B, T, N, H] of {query.shape} does not fit a cache [L, B, K, S, H] of {key.shape}: "
            "B and H must be equal, and K must divide N."
        )
    if start.shape != (batch,):
        raise ConfigError(f"start has the shape {start.shape}: give one first slot for each of the {batch} rows.")
