"""One transformer layer of the DiT: attention within blocks, and a feed-forward, modulated by the time of the flow."""

import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from omni_jax.config import DiTConfig
from omni_jax.layers.block_attention import block_attention, rotate_first_head
from omni_jax.layers.linear import Linear
from omni_jax.layers.norms import layer_norm

NORM_EPSILON = 1e-6


@flax.struct.dataclass
class Past:
    """Keys (before rotation) and values of a block, as the layers saw them in one evaluation. R = B · branches rows."""

    key: Float[Array, "*S R F N H"]
    value: Float[Array, "*S R F N H"]


def torch_stddev(fan_in: int) -> float:
    """Of the weights of a linear layer, as PyTorch draws them."""
    return (3 * fan_in) ** -0.5


def layer_windows(config: DiTConfig) -> tuple[list[tuple[int, int]], Int[np.ndarray, " L"]]:
    """The distinct (look_back, look_ahead) of the model, in blocks, and which of them each layer uses."""
    windows = [
        (int(i in config.look_backward_layers), int(i in config.look_ahead_layers))
        for i in range(config.num_hidden_layers)
    ]
    distinct = sorted(set(windows))
    return distinct, np.asarray([distinct.index(window) for window in windows], np.int32)


def modulated_norm(x: Float[Array, "B T D"], shift: jax.Array, scale: jax.Array) -> Float[Array, "B T D"]:
    """Layer norm without parameters of its own, then (1 + scale) and shift."""
    return layer_norm(x, epsilon=NORM_EPSILON) * (1 + scale) + shift


class BlockAttention(nn.Module):
    """Projections around `block_attention`; `window` is the number of one of the model's window shapes.

    With `past`, the block before x is given by its keys and values, `rotary` and `valid` begin with it, and the keys
    and values of the first block of x are returned as the past of the next.
    """

    config: DiTConfig
    dtype: Any
    training: bool = False

    @nn.compact
    def __call__(self, x, window, rotary, valid, past=None):
        c = self.config
        heads = (c.num_attention_heads, c.head_dim)
        common = dict(use_bias=True, dtype=self.dtype)

        def project(name):
            axes, stddev = ("embed", "heads", "head_dim"), torch_stddev(c.hidden_size)
            return Linear((c.hidden_size,), heads, axes, stddev=stddev, name=name, **common)(x)

        query, key, value = project("query"), project("key"), project("value")
        record = None
        if past is not None:
            record = Past(key[:, : c.block_size], value[:, : c.block_size])
            # The past asks nothing: its queries are there to be dropped.
            query = jnp.pad(query, ((0, 0), (c.block_size, 0), (0, 0), (0, 0)))
            key = jnp.concatenate([past.key.astype(key.dtype), key], axis=1)
            value = jnp.concatenate([past.value.astype(value.dtype), value], axis=1)
        query, key = rotate_first_head(query, *rotary), rotate_first_head(key, *rotary)

        def attend(look_back, look_ahead):
            return lambda *qkv: block_attention(
                *qkv, valid, block_size=c.block_size, look_back=look_back, look_ahead=look_ahead
            )

        attended = jax.lax.switch(window, [attend(*shape) for shape in layer_windows(c)[0]], query, key, value)
        attended = attended if past is None else attended[:, c.block_size :]
        axes, stddev = ("heads", "head_dim", "embed"), torch_stddev(math.prod(heads))
        out = Linear(heads, (c.hidden_size,), axes, stddev=stddev, name="out", **common)(attended)
        return nn.Dropout(c.dropout)(out, deterministic=not self.training), record


class FeedForward(nn.Module):
    """down(gelu(up(x))), with the tanh form of GELU."""

    config: DiTConfig
    dtype: Any
    training: bool = False

    @nn.compact
    def __call__(self, x):
        width, hidden = self.config.hidden_size, self.config.ff_mult * self.config.hidden_size
        common = dict(use_bias=True, dtype=self.dtype)
        up = Linear((width,), (hidden,), ("embed", "mlp"), stddev=torch_stddev(width), name="up", **common)(x)
        up = nn.Dropout(self.config.dropout)(jax.nn.gelu(up, approximate=True), deterministic=not self.training)
        return Linear((hidden,), (width,), ("mlp", "embed"), stddev=torch_stddev(hidden), name="down", **common)(up)


class Layer(nn.Module):
    """Attention and feed-forward, each modulated and gated. `modulation` is [B or 1, 6, D], float32."""

    config: DiTConfig
    dtype: Any
    trace: bool
    training: bool = False

    @nn.compact
    def __call__(self, x, modulation, window, rotary, valid, past):
        parts = self.config, self.dtype, self.training
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = jnp.split(modulation, 6, axis=1)
        h = modulated_norm(x, shift_a, scale_a)
        attended, record = BlockAttention(*parts, name="attention")(h, window, rotary, valid, past)
        x = x + gate_a * attended
        h = modulated_norm(x, shift_f, scale_f)
        x = x + gate_f * FeedForward(*parts, name="mlp")(h)
        return x, (x if self.trace else None, record)
