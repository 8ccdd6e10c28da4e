"""Weight-only int8: a matrix stored as int8 with one float32 scale for each output channel.

The matrix is converted to the compute dtype on its way into the product, so what is read from memory is int8, and the
product and its accumulation are what they were. The container is qwix's `QArray` (qvalue, scale).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

# Smaller matrices are not worth it: together they are a thousandth of a model.
_LEAST = 1 << 10


def is_quantised(parameter: Any) -> bool:
    """Whether a parameter is a `QArray`; told without importing qwix, which takes a second."""
    return hasattr(parameter, "qvalue")


def matrix_product(x: Float[Array, "... I"], kernel: Any, dtype: DTypeLike) -> Float[Array, "... O"]:
    """x @ kernel in `dtype`; axes of the kernel are grouped into one input and one output axis.

    Args:
        kernel: an array, or a `QArray` with scales along output axes only.
    """
    width = x.shape[-1]
    if not is_quantised(kernel):
        return x.astype(dtype) @ kernel.astype(dtype).reshape(width, -1)
    out = x.astype(dtype) @ kernel.qvalue.reshape(width, -1).astype(dtype)
    return (out.astype(jnp.float32) * kernel.scale.reshape(-1)).astype(dtype)


def rows_of(table: Any, ids: Int[Array, "..."], dtype: DTypeLike) -> Float[Array, "... D"]:
    """Rows of an embedding table, an array or a `QArray` with one scale a row."""
    if not is_quantised(table):
        return table[ids].astype(dtype)
    return (table.qvalue[ids].astype(jnp.float32) * table.scale[ids]).astype(dtype)


def contracted_axes(name: str, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Axes that a parameter's scale has none along, or None for one that stays as it is.

    Args:
        name: last part of its path.
        axes: its logical axes; those of a stacked parameter begin with "layers".
    """
    first = 1 if axes and axes[0] == "layers" else 0
    size = 1
    for length in shape[first:]:
        size *= length
    if size < _LEAST or len(shape) - first < 2 or "conv_kernel" in axes:
        return None
    if name == "embedding":
        return (len(shape) - 1,)
    if name != "kernel":
        return None
    return (first, first + 1) if axes[first] == "heads" else (first,)


def quantise(parameter: Array, contracted: tuple[int, ...]) -> Any:
    """A `QArray` of symmetric int8 with one float32 scale for each place along the other axes."""
    import qwix

    kept = [axis for axis in range(parameter.ndim) if axis not in contracted]
    return qwix.quantize(parameter.astype(jnp.float32), jnp.int8, channelwise_axes=kept)


def quantised_sharding(sharding: NamedSharding, contracted: tuple[int, ...], like: Any) -> Any:
    """Where value and scale live, for a parameter that lived as `sharding`; `like` is the `QArray`, maybe of shapes."""
    spec = tuple(sharding.spec) + (None,) * (len(like.shape) - len(sharding.spec))
    scale = PartitionSpec(*(None if axis in contracted else part for axis, part in enumerate(spec)))
    return type(like)(sharding, NamedSharding(sharding.mesh, scale), None, like.qtype)


def quantise_params(params: Mapping[str, Any], axes: Mapping[str, Any]) -> dict[str, Any]:
    """Quantises every large matrix of a nested dict of parameters, given their logical axes.

    For parameters that are already in memory; `omni_jax/sampling/load.py` quantises one at a time while it reads.
    """

    def one(path, names, leaf):
        contracted = contracted_axes(path[-1].key, names, leaf.shape)
        return leaf if contracted is None else jax.jit(quantise, static_argnums=1)(leaf, contracted)

    return jax.tree_util.tree_map_with_path(one, axes, params, is_leaf=lambda node: isinstance(node, tuple))
