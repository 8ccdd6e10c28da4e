"""Which (block of queries, chunk of keys) pairs a kernel visits, from the bounds; nothing else is ever loaded.

queries [ 0, 512)  sees keys [  0,  512)  ->  pair 0  (0,   0)  first, last
queries [512,1024) sees keys [256, 1024)  ->  pair 1  (1, 256)  first
                                              pair 2  (1, 768)  last
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from omni_jax.kernels.interval_attention.tpu_parts import ROWS

FIRST, LAST, FULL = 1, 2, 4
_FLAGS = 3  # bits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
    """Pairs in the order of their owners.

    Attributes:
        owner: block that the pair belongs to (its results are kept between the pairs of one owner), int32 [pairs].
        word: first element of the other side / 16, then the bits FULL, LAST, FIRST, int32 [pairs].
        count: pairs in use.
    """

    owner: Int[Array, " pairs"]
    word: Int[Array, " pairs"]
    count: Int[Array, ""]


def other_start(word):
    """First element of the pair's other side (keys, or queries in the backward pass)."""
    return (word >> _FLAGS) * ROWS


def by_queries(start, stop, keys: int, *, block: int, chunk: int, reach: int | None = None) -> Schedule:
    """Blocks of queries own pairs; the chunks of one begin at its first key and lie side by side.

    With a promised `reach` (see `interval_attention`) there is room for as many pairs as it allows, and no more.

    A block that sees nothing still has one pair, in which its zeros are written. The last chunk may reach beyond
    `keys`: the kernel moves it back, and hides the keys that it had before.
    """
    blocks = start.shape[0] // block
    start, stop = start.reshape(blocks, block), stop.reshape(blocks, block)
    empty = stop <= start
    low = jnp.min(jnp.where(empty, keys, start), axis=1) // ROWS * ROWS
    high = jnp.max(jnp.where(empty, 0, stop), axis=1)
    counts = jnp.maximum((high - low + chunk - 1) // chunk, 1)
    low = jnp.where(high > 0, low, 0)
    owner, place, last, count = _lay_out(
        counts, most_pairs(blocks * block, keys, block=block, chunk=chunk, reach=reach)
    )
    first = low[owner] + place * chunk
    full = (jnp.max(start, axis=1)[owner] <= first) & (jnp.min(stop, axis=1)[owner] >= first + chunk)
    flags = FIRST * (place == 0) + LAST * last + FULL * full
    return Schedule(owner, (first // ROWS << _FLAGS) + flags.astype(jnp.int32), count)


def by_keys(start, stop, keys: int, *, block: int, chunk: int, reach: int | None = None) -> Schedule:
    """Blocks of `block` keys own pairs: one for each chunk of queries from the first to the last that see it.

    Chunks of queries lie at multiples of `chunk`.
    """
    chunks, blocks = start.shape[0] // chunk, -(-keys // block)
    start, stop = start.reshape(chunks, chunk), stop.reshape(chunks, chunk)
    empty = stop <= start
    low, high = jnp.min(jnp.where(empty, keys, start), axis=1), jnp.max(jnp.where(empty, 0, stop), axis=1)
    begin = jnp.arange(blocks, dtype=jnp.int32)[:, None] * block
    touched = (low < begin + block) & (high > begin)  # [blocks, chunks]
    first = jnp.argmax(touched, axis=1).astype(jnp.int32)
    beyond = chunks - jnp.argmax(touched[:, ::-1], axis=1).astype(jnp.int32)
    counts = jnp.where(jnp.any(touched, axis=1), beyond - first, 1)
    owner, place, last, count = _lay_out(
        counts, most_pairs(keys, chunks * chunk, block=block, chunk=chunk, reach=reach)
    )
    query = first[owner] + place
    begin = owner * block
    full = (jnp.max(start, axis=1)[query] <= begin) & (jnp.min(stop, axis=1)[query] >= begin + block)
    flags = FIRST * (place == 0) + LAST * last + FULL * full
    return Schedule(owner, (query * chunk // ROWS << _FLAGS) + flags.astype(jnp.int32), count)


def most_pairs(own: int, other: int, *, block: int, chunk: int, reach: int | None = None) -> int:
    """Room for the pairs of `own` elements in blocks with `other` elements in chunks.

    With a `reach`, a block needs one chunk more than fits, for they begin anywhere.
    """
    blocks, chunks = -(-own // block), -(-other // chunk)
    return blocks * (chunks if reach is None else min(chunks, -(-(block + 2 * reach + ROWS) // chunk) + 1))


def _lay_out(counts, most: int):
    """Owner of each pair, its place among the pairs of the owner, whether it is the last, and how many there are."""
    ends = jnp.cumsum(counts, dtype=jnp.int32)
    pair = jnp.arange(most, dtype=jnp.int32)
    owner = jnp.repeat(jnp.arange(counts.shape[0], dtype=jnp.int32), counts, total_repeat_length=most)
    place = pair - (ends - counts)[owner]
    return owner, place, pair == ends[owner] - 1, ends[-1]
