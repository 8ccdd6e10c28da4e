"""Writes an Orbax checkpoint leaf by leaf, without ever holding the tree in memory.

Orbax saves trees of arrays that exist. Here a leaf is only a shape and a recipe that yields its values in slices; a
type handler, which is Orbax's own way of adding leaf types, stores each slice as it comes. The result is an ordinary
PyTree checkpoint (one zarr array per leaf, no OCDBT) that every Orbax checkpointer restores, with any shardings.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from absl import logging
from orbax.checkpoint import type_handlers

from omni_jax.interop.weight_table import Shape, nest

# Small enough that a device which owns a part of a tensor reads little else, large enough for few files.
CHUNK_BYTES = 32 * 2**20
# Values handed to TensorStore whose writing has not finished.
_IN_FLIGHT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class StreamedLeaf:
    """A parameter that is still to be read.

    Args:
        path: "a/b/c" in the tree.
        shape, dtype: of the whole parameter.
        slices: yields its values: slice 0, 1, ... of the leading axis if `stacked`, else the whole in one piece.
    """

    path: str
    shape: Shape
    dtype: np.dtype
    stacked: bool
    slices: Callable[[], Iterator[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_params(
    folder: Path, leaves: Iterable[StreamedLeaf], on_bytes: Callable[[int], None] = lambda n: None
) -> None:
    """Saves `leaves` as the Orbax checkpoint `folder`, calling `on_bytes(n)` after each `n` bytes. Does not sync."""
    registry = type_handlers.create_type_handler_registry((StreamedLeaf, _StreamHandler(on_bytes)))
    tree = nest((leaf.path, leaf) for leaf in leaves)
    with _quiet():
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(folder.resolve(), args=ocp.args.PyTreeSave(tree))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's warnings that there is no OCDBT to merge and no jax.Array to describe: both are intended."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


class _StreamHandler(type_handlers.TypeHandler):
    """Stores StreamedLeaf; writes only. What it wrote is read by Orbax's own handlers."""

    def __init__(self, on_bytes: Callable[[int], None]):
        self._on_bytes = on_bytes
        # Waiting for the disk after each small file would take most of the time; whoever calls syncs once.
        self._context = ts.Context({"file_io_sync": False})

    def typestr(self) -> str:
        return "np.ndarray"

    async def serialize(self, values, infos, args=None):
        pending = _Pending(_IN_FLIGHT_BYTES)
        for leaf, info in zip(values, infos):
            await info.await_path_creation()
            spec = _spec(leaf, info.parent_dir / info.name)
            array = ts.open(spec, create=True, open=True, context=self._context).result()
            for number, values in enumerate(leaf.slices()):
                target = array[number] if leaf.stacked else array
                pending.add(target.write(values), values.nbytes)
                self._on_bytes(values.nbytes)
        pending.drain(0)
        return []

    async def metadata(self, infos):
        raise NotImplementedError("streamed leaves are written only")

    async def deserialize(self, infos, args=None):
        raise NotImplementedError("streamed leaves are written only")


class _Pending:
    """Writes under way, oldest first, at most `limit` bytes of them."""

    def __init__(self, limit: int):
        self._limit, self._bytes, self._queue = limit, 0, deque()

    def add(self, write: ts.WriteFutures, nbytes: int) -> None:
        self._queue.append((write, nbytes))
        self._bytes += nbytes
        self.drain(self._limit)

    def drain(self, limit: int) -> None:
        while self._queue and self._bytes > limit:
            write, nbytes = self._queue.popleft()
            write.result()
            self._bytes -= nbytes


def _spec(leaf: StreamedLeaf, folder: Path) -> dict:
    dtype = "bfloat16" if leaf.dtype == ml_dtypes.bfloat16 else leaf.dtype.str
    return {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": str(folder)},
        "metadata": {
            "shape": leaf.shape,
            "chunks": chunk_shape(leaf.shape, leaf.dtype.itemsize, stacked=leaf.stacked),
            "dtype": dtype,
            "compressor": None,  # weights hardly compress
        },
        # Orbax takes an absent chunk for a damaged checkpoint, so chunks of zeros must be stored too.
        "store_data_equal_to_fill_value": True,
    }


def chunk_shape(shape: Shape, itemsize: int, *, stacked: bool) -> Shape:
    """Shape of a stored chunk: one layer at most, halved along its longest axis until CHUNK_BYTES suffice.

    Halving keeps chunk borders on the borders of parts that 2, 4, 8, ... devices own.
    """
    chunk = [1, *shape[1:]] if stacked else list(shape)
    while math.prod(chunk) * itemsize > CHUNK_BYTES:
        axis = int(np.argmax(chunk))
        chunk[axis] = -(-chunk[axis] // 2)
    return tuple(max(1, size) for size in chunk)
