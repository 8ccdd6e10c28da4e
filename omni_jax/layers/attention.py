"""Attention as plain functions: grouped queries over masked keys, and attention inside gathered blocks.

Scores and softmax are float32; the products run in the inputs' dtype. Rows are normalised after the second product,
which spares a pass over the scores.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_MASKED = -1e30  # finite: a row that may see nothing gives a uniform average, never NaN

# Most scores to hold at once (64 Mi float32 = 256 MiB).
_SCORE_BUDGET = 1 << 26
# On a CPU, scores of one tile should stay in cache. Fewer scores than this are not worth a loop.
_TILE_ROWS = 128
_WORTH_TILING = 1 << 18


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: Bool[Array, "B #T S"] | None,
) -> Float[Array, "B T N H"]:
    """Softmax attention; query head n reads key-value head n // (N / K). Scale is H^-0.5.

    Keys carry the head axis before the sequence axis, so that each head's keys are contiguous.
    """
    batch, length, heads, width = query.shape
    kv_heads = key.shape[1]
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)
    if mask is None:
        mask = jnp.ones((batch, 1, key.shape[2]), bool)
    tile = _tile(length)
    if tile and length * key.shape[2] * heads // kv_heads >= _WORTH_TILING:
        out = jax.lax.platform_dependent(
            grouped, key, value, mask, cpu=lambda *args: _attend_in_tiles(*args, tile), default=_attend_at_once
        )
    else:
        out = _attend_at_once(grouped, key, value, mask)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)


def attend_within_blocks(
    query: Float[Array, "P N H"],
    key: Float[Array, "P N H"],
    value: Float[Array, "P N H"],
    *,
    slots: Int[Array, "G M"],
    home: Int[Array, "P"],
) -> Float[Array, "P N H"]:
    """Each position of a packed sequence attends to the positions of its own block, and to nothing else.

    Args:
        slots: packed index held by each place of each block; P marks an empty place.
        home: flat index into [G * M] of the place that holds each packed position.

    Cost is G * M^2, not P^2. Blocks are taken a few at a time when their scores would not fit a fixed budget.
    """
    length, heads, width = query.shape
    blocks, places = slots.shape

    def some_blocks(slots):  # [g, M] -> [g, M, N, H]
        q, k, v = (jnp.take(x, slots, axis=0, mode="fill", fill_value=0) for x in (query, key, value))
        return attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), (slots < length)[:, None, :])

    together = max(1, _SCORE_BUDGET // (places * places * heads))
    if together >= blocks:
        out = some_blocks(slots)
    else:
        out = jax.lax.map(lambda one: some_blocks(one[None])[0], slots, batch_size=together)
    return out.reshape(blocks * places, heads, width)[home]


def _attend_at_once(
    query: Float[Array, "B K G T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: Bool[Array, "B #T S"],
) -> Float[Array, "B K G T H"]:
    """All heads in one product; query rows in pieces where the scores would not fit the budget."""
    batch, kv_heads, groups, length, width = query.shape
    pieces = 1
    while batch * kv_heads * groups * length * key.shape[2] > pieces * _SCORE_BUDGET and length % (2 * pieces) == 0:
        pieces *= 2
    if pieces == 1:
        return _softmax_product(query, key, value, mask)
    rows = length // pieces

    def piece(index):
        q = jax.lax.dynamic_slice_in_dim(query, index * rows, rows, axis=3)
        m = mask if mask.shape[1] == 1 else jax.lax.dynamic_slice_in_dim(mask, index * rows, rows, axis=1)
        return _softmax_product(q, key, value, m)

    out = jax.lax.map(piece, jnp.arange(pieces))  # [pieces, B, K, G, rows, H]
    return jnp.moveaxis(out, 0, 3).reshape(query.shape)


def _softmax_product(query, key, value, mask):
    batch, kv_heads, groups, length, width = query.shape
    rows = query.reshape(batch, kv_heads, groups * length, width)  # one matrix product per key-value head
    scores = jnp.einsum("bkqh,bksh->bkqs", rows, key, preferred_element_type=jnp.float32) * width**-0.5
    scores = scores.reshape(batch, kv_heads, groups, length, -1)
    scores = jnp.where(mask[:, None, None], scores, _MASKED).reshape(batch, kv_heads, groups * length, -1)
    weights, total = _exponentials(scores)
    out = jnp.einsum("bkqs,bksh->bkqh", weights.astype(value.dtype), value) / total.astype(value.dtype)
    return out.reshape(query.shape)


def _attend_in_tiles(query, key, value, mask, tile: int):
    """As `_attend_at_once`, by tiles of one head's rows: plain matrix products whose scores stay in the cache.

    Measured on 2 CPU cores against one batched product over all heads: twice as fast at 5,000 keys.
    """
    batch, kv_heads, groups, length, width = query.shape
    tiles = length // tile
    rows = query.reshape(batch * kv_heads, groups * tiles, tile, width)
    shared = mask.shape[1] == 1  # one mask for all rows

    def one_head(item):
        index, rows, key, value = item
        own = mask[index // kv_heads]  # [#T, S]

        def one_tile(item):
            place, q = item
            m = own if shared else jax.lax.dynamic_slice_in_dim(own, (place % tiles) * tile, tile, axis=0)
            scores = jnp.matmul(q, key.T, preferred_element_type=jnp.float32) * width**-0.5
            weights, total = _exponentials(jnp.where(m, scores, _MASKED))
            return (weights.astype(value.dtype) @ value) / total.astype(value.dtype)

        return jax.lax.map(one_tile, (jnp.arange(groups * tiles), rows))

    heads = batch * kv_heads
    keys, values = (x.reshape(heads, *x.shape[2:]) for x in (key, value))
    out = jax.lax.map(one_head, (jnp.arange(heads), rows, keys, values))
    return out.reshape(query.shape)


def _exponentials(scores: Float[Array, "... S"]) -> tuple[Float[Array, "... S"], Float[Array, "... 1"]]:
    """Unnormalised softmax weights, the largest of each row being 1, and their sums."""
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    return weights, jnp.sum(weights, axis=-1, keepdims=True)


def _tile(length: int) -> int:
    """Rows of a tile: the largest power of two up to 128 that divides `length`; 0 if that would be tiny."""
    tile = length & -length
    tile = min(tile, _TILE_ROWS)
    return tile if tile >= 32 else 0
