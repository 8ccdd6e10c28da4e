"""What the TPU kernels of interval attention share.

All of them hold scores with keys on sublanes and queries on lanes, s[j, i]. Measured by the compiler's schedule against
the usual orientation: 40 to 60 % fewer cycles for heads of 64 and 80, because the maximum and the sum of the softmax
become additions of whole registers, what belongs to a query (bounds, log-sum-exp) is one row that broadcasts for free,
and a head narrower than the 128 lanes costs the second product only its own rows.
"""

import math

import jax
import jax.numpy as jnp

LANES = 128
ROWS = 16  # rows of a bf16 tile: chunks of keys start at multiples of it
MASKED = -1e30
LOG2E = 1.4426950408889634


def round_up(x: int, step: int) -> int:
    return -(-x // step) * step


def head_tile(head_dim: int) -> int:
    """Fewest lanes that hold whole heads and are whole registers: 128 for 64 and 128, 640 for 80."""
    return math.lcm(head_dim, LANES)


def heads_of(kv_lanes: int, head_dim: int, group: int) -> list[tuple[int, int, int]]:
    """(tile of keys, member of the group, place in the tile) of each query head, in the order in which they are done.

    The heads of one output tile are neighbours, and so are all that read one tile of keys.
    """
    tile = head_tile(head_dim)
    return [(t, g, n) for t in range(kv_lanes // tile) for g in range(group) for n in range(tile // head_dim)]


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Matrix product over one axis of each, float32 out; float32 operands are not rounded."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def facing(wide: jax.Array, narrow: jax.Array, place: int, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """The columns of head `place` of two tiles, to be contracted with each other over their columns.

    Where heads divide the lanes, zeros in `narrow` cancel the other heads: the product is as deep anyway, and to move
    columns costs more.
    """
    if head_dim < LANES and LANES % head_dim == 0:
        lane = jax.lax.broadcasted_iota(jnp.int32, narrow.shape, 1)
        own = (lane >= place * head_dim) & (lane < (place + 1) * head_dim)
        return wide, jnp.where(own, narrow, jnp.zeros_like(narrow))
    own = slice(place * head_dim, (place + 1) * head_dim)
    return wide[:, own], narrow[:, own]


def mask_cap(bounds: jax.Array, first_key: jax.Array, from_key: jax.Array, keys: int) -> jax.Array:
    """[keys, queries]: what a score may be at most: anything where the query sees the key, next to nothing elsewhere.

    A minimum costs what an addition would, and also hides what is huge or infinite.

    Args:
        bounds: rows are start and stop, [8, queries].
        first_key: index of the first of `keys` keys.
        from_key: keys before it are not to be seen: another chunk has them.
    """
    index = first_key + jax.lax.broadcasted_iota(jnp.int32, (keys, bounds.shape[1]), 0)
    seen = (index >= jnp.maximum(bounds[0:1], from_key)) & (index < bounds[1:2])
    return jnp.where(seen, jnp.inf, MASKED)


def gradient_width(kv_heads: int, head_dim: int) -> int:
    """Columns in which the gradients of `kv_heads` heads are summed: a head that straddles registers gets its own."""
    return kv_heads * (head_dim if LANES % head_dim == 0 else round_up(head_dim, LANES))


def slice_of_head(t: int, n: int, head_dim: int) -> slice:
    """Columns of the sums of gradients in which head n of tile t is summed; see `gradient_width`."""
    if LANES % head_dim == 0:
        return slice(t * LANES, (t + 1) * LANES)
    at = (t * (head_tile(head_dim) // head_dim) + n) * gradient_width(1, head_dim)
    return slice(at, at + head_dim)


def join_heads(sums: jax.Array, head_dim: int) -> jax.Array:
    """Summed gradients [S, gradient_width] -> [S, K*H]."""
    if LANES % head_dim == 0:
        return sums
    step = round_up(head_dim, LANES)
    return jnp.concatenate([sums[:, at : at + head_dim] for at in range(0, sums.shape[1], step)], axis=1)


def only_rows(x: jax.Array, count: jax.Array) -> jax.Array:
    """Zeros in the rows from `count` on: a block that reaches beyond its array holds anything there, also NaN."""
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    return jnp.where(row < count, x, jnp.zeros_like(x))
