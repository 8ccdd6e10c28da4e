"""Linear maps whose kernels name their axes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class Linear(nn.Module):
    """Contracts the last `len(in_shape)` axes of the input with the first axes of the kernel.

    Linear((D,), (N, H), ("embed", "heads", "head_dim")): [..., D] -> [..., N, H]
    Linear((N, H), (D,), ("heads", "head_dim", "embed")): [..., N, H] -> [..., D]

    With `transposed`, the kernel's output axes come first: see `transpose_kernels`.
    """

    in_shape: Sequence[int]
    out_shape: Sequence[int]
    axes: Sequence[str]
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    stddev: float = 0.02
    transposed: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        in_shape, out_shape, axes = tuple(self.in_shape), tuple(self.out_shape), tuple(self.axes)
        shape, names, split = in_shape + out_shape, axes, len(in_shape)
        if self.transposed:
            shape, names = out_shape + in_shape, axes[split:] + axes[:split]
        initializer = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), names)
        kernel = self.param("kernel", initializer, shape, self.param_dtype).astype(self.dtype)
        kernel = (
            kernel.reshape(-1, math.prod(in_shape)).T if self.transposed else kernel.reshape(math.prod(in_shape), -1)
        )
        batch = x.shape[: x.ndim - split]
        # One plain matrix product: every back end has its fastest path for it, and the reshapes are free.
        out = x.astype(self.dtype).reshape(*batch, math.prod(in_shape)) @ kernel
        if self.use_bias:
            initializer = nn.with_logical_partitioning(nn.initializers.zeros, axes[split:])
            bias = self.param("bias", initializer, out_shape, self.param_dtype)
            out = out + bias.astype(self.dtype).reshape(-1)
        return out.reshape(*batch, *out_shape)


def transpose_kernels(params: Mapping[str, Any], *, split: Callable[[str], int]) -> dict[str, Any]:
    """Puts the output axes of every kernel first, for modules with `transposed` set.

    Args:
        params: a tree of parameters; leaves that are not named `kernel` stay as they are.
        split: the number of input axes of the kernel of the module of a given name.
    """

    def visit(name: str, node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        out = {key: visit(key, value) for key, value in node.items()}
        if "kernel" in node:
            count, axes = split(name), range(node["kernel"].ndim)
            out["kernel"] = node["kernel"].transpose(*axes[count:], *axes[:count])
        return out

    return visit("", params)


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
        return table[ids].astype(self.dtype)
