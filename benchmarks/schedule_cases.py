"""The attention patterns of the 7B model at real sizes, and ways to compute each, from and to [T, N*H] columns.

Columns are what the projections around attention give and take, so each side pays for the transpositions it needs.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from omni_jax.kernels import patterns
from omni_jax.kernels.interval_attention import interval_attention

# Most scores at once of the plain forms (64 Mi float32 = 256 MiB), the budget of `layers.attention`.
SCORE_BUDGET = 1 << 26


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A pattern at one length.

    Attributes:
        bounds: makes (start, stop) on the host.
        blocks: size of the blocks that the gathered form computes; None where there is none.
        near: blocks before and after its own that a block sees.
        reach: see `interval_attention`.
        causal: segments of a packed causal sequence: splash gets segment ids and a causal mask.
    """

    name: str
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    bounds: Callable[[], tuple[jax.Array, jax.Array]]
    blocks: int | None = None
    near: tuple[int, int] = (0, 0)
    reach: int | None = None
    causal: bool = False


def _blocks(name, count, size, heads, head_dim, reach=None, real=None):
    bounds = lambda: patterns.within_blocks(  # noqa: E731
        jnp.where(jnp.arange(count) < (real or count), size, 0), size
    )
    return Pattern(name, count * size, heads, heads, head_dim, bounds, blocks=size, reach=reach)


def _dit(name, frames):
    bounds = lambda: patterns.neighbouring_blocks(  # noqa: E731
        jnp.array([frames]), frames, block_size=24, look_back=1, look_ahead=0
    )
    return Pattern(name, frames, 16, 16, 64, bounds, blocks=24, near=(1, 0), reach=48)


def segment_ids(length: int) -> np.ndarray:
    """Four packed segments of unlike length."""
    ends = np.array([3, 4, 6, 8]) * length // 8
    return np.searchsorted(ends, np.arange(length), side="right").astype(np.int32) + 1


def _causal(name, length, heads, kv_heads, packed):
    ids = segment_ids(length) if packed else np.ones(length, np.int32)
    bounds = lambda: patterns.causal_segments(jnp.asarray(ids))  # noqa: E731
    return Pattern(name, length, heads, kv_heads, 128, bounds, causal=True)


PATTERNS = [
    # blocks in the encoder's buckets, of which 15 and 150 are real
    _blocks("audio, 30 s", 16, 100, 20, 64, reach=100, real=15),
    _blocks("audio, 5 min", 160, 100, 20, 64, reach=100, real=150),
    _blocks("vision windows, 4,096 patches", 64, 64, 16, 80, reach=64),
    _blocks("vision windows, 16,384 patches", 256, 64, 16, 80, reach=64),
    _blocks("vision frames, 4 of 1,024 patches", 4, 1024, 16, 80),
    _blocks("vision frames, 4 of 4,096 patches", 4, 4096, 16, 80),
    _dit("DiT, 10 s", 1008),
    _dit("DiT, 60 s", 6000),
    _causal("causal, 8,192 tokens", 8192, 28, 4, packed=False),
    _causal("causal, 8,192 tokens in 4 segments", 8192, 28, 4, packed=True),
]


def split(pattern: Pattern, *columns):
    return [x.reshape(x.shape[0], -1, pattern.head_dim) for x in columns]


def ours(pattern: Pattern, query, key, value, start, stop):
    out = interval_attention(*split(pattern, query, key, value), start, stop, reach=pattern.reach)
    return out.reshape(query.shape)


def masked(pattern: Pattern, query, key, value, start, stop):
    """All scores, and a mask: what plain jax.numpy does with no knowledge of the pattern. Queries in pieces."""
    q, k, v = split(pattern, query, key, value)
    group = pattern.heads // pattern.kv_heads
    index = jnp.arange(pattern.length)
    pieces = 1
    while pattern.heads * pattern.length**2 > pieces * SCORE_BUDGET and pattern.length % (2 * pieces) == 0:
        pieces *= 2
    rows = pattern.length // pieces

    def piece(item):
        q, start, stop = item
        q = q.reshape(rows, pattern.kv_heads, group, pattern.head_dim)
        mask = (start[:, None] <= index) & (index < stop[:, None])
        return _attend("tkgh,skh->kgts", "kgts,skh->tkgh", q, k, v, mask).reshape(rows, -1)

    items = tuple(x.reshape(pieces, rows, *x.shape[1:]) for x in (q, start, stop))
    out = jax.lax.map(piece, items) if pieces > 1 else piece(jax.tree.map(lambda x: x[0], items))
    return out.reshape(query.shape)


def gathered(pattern: Pattern, query, key, value, start, stop):
    """Only the blocks, and those that they see, cut out of the sequence: the best plain form. Blocks in pieces."""
    size, count = pattern.blocks, pattern.length // pattern.blocks
    back, ahead = pattern.near
    q, k, v = (x.reshape(count, size, *x.shape[1:]) for x in split(pattern, query, key, value))

    def window(x):
        padded = jnp.pad(x, ((back, ahead), *((0, 0),) * 3))
        return jnp.concatenate([padded[i : i + count] for i in range(back + ahead + 1)], axis=1)

    if back or ahead:
        k, v = window(k), window(v)
    first = (jnp.arange(count) - back)[:, None] * size + jnp.arange(k.shape[1])
    mask = (first >= start[::size, None]) & (first < stop[::size, None])

    def piece(item):
        q, k, v, mask = item
        return _attend("cqnh,cknh->cnqk", "cnqk,cknh->cqnh", q, k, v, mask[:, None, None])

    scores = count * size * k.shape[1] * pattern.heads
    pieces = next(n for n in range(1, count + 1) if count % n == 0 and scores <= n * SCORE_BUDGET)
    if pieces == 1:
        return piece((q, k, v, mask)).reshape(query.shape)
    items = tuple(x.reshape(pieces, count // pieces, *x.shape[1:]) for x in (q, k, v, mask))
    return jax.lax.map(piece, items).reshape(query.shape)


def _attend(into_scores, out_of_scores, query, key, value, mask):
    scores = jnp.einsum(into_scores, query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
    return jnp.einsum(out_of_scores, weights.astype(value.dtype), value)
