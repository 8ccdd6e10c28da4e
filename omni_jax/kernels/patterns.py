"""Bounds of the model's attention patterns: query i sees exactly the keys start[i] <= j < stop[i].

Each function returns (start, stop), int32 [T]. A query that sees nothing has start = stop = 0. Batches are folded
into one sequence (`fold`), so a kernel knows no batch axis:

    batch of 2 rows of 4, causal    start  0 0 0 0 4 4 4 4     stop  1 2 3 4 5 6 7 8
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

Bounds = tuple[Int[Array, " T"], Int[Array, " T"]]


def within_blocks(valid: Int[Array, " G"], block_size: int) -> Bounds:
    """Blocks of `block_size` places laid end to end; every place sees the first `valid[g]` places of its own block.

    Places beyond them ask too (nobody reads their answer), unless the block holds nothing at all. T = G * block_size.
    """
    first = jnp.arange(valid.shape[0], dtype=jnp.int32) * block_size
    start, stop = first, first + valid.astype(jnp.int32)
    return _nothing_at_zero(jnp.repeat(start, block_size), jnp.repeat(stop, block_size))


def packed_blocks(lengths: Int[Array, " G"], length: int) -> Bounds:
    """Blocks of unlike lengths laid end to end without gaps; places beyond the last block are padding.

    Empty blocks may stand anywhere. T = `length`.
    """
    ends = jnp.cumsum(lengths.astype(jnp.int32))
    place = jnp.arange(length, dtype=jnp.int32)
    block = jnp.searchsorted(ends, place, side="right").astype(jnp.int32)
    real = place < ends[-1]
    block = jnp.minimum(block, lengths.shape[0] - 1)
    stop = ends[block]
    start = stop - lengths.astype(jnp.int32)[block]
    return jnp.where(real, start, 0), jnp.where(real, stop, 0)


def neighbouring_blocks(
    lengths: Int[Array, " B"], time: int, *, block_size: int, look_back: int, look_ahead: int
) -> Bounds:
    """Rows of `time` frames laid end to end; a frame sees its block, and `look_back` and `look_ahead` blocks around it.

    Only the first lengths[b] frames of row b are seen. T = B * time. The reach of this pattern, for
    `interval_attention`, is (1 + max(look_back, look_ahead)) * block_size.
    """
    block = jnp.arange(time, dtype=jnp.int32) // block_size
    start = jnp.maximum(block - look_back, 0) * block_size
    stop = jnp.minimum((block + look_ahead + 1) * block_size, lengths.astype(jnp.int32)[:, None])
    return fold(jnp.broadcast_to(start, stop.shape), stop, time)


def causal_segments(segment_ids: Int[Array, " T"]) -> Bounds:
    """Packed sequences: a token sees the tokens of its own segment up to itself.

    Tokens of a segment are neighbours with equal id; id 0 is padding, which sees nothing and is seen by nobody.
    """
    place = jnp.arange(segment_ids.shape[0], dtype=jnp.int32)
    before = jnp.concatenate([segment_ids[:1] - 1, segment_ids[:-1]])
    start = jax.lax.cummax(jnp.where(segment_ids != before, place, 0))
    real = segment_ids != 0
    return jnp.where(real, start, 0), jnp.where(real, place + 1, 0)


def fold(start: Int[Array, "B T"], stop: Int[Array, "B T"], keys: int) -> Bounds:
    """Bounds of B rows of their own, each with `keys` keys, as bounds of one sequence: row b is moved by b * keys."""
    offset = jnp.arange(start.shape[0], dtype=jnp.int32)[:, None] * keys
    empty = stop <= start
    start, stop = (jnp.where(empty, 0, x.astype(jnp.int32) + offset) for x in (start, stop))
    return start.reshape(-1), stop.reshape(-1)


def _nothing_at_zero(start, stop):
    empty = stop <= start
    return jnp.where(empty, 0, start), jnp.where(empty, 0, stop)
