"""Which mesh axis splits which logical axis: one table a workload.

Modules name the axes of their parameters (`embed`, `heads`, `mlp`, …); nothing else in the code base knows a mesh.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omni_jax.errors import ShardingError

# logical axis -> mesh axis; an axis that is not listed is not split
Rules = Mapping[str, str]

# Tensor parallelism: each device holds some heads and some of every feed-forward layer; a layer costs two sums over
# devices. Embedding rows and head columns are split over the vocabulary. The width is split over fsdp.
SAMPLING: Rules = {
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "embed": "fsdp",
}


# Axes that stay whole where they do not divide: few key-value heads are shared by many query heads.
MAY_STAY_WHOLE = frozenset({"kv_heads"})


def partition_spec(names: tuple[str | None, ...], rules: Rules) -> PartitionSpec:
    """The spec of a parameter whose axes have `names`. A mesh axis is used once, by the first axis that claims it."""
    used: set[str] = set()
    spec: list[str | None] = []
    for name in names:
        axis = rules.get(name) if name else None
        spec.append(axis if axis not in used else None)
        used |= {axis} if axis else set()
    return PartitionSpec(*spec)


def shardings(logical_axes: Mapping[str, Any], shapes: Mapping[str, Any], mesh: Mesh, rules: Rules) -> dict[str, Any]:
    """The sharding of every parameter.

    Args:
        logical_axes: nested dict of tuples of axis names.
        shapes: nested dict, alike, of things with a `shape`.

    Raises:
        ShardingError: axes that do not divide over their mesh axis; all are named, with the sizes that would fit.
    """
    wrong: list[str] = []

    def one(path, names, leaf):
        spec = partition_spec(names, rules)
        for place, (name, size, axis) in enumerate(zip(names, leaf.shape, spec)):
            parts = mesh.shape[axis] if axis else 1
            if size % parts and name in MAY_STAY_WHOLE:
                spec = PartitionSpec(*spec[:place], None, *spec[place + 1 :])
            elif size % parts:
                fits = ", ".join(str(n) for n in range(1, parts + 1) if size % n == 0)
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                wrong.append(
                    f"{where}: axis {name} of size {size} does not divide over {axis} = {parts} (fits: {fits})"
                )
        return NamedSharding(mesh, spec)

    out = jax.tree_util.tree_map_with_path(one, logical_axes, shapes, is_leaf=lambda node: isinstance(node, tuple))
    if wrong:
        raise ShardingError("Parameters do not divide over the mesh:\n  " + "\n  ".join(wrong))
    return out
