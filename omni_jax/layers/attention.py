"""Attention as plain functions: grouped queries over masked keys, and attention inside gathered blocks.

Scores and softmax are float32; the products run in the inputs' dtype.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_MASKED = -1e30  # finite: a row that may see nothing gives a uniform average, never NaN

# Largest score tensor that block attention holds at once, in values (64 Mi float32 = 256 MiB).
_SCORE_BUDGET = 1 << 26


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
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, width)
    # [B, K, G*T, H]: one matrix product per key-value head
    grouped = grouped.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, width)
    scores = jnp.einsum("bkqh,bksh->bkqs", grouped, key, preferred_element_type=jnp.float32) * width**-0.5
    scores = scores.reshape(batch, kv_heads, heads // kv_heads, length, -1)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    weights = weights.reshape(batch, kv_heads, -1, value.shape[2])
    out = jnp.einsum("bkqs,bksh->bkqh", weights, value)
    out = out.reshape(batch, kv_heads, heads // kv_heads, length, width).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, length, heads, width)


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

    def one_group(slots):  # [g, M] -> [g, M, N, H]
        q, k, v = (jnp.take(x, slots, axis=0, mode="fill", fill_value=0) for x in (query, key, value))
        return attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), (slots < length)[:, None, :])

    together = max(1, _SCORE_BUDGET // (places * places * heads))
    if together >= blocks:
        out = one_group(slots)
    elif places * places * heads <= _SCORE_BUDGET:
        out = jax.lax.map(lambda s: one_group(s[None])[0], slots, batch_size=together)
    else:
        out = jax.lax.map(lambda s: _attend_by_rows(query, key, value, s), slots)
    return out.reshape(blocks * places, heads, width)[home]


def _attend_by_rows(query, key, value, slots):
    """One block too large to score at once: query rows in pieces. [M] -> [M, N, H]"""
    length, heads, width = query.shape
    q, k, v = (jnp.take(x, slots, axis=0, mode="fill", fill_value=0) for x in (query, key, value))
    k, v, mask = k.swapaxes(0, 1)[None], v.swapaxes(0, 1)[None], (slots < length)[None, None]
    places = slots.shape[0]
    rows = 1 << (max(1, _SCORE_BUDGET // (places * heads)).bit_length() - 1)
    while places % rows:
        rows //= 2
    q = q.reshape(places // rows, rows, heads, width)
    out = jax.lax.map(lambda piece: attend(piece[None], k, v, mask)[0], q)
    return out.reshape(places, heads, width)
