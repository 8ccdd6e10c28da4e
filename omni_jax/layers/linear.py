"""Linear maps whose kernels name their axes."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from omni_jax.layers.partitioning import in_use
from omni_jax.layers.weight_only import is_quantised, matrix_product, rows_of


class Linear(nn.Module):
    """Contracts the last `len(in_shape)` axes of the input with the first axes of the kernel.

    Linear((D,), (N, H), ("embed", "heads", "head_dim")): [..., D] -> [..., N, H]
    Linear((N, H), (D,), ("heads", "head_dim", "embed")): [..., N, H] -> [..., D]
    """

    in_shape: Sequence[int]
    out_shape: Sequence[int]
    axes: Sequence[str]
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    stddev: float = 0.02

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        in_shape, out_shape, axes = tuple(self.in_shape), tuple(self.out_shape), tuple(self.axes)
        split = len(in_shape)
        initializer = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), axes)
        kernel = self.param("kernel", initializer, in_shape + out_shape, self.param_dtype)
        batch = x.shape[: x.ndim - split]
        if not is_quantised(kernel):
            kernel = in_use(kernel.astype(self.dtype), axes)
        # One plain matrix product: every back end has its fastest path for it, and the reshapes are free.
        out = matrix_product(x.reshape(*batch, math.prod(in_shape)), kernel, self.dtype)
        if self.use_bias:
            initializer = nn.with_logical_partitioning(nn.initializers.zeros, axes[split:])
            bias = self.param("bias", initializer, out_shape, self.param_dtype)
            out = out + bias.astype(self.dtype).reshape(-1)
        return out.reshape(*batch, *out_shape)


class Embed(nn.Module):
    """Token ids to rows of a table. Ids outside the table are the caller's to reject (JAX would clamp them)."""

    vocab_size: int
    width: int
    axes: Sequence[str] = ("vocab", "embed")
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    stddev: float = 0.02

    @nn.compact
    def __call__(self, ids: Array) -> Float[Array, "... D"]:
        initializer = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), tuple(self.axes))
        table = self.param("embedding", initializer, (self.vocab_size, self.width), self.param_dtype)
        if not is_quantised(table):
            table = in_use(table, tuple(self.axes))
        return rows_of(table, ids, self.dtype)
