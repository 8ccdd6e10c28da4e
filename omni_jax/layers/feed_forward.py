"""The two feed-forward forms: gated (SwiGLU) and plain (GELU)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from omni_jax.layers.linear import Linear


class GatedFeedForward(nn.Module):
    """down(silu(gate(x)) * up(x))"""

    width: int
    hidden: int
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    stddev: float = 0.02

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        common = dict(use_bias=self.use_bias, dtype=self.dtype, param_dtype=self.param_dtype, stddev=self.stddev)
        gate = Linear((self.width,), (self.hidden,), ("embed", "mlp"), name="gate", **common)(x)
        up = Linear((self.width,), (self.hidden,), ("embed", "mlp"), name="up", **common)(x)
        return Linear((self.hidden,), (self.width,), ("mlp", "embed"), name="down", **common)(jax.nn.silu(gate) * up)


class GeluFeedForward(nn.Module):
    """down(gelu(up(x))), with biases and the exact (erf) GELU."""

    width: int
    hidden: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    stddev: float = 0.02

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        common = dict(use_bias=True, dtype=self.dtype, param_dtype=self.param_dtype, stddev=self.stddev)
        up = Linear((self.width,), (self.hidden,), ("embed", "mlp"), name="up", **common)(x)
        up = jax.nn.gelu(up, approximate=False)
        return Linear((self.hidden,), (self.width,), ("mlp", "embed"), name="down", **common)(up)
