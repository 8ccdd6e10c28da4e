"""Attention as plain functions: grouped queries over masked keys, and attention inside gathered blocks.

Scores and softmax are float32; the products run in the inputs' dtype. Rows are normalised after the second product,
which spares a pass over the scores.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omni_jax.kernels.target import current_target
from omni_jax.layers.rounded_products import rounded
from omni_jax.layers.tiled_attention import LEAST, MASKED, TILE, TILE_ROWS, attend_in_tiles

# Most scores to hold at once (64 Mi float32 = 256 MiB).
_SCORE_BUDGET = 1 << 26
# On a CPU: keys of a tile of scores that stays in cache, and scores too few to be worth a loop. Every cache length is a
# multiple of the tile, so the order of summation, and the answer to the last bit, does not depend on that length.
_TILE_KEYS = 256
_WORTH_TILING = 1 << 18


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: Bool[Array, "#B #T S"] | None,
    used: Int[Array, "B"] | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention; query head n reads key-value head n // (N / K). Scale is H^-0.5.

    A query that may see nothing gives zeros. Keys carry the head axis before the sequence axis, so that each head's
    keys are contiguous.

    Args:
        mask: which keys each query sees; None for all.
        used: keys of a cache that are in use, where the mask is false beyond them: on a CPU the others are not read.
            Not differentiable with it.
    """
    batch, length, heads, width = query.shape
    kv_heads, keys = key.shape[1:3]
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)
    if mask is None:
        mask = jnp.ones((batch, 1, keys), bool)
    mask = jnp.broadcast_to(mask, (batch, *mask.shape[1:]))
    tile = min(keys & -keys, _TILE_KEYS)
    worth = length * keys * heads // kv_heads >= _WORTH_TILING
    if used is not None and tile >= 64:
        out = jax.lax.platform_dependent(
            grouped, key, value, mask, used, cpu=lambda *args: _attend_to_cache(*args, tile), default=_attend_at_once
        )
    elif worth and tile >= 64 and current_target().platform == "cpu":
        factors = (x.astype(jnp.bfloat16) if rounded() else x for x in (grouped, key, value))
        out = attend_in_tiles(*factors, mask, tile if mask.shape[1] == 1 else min(tile, TILE)).astype(value.dtype)
    else:
        out = _attend_at_once(grouped, key, value, mask)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)


def attend_within_blocks(
    query: Float[Array, "P N H"],
    key: Float[Array, "P N H"],
    value: Float[Array, "P N H"],
    *,
    slots: Sequence[Int[Array, "_ _"]],
    home: Int[Array, "P"],
) -> Float[Array, "P N H"]:
    """Each position of a packed sequence attends to the positions of its own block, and to nothing else.

    Args:
        slots: tables of blocks of like size; the packed index held by each place of each block, P for an empty place.
        home: flat index of the place that holds each packed position, tables laid end to end.

    Cost is G * M^2 a table, not P^2. Blocks are taken a few at a time when their scores would not fit a fixed budget.
    """
    length, heads, width = query.shape

    def some_blocks(slots):  # [g, M] -> [g, M, N, H]
        q, k, v = (jnp.take(x, slots, axis=0, mode="fill", fill_value=0) for x in (query, key, value))
        return attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), (slots < length)[:, None, :])

    def table(slots):
        blocks, places = slots.shape
        together = max(1, _SCORE_BUDGET // (places * places * heads))
        if together >= blocks:
            out = some_blocks(slots)
        elif together == 1:  # a batch of one would be mapped too, and take both sides of what tiles leave out
            out = jax.lax.map(lambda one: some_blocks(one[None])[0], slots)
        else:
            out = jax.lax.map(lambda one: some_blocks(one[None])[0], slots, batch_size=together)
        return out.reshape(blocks * places, heads, width)

    outputs = [table(each) for each in slots]
    return (outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs))[home]


def _attend_at_once(
    query: Float[Array, "B K G T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: Bool[Array, "B #T S"],
    used: Int[Array, "B"] | None = None,
) -> Float[Array, "B K G T H"]:
    """All heads in one product; query rows in pieces where the scores would not fit the budget."""
    batch, kv_heads, groups, length = query.shape[:4]
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
    # one batch axis: XLA's CPU back end is twice as slow with two
    rows = query.reshape(batch * kv_heads, groups * length, width)
    key, value = (x.reshape(batch * kv_heads, -1, width) for x in (key, value))
    scores = jnp.einsum("bqh,bsh->bqs", rows, key, preferred_element_type=jnp.float32) * width**-0.5
    scores = scores.reshape(batch, kv_heads, groups, length, -1)
    scores = jnp.where(mask[:, None, None], scores, MASKED).reshape(batch * kv_heads, groups * length, -1)
    weights, total = _exponentials(scores)
    out = jnp.einsum("bqs,bsh->bqh", weights.astype(value.dtype), value) / total.astype(value.dtype)
    return out.reshape(query.shape)


def _attend_to_cache(query, key, value, mask, used, tile: int):
    """As `_attend_at_once`, by tiles of one head's queries and keys with a running softmax (arXiv:2205.14135).

    Plain matrix products of blocks that stay in cache. Measured on 2 CPU cores: XLA's batched product over heads is
    2 times slower at 5,000 keys, and 4 times slower in a decoding loop, where it also copies the whole cache.
    """
    batch, kv_heads, groups, length, width = query.shape
    steps = length  # query steps of a tile: the most that divide the length and keep the tile's rows few
    while steps > 1 and (length % steps or groups * steps > TILE_ROWS):
        steps -= 1
    rows = query.reshape(batch * kv_heads, groups, length // steps, steps, width).swapaxes(1, 2)
    rows = rows.reshape(batch * kv_heads, length // steps, groups * steps, width) * width**-0.5
    shared = mask.shape[1] == 1  # one row of the mask for all queries

    def one_head(item):
        index, rows = item
        row, head = index // kv_heads, index % kv_heads
        own = mask[row]
        tiles = (used[row] + tile - 1) // tile

        def one_tile(item):
            place, q = item
            seen = own if shared else jax.lax.dynamic_slice_in_dim(own, place * steps, steps, axis=0)

            def add(index, carry):
                largest, total, out = carry
                at = (row, head, index * tile, 0)
                k, v = (jax.lax.dynamic_slice(x, at, (1, 1, tile, width))[0, 0] for x in (key, value))
                m = jax.lax.dynamic_slice_in_dim(seen, index * tile, tile, axis=1)
                m = jnp.broadcast_to(m, (groups, steps, tile)).reshape(groups * steps, tile)
                scores = jnp.where(m, jnp.matmul(q, k.T, preferred_element_type=jnp.float32), MASKED)
                new = jnp.maximum(largest, jnp.max(scores, axis=-1, keepdims=True))
                weights, shrink = jnp.where(m, jnp.exp(scores - new), 0), jnp.exp(largest - new)
                out = out * shrink + (weights.astype(v.dtype) @ v).astype(jnp.float32)
                return new, total * shrink + jnp.sum(weights, axis=-1, keepdims=True), out

            count = groups * steps
            start = (jnp.full((count, 1), MASKED), jnp.zeros((count, 1)), jnp.zeros((count, width)))
            _, total, out = jax.lax.fori_loop(0, tiles, add, start)
            return (out / jnp.maximum(total, LEAST)).astype(value.dtype)

        return jax.lax.map(one_tile, (jnp.arange(length // steps), rows))

    out = jax.lax.map(one_head, (jnp.arange(batch * kv_heads), rows))
    out = out.reshape(batch, kv_heads, length // steps, groups, steps, width).swapaxes(2, 3)
    return out.reshape(query.shape)


def _exponentials(scores: Float[Array, "... S"]) -> tuple[Float[Array, "... S"], Float[Array, "... 1"]]:
    """Unnormalised softmax weights, the largest of each row being 1, and their sums. What is masked weighs nothing."""
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    weights = jnp.where(scores > MASKED, weights, 0)
    return weights, jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), LEAST)
