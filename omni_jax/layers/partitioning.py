"""Where activations live on a mesh: the one helper for constraints, and the striped order of long sequences.

Layers name logical axes only. The caller sets a mesh and a rule table around tracing (`omni_jax/sharding/scope.py`);
without them everything here does nothing.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from omni_jax.errors import ShardingError

# The logical axis of a sequence that is split for context parallelism.
LENGTH = "length"
# The width of a matrix at the moment of its product; "embed" is that of the matrix at rest.
WIDTH_IN_USE = "embed_in_use"


def mesh_axes(name: str, size: int | None = None) -> tuple[str, ...]:
    """Mesh axes, longer than one, that split the logical axis `name`; none where they do not divide `size`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    axes = dict(nn.get_logical_axis_rules()).get(name) or ()
    axes = tuple(axis for axis in ((axes,) if isinstance(axes, str) else axes) if mesh.shape[axis] > 1)
    return axes if size is None or size % parts(axes) == 0 else ()


def parts(axes: tuple[str, ...]) -> int:
    """Number of devices along `axes` of the current mesh."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)


def spec(names: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """The split of an activation. Axes that do not divide stay whole: padding costs more than it saves."""
    split = [mesh_axes(name, size) if name else () for name, size in zip(names, shape, strict=True)]
    return PartitionSpec(*(axes or None for axes in split))


def constrain(x: Array, *names: str | None) -> Array:
    """Fixes where an activation lives. One name for each axis; None leaves an axis whole."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(names, x.shape))


def in_use(parameter: Array, axes: tuple[str | None, ...]) -> Array:
    """A parameter as its layer uses it: in training gathered along its width, over which it is split to save memory.

    Without this the partitioner may keep the split and pass partial products around, many times the traffic. Its
    gradient goes back to where the parameter lives, summed on the way.
    """
    return constrain(parameter, *(WIDTH_IN_USE if axis == "embed" else axis for axis in axes))


def everywhere(tree: Any) -> Any:
    """Whole on every device, so that every host can read it."""
    return jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), tree)


def over_mesh(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function` on each device's own part; plain where there is no mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def summed(x: Array, axes: tuple[str, ...]) -> Array:
    """Inside `over_mesh`: the sum over the devices along `axes`; of none, x itself, as in all of these."""
    return jax.lax.psum(x, axes) if axes else x


def highest(x: Array, axes: tuple[str, ...]) -> Array:
    """Inside `over_mesh`: the maximum over the devices along `axes`."""
    return jax.lax.pmax(x, axes) if axes else x


def gather(x: Array, axes: tuple[str, ...], *, axis: int) -> Array:
    """Inside `over_mesh`: the parts of all devices along `axes`, laid end to end."""
    return jax.lax.all_gather(x, axes, axis=axis, tiled=True) if axes else x


def index_along(axes: tuple[str, ...]) -> Array | int:
    """Inside `over_mesh`: this device's number along `axes`."""
    return jax.lax.axis_index(axes) if axes else 0


def stripe(x: Array, axis: int) -> Array:
    """Deals a sequence to the devices of the context axis so that causal attention costs each of them the same.

    The sequence is cut into 2c chunks; device i of c holds chunks i and 2c - 1 - i (as in Llama 3's context
    parallelism, arXiv:2407.21783, section 3.3.2). Without context parallelism the order stays as it is.

        c = 2:   │ 0 │ 1 ║ 2 │ 3 │   ->   │ 0 │ 3 ║ 1 │ 2 │
    """
    return _exchange(x, axis, _to_stripes)


def unstripe(x: Array, axis: int) -> Array:
    """The order of a sequence before `stripe`."""
    return _exchange(x, axis, _from_stripes)


def natural_order(x: Array, axis: int, shards: int) -> Array:
    """A whole striped sequence, held on one device, in its own order."""
    if shards == 1:
        return x
    chunks = jnp.split(x, 2 * shards, axis=axis)
    return jnp.concatenate(chunks[0::2] + chunks[1::2][::-1], axis=axis)


def _exchange(x, axis, deal):
    axes = mesh_axes(LENGTH)
    shards = parts(axes)
    if shards == 1:
        return x
    if len(axes) > 1:
        raise ShardingError(f"The rules split `{LENGTH}` over {' and '.join(axes)}; give it one mesh axis.")
    if x.shape[axis] % (2 * shards):
        raise ShardingError(
            f"A sequence of {x.shape[axis]} does not divide over {' x '.join(axes)} = {shards}: it is dealt out in "
            f"{2 * shards} chunks. Choose a length that is a multiple of {2 * shards}, or a smaller axis."
        )
    place = PartitionSpec(*(axes if index == axis else None for index in range(x.ndim)))
    if x.ndim and axis != 0:
        place = PartitionSpec(mesh_axes("batch", x.shape[0]) or None, *place[1:])
    return over_mesh(lambda part: deal(part, axis, axes[0], shards), (place,), place)(x)


def _to_stripes(part, axis, name, shards):
    even, odd = jnp.split(part, 2, axis=axis)  # chunks 2i and 2i + 1 of device i
    home = [min(chunk, 2 * shards - 1 - chunk) for chunk in range(2 * shards)]
    even = jax.lax.ppermute(even, name, [(i, home[2 * i]) for i in range(shards)])
    odd = jax.lax.ppermute(odd, name, [(i, home[2 * i + 1]) for i in range(shards)])
    is_even = jax.lax.axis_index(name) % 2 == 0  # a device's low chunk has its own number
    return jnp.concatenate([jnp.where(is_even, even, odd), jnp.where(is_even, odd, even)], axis=axis)


def _from_stripes(part, axis, name, shards):
    low, high = jnp.split(part, 2, axis=axis)
    is_even = jax.lax.axis_index(name) % 2 == 0
    even, odd = jnp.where(is_even, low, high), jnp.where(is_even, high, low)
    home = [min(chunk, 2 * shards - 1 - chunk) for chunk in range(2 * shards)]
    even = jax.lax.ppermute(even, name, [(home[2 * i], i) for i in range(shards)])
    odd = jax.lax.ppermute(odd, name, [(home[2 * i + 1], i) for i in range(shards)])
    return jnp.concatenate([even, odd], axis=axis)
