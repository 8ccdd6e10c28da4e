"""Weight-only int8: a matrix stored as int8 with one float32 scale for each output channel.

The matrix is converted to the compute dtype on its way into the product, so what is read from memory is int8, and the
product and its accumulation are what they were. The container is qwix's `QArray` (qvalue, scale).
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from omni_jax.kernels.target import current_target
from omni_jax.layers.partitioning import LENGTH, mesh_axes
from omni_jax.layers.rounded_products import product, rounded

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
        kernel = kernel.astype(dtype).reshape(width, -1)
        if current_target().platform != "cpu" or mesh_axes(LENGTH):
            return x.astype(dtype) @ kernel
        # With one axis of rows the kernel's gradient needs no transposed copy: both gradients take half the time
        # on a CPU. Where devices share a sequence, one axis would bring it together.
        rows = x.astype(dtype).reshape(-1, width)
        out = product(rows, kernel).astype(dtype) if rounded() else rows @ kernel
        return out.reshape(*x.shape[:-1], kernel.shape[-1])
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
    if math.prod(shape[first:]) < _LEAST or len(shape) - first < 2 or "conv_kernel" in axes:
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


def as_int8(name: str, axes: tuple[str | None, ...], parameter: Array, *, split: bool = False) -> Any:
    """A parameter as it is stored: quantised, or as it is where that is not worth it.

    Args:
        name, axes: see `contracted_axes`.
        split: value and scale stay on the devices of a mesh that the parameter is spread over.
    """
    contracted = contracted_axes(name, axes, parameter.shape)
    if contracted is None:
        return parameter
    store = partial(quantise, contracted=contracted)
    places = quantised_sharding(parameter.sharding, contracted, jax.eval_shape(store, parameter)) if split else None
    return jax.jit(store, out_shardings=places)(parameter)


def quantise_params(params: Mapping[str, Any], axes: Mapping[str, Any]) -> dict[str, Any]:
    """`as_int8` of every parameter of a nested dict that is already in memory, given their logical axes.

    `omni_jax/sampling/load.py` quantises one at a time while it reads.
    """

    def one(path, names, leaf):
        return as_int8(path[-1].key, names, leaf)

    return jax.tree_util.tree_map_with_path(one, axes, params, is_leaf=lambda node: isinstance(node, tuple))
