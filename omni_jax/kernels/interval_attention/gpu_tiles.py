"""What the Triton kernels share: tile sizes, masks of partial tiles, and the walk over the keys of a block of rows."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

MASKED = -1e30  # finite: a row that has seen nothing yet must not make NaN
LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class GpuBlocks:
    """Tile sizes of one kernel: query rows, keys, warps of a program, and stages of its load pipeline."""

    query: int
    key: int
    warps: int
    stages: int


def padded_width(width: int) -> int:
    """Triton tiles are powers of two, and a matrix product needs 16 or more."""
    return max(16, pl.next_power_of_2(width))


def walk(add, carry, start, stop, keys: int, block: int):
    """Folds `add(index, carry, masked)` over the key blocks that rows with these bounds can touch.

    Blocks that all rows see whole come with masked=False; a row without keys has no say in that (its result is void).
    """
    sees = start < stop
    first = jax.lax.div(jnp.min(jnp.where(sees, start, keys)), block)
    last = jnp.maximum(_ceil_div(jnp.max(jnp.where(sees, stop, 0)), block), first)
    whole = _ceil_div(jnp.max(jnp.where(sees, start, 0)), block)
    whole_end = jax.lax.div(jnp.min(jnp.where(sees, stop, keys)), block)
    whole = jnp.minimum(jnp.maximum(whole, first), last)
    whole_end = jnp.minimum(jnp.maximum(whole_end, whole), last)
    edge, inside = functools.partial(add, masked=True), functools.partial(add, masked=False)
    carry = jax.lax.fori_loop(first, whole, edge, carry)
    carry = jax.lax.fori_loop(whole, whole_end, inside, carry)
    return jax.lax.fori_loop(whole_end, last, edge, carry)


def seen_of(first, block: int, start, stop):
    """[rows, block]: which of the keys first…first+block each row sees."""
    place = (first + jnp.arange(block))[None]
    return (place >= start[:, None]) & (place < stop[:, None])


def row_mask(first, rows: int, length: int):
    """[rows, 1]: which of the rows first…first+rows exist."""
    return (first + jnp.arange(rows) < length)[:, None]


def column_mask(padded: int, width: int):
    """[1, padded]: which columns of a tile belong to the head."""
    return (jnp.arange(padded) < width)[None]


def load_mask(first, rows: int, length: int, padded: int, width: int, *, edge: bool):
    """Mask of a tile that is loaded in a loop; None where the whole tile is known to exist, for loads without tests."""
    mask = None if padded == width else jnp.broadcast_to(column_mask(padded, width), (rows, padded))
    if edge and length % rows:
        inside = jnp.broadcast_to(row_mask(first, rows, length), (rows, padded))
        mask = inside if mask is None else mask & inside
    return mask


def _ceil_div(x, block: int):
    return jax.lax.div(x + (block - 1), block)
