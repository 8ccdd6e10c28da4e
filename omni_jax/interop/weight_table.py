"""What a weight table is: published tensor name <-> our parameter path, with a named, invertible transform.

A table is a list of `Entry`, read in both directions. Stacked layers are one entry:

    Entry("thinker.model.layers.{i}.self_attn.q_proj.weight", "thinker/layers/attention/query/kernel",
          heads_out(28), shape=(3584, 3584), layers=28)

stands for 28 published tensors of [3584, 3584] and for one parameter of [28, 3584, 28, 128].
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Transform:
    """A named change of layout of one tensor and its inverse. Both only move values, so they are exact."""

    name: str
    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]

    def jax_shape(self, torch_shape: Shape) -> Shape:
        """Our shape of a tensor whose published shape is `torch_shape`. Allocates nothing."""
        return self.to_jax(np.broadcast_to(np.int8(0), torch_shape)).shape


identity = Transform("identity", lambda x: x, lambda x: x)

# [out, in] <-> [in, out]
linear = Transform("linear", lambda x: x.T, lambda x: x.T)

# [out, in, k] <-> [k, in, out]
conv1d = Transform("conv1d", lambda x: x.transpose(2, 1, 0), lambda x: x.transpose(2, 1, 0))

# [in, out, k] <-> [k reversed, in, out]: a transposed convolution is a correlation with a dilated input and the
# kernel reversed, which is how `jax.lax.conv_general_dilated(lhs_dilation=...)` computes it.
conv_transpose1d = Transform(
    "conv_transpose1d", lambda x: x.transpose(2, 0, 1)[::-1], lambda x: x[::-1].transpose(1, 2, 0)
)


def heads_out(heads: int) -> Transform:
    """Query, key or value projection: [N*H, D] <-> [D, N, H]."""
    return Transform(
        f"heads_out({heads})",
        lambda x: x.T.reshape(x.shape[1], heads, x.shape[0] // heads),
        lambda x: x.reshape(x.shape[0], -1).T,
    )


def heads_in(heads: int) -> Transform:
    """Output projection of attention: [D, N*H] <-> [N, H, D]."""
    return Transform(
        f"heads_in({heads})",
        lambda x: x.T.reshape(heads, x.shape[1] // heads, x.shape[0]),
        lambda x: x.reshape(-1, x.shape[-1]).T,
    )


def heads_bias(heads: int) -> Transform:
    """Bias of a query, key or value projection: [N*H] <-> [N, H]."""
    return Transform(f"heads_bias({heads})", lambda x: x.reshape(heads, x.shape[0] // heads), lambda x: x.reshape(-1))


def patch_conv(channels: int, frames: int, side: int) -> Transform:
    """A convolution whose stride is its kernel, as a matrix: [D, C, frames, side, side] <-> [C*frames*side*side, D]."""
    return Transform(
        f"patch_conv({channels}, {frames}, {side})",
        lambda x: x.reshape(x.shape[0], -1).T,
        lambda x: x.T.reshape(x.shape[1], channels, frames, side, side),
    )


@dataclass(frozen=True)
class Entry:
    """One parameter of ours.

    Args:
        torch: published tensor name. `{i}` stands for the layer number when `layers` is given.
        path: our path, joined with "/"; its first part is the component.
        transform: change of layout of one layer's tensor.
        shape: published shape of one tensor.
        layers: number of layers stacked on the leading axis of our parameter, or None for a single tensor.
    """

    torch: str
    path: str
    transform: Transform
    shape: Shape
    layers: int | None = None

    def __post_init__(self):
        if ("{i}" in self.torch) != (self.layers is not None):
            raise ValueError(f"weight table: {self.torch}: a name has {{i}} exactly when `layers` is given")

    @property
    def component(self) -> str:
        return self.path.split("/", 1)[0]

    @property
    def torch_names(self) -> list[str]:
        """The published names, in the order in which their tensors are stacked."""
        if self.layers is None:
            return [self.torch]
        return [self.torch.replace("{i}", str(i)) for i in range(self.layers)]

    @property
    def jax_shape(self) -> Shape:
        one = self.transform.jax_shape(self.shape)
        return one if self.layers is None else (self.layers, *one)

    @property
    def size(self) -> int:
        """Number of values in the parameter."""
        return math.prod(self.shape) * (1 if self.layers is None else self.layers)


Table = list[Entry]


def entries(prefix: str, path: str, rows: Iterable[tuple], *, layers: int | None = None) -> Table:
    """Entries from rows (torch name, path, transform, shape), each name and path under a common prefix."""
    return [Entry(f"{prefix}{torch}", f"{path}{name}", change, shape, layers) for torch, name, change, shape in rows]


def torch_shapes(table: Table) -> dict[str, Shape]:
    """Published name -> published shape of every tensor in the table."""
    return {name: entry.shape for entry in table for name in entry.torch_names}


def jax_shapes(table: Table) -> dict[str, Shape]:
    """Our path -> our shape of every parameter in the table."""
    return {entry.path: entry.jax_shape for entry in table}


def check_table(table: Table) -> None:
    """Raises ValueError if a name or a path occurs twice, or a path is both a parameter and a folder of others."""
    for kind, names in (
        ("tensor", (name for entry in table for name in entry.torch_names)),
        ("parameter", (entry.path for entry in table)),
    ):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"weight table: {kind} listed twice: {', '.join(twice)}")
    paths = {entry.path for entry in table}
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in paths:
                raise ValueError(f"weight table: {'/'.join(parts[:depth])} is a parameter and also holds {path}")


def nest(flat: Iterable[tuple[str, object]]) -> dict:
    """("a/b/c", leaf) pairs -> nested dict."""
    tree: dict = {}
    for path, leaf in flat:
        *folders, last = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


def flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested dict -> ("a/b/c", leaf) pairs. Inverse of `nest`."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
