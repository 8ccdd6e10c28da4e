"""Which mesh axes split which logical axis: one table a workload.

Modules name the axes of their parameters (`embed`, `heads`, `mlp`, …) and of their activations (`batch`, `length`,
`heads`, …); nothing else in the code base knows a mesh. The same tables serve one chip, a slice and many slices: a
mesh axis of size one splits nothing.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omni_jax.errors import ShardingError

# logical axis -> mesh axis, or several, the first being the outermost; an axis that is not listed is not split
Rules = Mapping[str, str | tuple[str, ...]]

# Tensor parallelism: each device holds some heads and some of every feed-forward layer; a layer costs two sums over
# devices. Embedding rows and head columns are split over the vocabulary. The width is split over fsdp: a step has too
# few tokens to pay for gathering weights, so partial products are summed instead. Rows of the batch, and of the
# caches, go to data.
SAMPLING: Rules = {
    "batch": "data",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "embed": "fsdp",
    "embed_in_use": "fsdp",
}

# Training: batch rows over data and fsdp; parameters, gradients and optimiser state are split over the devices of
# fsdp and context (ZeRO-3, arXiv:1910.02054), and each layer's weights are gathered when their turn comes. Between
# slices only `data` should run: its one sum of gradients a step is what a slow network can bear.
TRAINING: Rules = {
    "batch": ("data", "fsdp"),
    "length": "context",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "embed": ("fsdp", "context"),
}

# Axes that stay whole where they do not divide: few key-value heads are shared by many query heads.
MAY_STAY_WHOLE = frozenset({"kv_heads"})


def partition_spec(names: tuple[str | None, ...], rules: Rules) -> PartitionSpec:
    """The spec of a parameter whose axes have `names`. A mesh axis is used once, by the first axis that claims it."""
    used: set[str] = set()
    spec: list[str | tuple[str, ...] | None] = []
    for name in names:
        axes = rules.get(name, ()) if name else ()
        free = tuple(axis for axis in ((axes,) if isinstance(axes, str) else axes) if axis not in used)
        spec.append(free[0] if len(free) == 1 else free or None)
        used |= set(free)
    return PartitionSpec(*spec)


def parts(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
    """Number of pieces that one entry of a spec cuts an axis into."""
    count = 1
    for axis in (axes,) if isinstance(axes, str) else axes or ():
        count *= mesh.shape[axis]
    return count


def shardings(logical_axes: Mapping[str, Any], shapes: Mapping[str, Any], mesh: Mesh, rules: Rules) -> dict[str, Any]:
    """The sharding of every parameter.

    Args:
        logical_axes: nested dict of tuples of axis names.
        shapes: nested dict, alike, of things with a `shape`.

    Raises:
        ShardingError: axes that do not divide over their mesh axes; all are named, with the sizes that would fit.
    """
    wrong: list[str] = []

    def one(path, names, leaf):
        spec = partition_spec(names, rules)
        for place, (name, size, axes) in enumerate(zip(names, leaf.shape, spec)):
            count = parts(mesh, axes)
            if size % count and name in MAY_STAY_WHOLE:
                spec = PartitionSpec(*spec[:place], None, *spec[place + 1 :])
            elif size % count:
                fits = ", ".join(str(n) for n in range(1, count + 1) if size % n == 0)
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                over = axes if isinstance(axes, str) else " x ".join(axes)
                wrong.append(
                    f"{where}: axis {name} of size {size} does not divide over {over} = {count} (fits: {fits})"
                )
        return NamedSharding(mesh, spec)

    out = jax.tree_util.tree_map_with_path(one, logical_axes, shapes, is_leaf=lambda node: isinstance(node, tuple))
    if wrong:
        raise ShardingError("Parameters do not divide over the mesh:\n  " + "\n  ".join(wrong))
    return out


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())
