"""Arrays that are only shapes, and where they lie: what programs are compiled from."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omni_jax.compilation.workloads import Options
from omni_jax.config import OmniConfig
from omni_jax.errors import ShardingError
from omni_jax.layers.weight_only import contracted_axes, quantise, quantised_sharding
from omni_jax.models.logical_axes import logical_axes
from omni_jax.sharding.mesh import make_mesh
from omni_jax.sharding.rules import SAMPLING, shardings
from omni_jax.sharding.scope import on_mesh

Tree = Any


def array(shape: Sequence[int], dtype: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype), sharding=sharding)


def everywhere(tree: Tree, mesh: Mesh) -> Tree:
    """The same shapes, whole on every device."""
    return placed(tree, lambda leaf: PartitionSpec(), mesh)


def placed(tree: Tree, spec: Callable[[Any], PartitionSpec], mesh: Mesh) -> Tree:
    """The same shapes, where `spec` says."""
    return jax.tree.map(lambda leaf: array(leaf.shape, leaf.dtype, NamedSharding(mesh, spec(leaf))), tree)


def cache_spec(mesh: Mesh) -> Callable[[Any], PartitionSpec]:
    """Caches [L, B, K, S, H]: rows over data, heads over tensor, where they divide; as `KVCache.on_mesh` does."""

    def spec(leaf: Any) -> PartitionSpec:
        if len(leaf.shape) != 5:
            return PartitionSpec()
        rows, heads = leaf.shape[1] % mesh.shape["data"] == 0, leaf.shape[2] % mesh.shape["tensor"] == 0
        return PartitionSpec(None, "data" if rows else None, "tensor" if heads else None)

    return spec


def parameters(
    config: OmniConfig,
    components: Sequence[str],
    mesh: Mesh,
    dtype: Any,
    *,
    split: bool = True,
    weights: str | None = None,
) -> dict[str, Tree]:
    """Parameters of the components, split by the rules of sampling, or whole on every device; stored as `weights` says.

    Raises:
        ShardingError: an axis does not divide over the mesh.
    """
    names, shapes = logical_axes(config, components)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), shapes)
    if not split:
        return everywhere(shapes, mesh)
    places = shardings(names, shapes, mesh, SAMPLING)

    def one(path: Any, axes: tuple[str | None, ...], leaf: Any, place: NamedSharding) -> Any:
        contracted = contracted_axes(path[-1].key, axes, leaf.shape) if weights == "int8" else None
        if contracted is None:
            return array(leaf.shape, leaf.dtype, place)
        stored = jax.eval_shape(lambda x: quantise(x, contracted), leaf)
        to = quantised_sharding(place, contracted, stored)
        return jax.tree.map(lambda part, sharding: array(part.shape, part.dtype, sharding), stored, to)

    is_names = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree_util.tree_map_with_path(one, names, shapes, places, is_leaf=is_names)


def outputs(function: Any, *args: Any, mesh: Mesh | None, **kwargs: Any) -> Tree:
    """Shapes of what a jitted function returns; `kwargs` are its static arguments."""
    with on_mesh(mesh, SAMPLING):
        return jax.eval_shape(partial(getattr(function, "jitted", function), **kwargs), *args)


def sampling_mesh(options: Options, components: Sequence[str]) -> Mesh:
    """The mesh that was asked for; else as much tensor parallelism as all axes divide by, then rows of the batch over
    data, and the width over fsdp.

    Raises:
        ShardingError: the mesh does not fit the devices or the model.
    """
    if options.mesh is not None:
        return make_mesh(options.devices, **options.mesh)
    names, shapes = logical_axes(options.config, components)
    count, last = len(options.devices), None
    for tensor in (n for n in range(count, 0, -1) if count % n == 0):
        data = math.gcd(options.rows, count // tensor)
        for sizes in ({"data": data, "fsdp": count // tensor // data}, {"data": count // tensor}):
            try:
                mesh = make_mesh(options.devices, tensor=tensor, **sizes)
                shardings(names, shapes, mesh, SAMPLING)
                return mesh
            except ShardingError as error:
                last = error
    raise last


def device_bytes(tree: Tree) -> int:
    """Bytes of a nested structure of placed shapes on one device, without padding to tiles."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def by_kind(resident: Mapping[str, Tree]) -> dict[str, int]:
    """Bytes of each kind on one device."""
    return {kind: device_bytes(tree) for kind, tree in resident.items()}
