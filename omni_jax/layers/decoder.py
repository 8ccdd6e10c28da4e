"""The Qwen2.5 decoder that the Thinker and the Talker share: pre-norm, grouped queries, TMRoPE, SwiGLU.

The canonical layout stacks the layers on a leading axis and scans over them (`nn.scan`). For sampling on a CPU the
same layers can run unrolled, each with its own parameters: XLA's CPU back end copies a layer's weights out of the
stack at every step of a scan, which was measured to make a decode step two to three times slower. `unroll_params`
turns the canonical parameters into that form; nothing on disk or in training ever has it.
"""

import operator
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from omni_jax.config import TalkerConfig, TextConfig
from omni_jax.kernels.target import current_target
from omni_jax.layers.attention import attend
from omni_jax.layers.feed_forward import GatedFeedForward
from omni_jax.layers.interval_attention import attend_intervals, causal_bounds
from omni_jax.layers.kv_cache import KVCache
from omni_jax.layers.linear import Linear
from omni_jax.layers.norms import RMSNorm
from omni_jax.layers.partitioning import LENGTH, constrain, over_mesh, spec, stripe, unstripe
from omni_jax.layers.remat import rematerialised
from omni_jax.layers.rotary import Tables, rotate, tmrope_tables
from omni_jax.layers.rounded_products import unroll


class SelfAttention(nn.Module):
    """Causal grouped-query attention over a cache, or over the given sequence when there is none.

    `seen` is what each query sees: without a cache, bounds (start, stop); with one, the mask of `attend` on a CPU.
    """

    config: TextConfig | TalkerConfig
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x, cache: KVCache | None, layer, tables: Tables, seen, start):
        config = self.config
        width, heads, kv_heads, head_dim = (
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        common = dict(dtype=self.dtype, param_dtype=self.param_dtype, stddev=config.initializer_range)
        into = dict(use_bias=True, **common)
        query = Linear((width,), (heads, head_dim), ("embed", "heads", "head_dim"), name="query", **into)(x)
        key = Linear((width,), (kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), name="key", **into)(x)
        value = Linear((width,), (kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), name="value", **into)(x)
        query, key = rotate(query, tables), rotate(key, tables)
        if cache is None:
            out = attend_intervals(query, key, value, *seen, striped=True)
        else:
            cache = cache.write(layer, key, value, start)
            out = _attend_to_cache(query, cache, layer, seen, start)
        out = Linear((heads, head_dim), (width,), ("heads", "head_dim", "embed"), name="out", **common)(out)
        return out, cache


class DecoderLayer(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x)). The carry is (x, cache)."""

    config: TextConfig | TalkerConfig
    dtype: DTypeLike
    param_dtype: DTypeLike
    trace: bool = False

    @nn.compact
    def __call__(self, carry, layer, tables: Tables, seen, start):
        x, cache = carry
        config, kinds = self.config, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = dict(epsilon=config.rms_norm_eps, param_dtype=self.param_dtype)
        out, cache = SelfAttention(config, name="attention", **kinds)(
            RMSNorm(name="attention_norm", **norm)(x), cache, layer, tables, seen, start
        )
        x = constrain(x + out, "batch", LENGTH, None)
        feed_forward = GatedFeedForward(
            config.hidden_size, config.intermediate_size, stddev=config.initializer_range, name="mlp", **kinds
        )
        x = constrain(x + feed_forward(RMSNorm(name="mlp_norm", **norm)(x)), "batch", LENGTH, None)
        return (x, cache), (x if self.trace else None)


class Decoder(nn.Module):
    """All layers and the final norm."""

    config: TextConfig | TalkerConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    unrolled: bool = False
    remat: str = "none"
    trace: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        position_ids: Int[Array, "3 B T"],
        cache: KVCache | None = None,
        start: Int[Array, "B"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None, Float[Array, "L B T D"] | None]:
        """Runs the decoder over new positions.

        Args:
            x: input embeddings.
            position_ids: time, height and width ids.
            cache: where keys and values go; token t of row b is written at slot start[b] + t and sees all slots up
                to its own. Without a cache the sequence attends to itself, within equal `segment_ids` if given.

        Returns:
            Hidden states after the final norm, the new cache, and each layer's output when `trace` is set.
        """
        config, length = self.config, x.shape[1]
        x = constrain(x.astype(self.dtype), "batch", LENGTH, None)
        if cache is None:
            seen = causal_bounds(segment_ids, batch=x.shape[0], length=length)
            x, position_ids, *seen = stripe(x, 1), stripe(position_ids, 2), *(stripe(bound, 1) for bound in seen)
        else:
            cache = cache.on_mesh()
            seen = _cache_mask(length, cache, start)
        tables = tmrope_tables(
            position_ids, head_dim=config.head_dim, sections=config.mrope_section, theta=config.rope_theta
        )
        tables = tuple(table.astype(self.dtype) for table in tables)

        layer = rematerialised(DecoderLayer, self.remat)
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype, trace=self.trace)
        if self.unrolled:
            outputs = []
            for index in range(config.num_hidden_layers):
                step = layer(config, name=f"layers_{index}", **options)
                (x, cache), out = step((x, cache), index, tables, seen, start)
                outputs.append(out)
            outputs = jnp.stack(outputs) if self.trace else None
        else:
            scanned = nn.scan(
                layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0,) + (nn.broadcast,) * 3,
                length=config.num_hidden_layers,
                unroll=unroll(),
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(config, name="layers", **options)
            (x, cache), outputs = scanned((x, cache), jnp.arange(config.num_hidden_layers), tables, seen, start)
        x = RMSNorm(epsilon=config.rms_norm_eps, param_dtype=self.param_dtype, name="final_norm")(x)
        if cache is None:
            x = unstripe(x, 1)
        return x, cache, outputs


def _cache_mask(length: int, cache: KVCache, start: Int[Array, "B"]) -> Bool[Array, "B T S"] | None:
    """Slots that each token sees; None where a kernel works that out by itself."""
    if current_target().platform != "cpu" and not isinstance(cache.key, tuple):
        return None
    own = start[:, None] + jnp.arange(length)
    return jnp.arange(cache.length)[None, None, :] <= own[:, :, None]


def _attend_to_cache(
    query: Float[Array, "B T N H"], cache: KVCache, layer: int | Array, mask: Any, start: Int[Array, "B"]
) -> Float[Array, "B T N H"]:
    """Token t of row b sees the slots up to its own, start[b] + t."""
    if mask is not None:
        keys, values = (x.astype(query.dtype) for x in cache.read(layer))
        return attend(query, keys, values, mask, start + query.shape[1])
    # Read where it lies: a layer cut out of the stack would be a copy, each token, of what attention must read anyway.
    from omni_jax.kernels.cache_attention import cache_attention

    stack = spec((None, "batch", "kv_heads", None, None), cache.key.shape)
    rows = PartitionSpec(stack[1], None, stack[2], None)
    own = PartitionSpec(stack[1])
    attention = over_mesh(cache_attention, (rows, stack, stack, PartitionSpec(), own), rows)
    return attention(query, cache.key, cache.value, jnp.asarray(layer), start)


def unroll_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Canonical parameters of a model around a `Decoder` to those of its unrolled form.

    `layers` becomes `layers_0`, `layers_1`, …. The input is left as it is: drop it
    afterwards to get its memory back.
    """
    out = {name: value for name, value in params.items() if name != "layers"}
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    for index in range(count):
        out[f"layers_{index}"] = jax.tree.map(operator.itemgetter(index), params["layers"])
    return out
