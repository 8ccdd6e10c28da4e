"""Root-mean-square and layer normalisation. Statistics in float32 whatever the compute dtype."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def rms_norm(x: Float[Array, "*B D"], scale: Float[Array, "D"], *, epsilon: float) -> Float[Array, "*B D"]:
    """x / rms(x) * scale. The quotient is cast to x's dtype before scaling, as the published weights expect."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    return wide.astype(x.dtype) * scale.astype(x.dtype)


def layer_norm(
    x: Float[Array, "*B D"],
    scale: Float[Array, "D"] | None = None,
    bias: Float[Array, "D"] | None = None,
    *,
    epsilon: float,
) -> Float[Array, "*B D"]:
    """(x - mean) / std, then the affine part where one is given."""
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide - mean
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    if scale is not None:
        wide = wide * scale.astype(jnp.float32)
    if bias is not None:
        wide = wide + bias.astype(jnp.float32)
    return wide.astype(x.dtype)


class RMSNorm(nn.Module):
    epsilon: float = 1e-6
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = self.param(
            "scale", nn.with_logical_partitioning(nn.initializers.ones, ("norm",)), (x.shape[-1],), self.param_dtype
        )
        return rms_norm(x, scale, epsilon=self.epsilon)


class LayerNorm(nn.Module):
    epsilon: float = 1e-5
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        shape, partition = (x.shape[-1],), nn.with_logical_partitioning
        scale = self.param("scale", partition(nn.initializers.ones, ("norm",)), shape, self.param_dtype)
        bias = self.param("bias", partition(nn.initializers.zeros, ("norm",)), shape, self.param_dtype)
        return layer_norm(x, scale, bias, epsilon=self.epsilon)
