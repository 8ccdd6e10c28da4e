"""Our parameters for parity: all in memory, or read from a published folder part by part."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from omni_jax.interop.safetensors_shards import Tensor
from omni_jax.interop.weight_table import Entry, Table, nest

Params = Mapping[str, Any]


class Weights(Protocol):
    """Where parameters come from. Paths are those of the weight tables; everything is float32."""

    def tree(self, path: str) -> Params:
        """The parameters below `path`, as a nested dict."""

    def layer(self, path: str, index: int) -> Params:
        """Layer `index` of the stack at `path`, as a stack of one."""

    def rows(self, path: str, ids: np.ndarray) -> Array:
        """Rows `ids` of the table at `path`."""

    def columns(self, path: str, size: int) -> Iterator[Array]:
        """The kernel [in, out] at `path`, at most `size` columns at a time."""


class MemoryWeights:
    """A parameter tree as it was imported."""

    def __init__(self, params: Params):
        self.params = params

    def tree(self, path: str) -> Params:
        node = self.params
        for part in path.split("/"):
            node = node[part]
        return node

    def layer(self, path: str, index: int) -> Params:
        return jax.tree.map(lambda x: x[index : index + 1], self.tree(path))

    def rows(self, path: str, ids: np.ndarray) -> Array:
        return self.tree(path)[ids]

    def columns(self, path: str, size: int) -> Iterator[Array]:
        kernel = self.tree(path)
        yield from (kernel[:, start : start + size] for start in range(0, kernel.shape[1], size))


class PublishedWeights:
    """Tensors of a published folder, through the weight table, read when they are asked for and kept by nobody."""

    def __init__(self, entries: Table, tensors: Mapping[str, Tensor]):
        self._entries, self._tensors = {entry.path: entry for entry in entries}, tensors

    def tree(self, path: str) -> Params:
        return self._below(path, None)

    def layer(self, path: str, index: int) -> Params:
        return self._below(path, index)

    def rows(self, path: str, ids: np.ndarray) -> Array:
        entry = self._entries[path]
        return jnp.asarray(entry.transform.to_jax(self._tensors[entry.torch].read())[ids].astype(np.float32))

    def columns(self, path: str, size: int) -> Iterator[Array]:
        entry = self._entries[path]
        kernel = entry.transform.to_jax(self._tensors[entry.torch].read())
        for start in range(0, kernel.shape[1], size):
            yield jnp.asarray(kernel[:, start : start + size].astype(np.float32))

    def _below(self, path: str, index: int | None) -> Params:
        found = {name: entry for name, entry in self._entries.items() if name.startswith(f"{path}/")}
        return nest((name.removeprefix(f"{path}/"), self._read(entry, index)) for name, entry in found.items())

    def _read(self, entry: Entry, index: int | None) -> Array:
        names = entry.torch_names if index is None else entry.torch_names[index : index + 1]
        values = np.empty((len(names), *entry.transform.jax_shape(entry.shape)), np.float32)
        for place, name in enumerate(names):
            values[place] = entry.transform.to_jax(self._tensors[name].read())
        return jnp.asarray(values if entry.layers is not None else values[0])
