"""Interval attention on TPU over a schedule of pairs: a block of queries, and one chunk of the keys that it sees.

The grid is (heads, pairs), and the number of pairs is the schedule's, so chunks that nobody sees cost nothing. Running
softmax over the chunks of a block as in FlashAttention (arXiv:2205.14135), with unnormalised sums (arXiv:2307.08691).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from omni_jax.kernels.interval_attention.schedule import FIRST, FULL, LAST, Schedule, other_start
from omni_jax.kernels.interval_attention.tpu_parts import (
    LOG2E,
    MASKED,
    ROWS,
    dot,
    facing,
    head_tile,
    heads_of,
    mask_cap,
    round_up,
)  # fmt: skip
from omni_jax.kernels.shared import out_like


@dataclasses.dataclass(frozen=True)
class FlatSizes:
    """Static sizes of a kernel over pairs.

    Attributes:
        block: elements of the side that owns the pairs (queries; keys in the backward pass for keys).
        chunk: elements of the other side.
        part: elements of a chunk that go through the products at once; the rest waits in memory.
        kv_heads: key-value heads of a step; all go through each stage together, which keeps the units busy.
    """

    head_dim: int
    group: int
    block: int
    chunk: int
    part: int
    kv_heads: int
    vmem_limit: int | None = None

    @property
    def lanes(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def heads(self) -> int:
        """Query heads of a step, in whole registers of rows."""
        return round_up(self.kv_heads * self.group, 8)


def chunk_start(word, chunk: int, keys: int):
    """Where a pair's chunk is loaded: moved back where it would reach beyond the keys."""
    return pl.multiple_of(jnp.minimum(other_start(word), keys - chunk), ROWS)


def _kernel(owners, words, bounds, q, k, v, out, *rest, sizes: FlatSizes, keys: int):
    lse, scores, cap, largest, totals, sums = rest if len(rest) == 6 else (None, *rest)
    head_dim, group, tile = sizes.head_dim, sizes.group, head_tile(sizes.head_dim)
    per_tile = tile // head_dim
    heads = heads_of(k.shape[1], head_dim, group)
    word = words[pl.program_id(1)]

    def row_of(t, g, n):
        return (t * group + g) * per_tile + n

    @pl.when((word & FIRST) != 0)
    def _start():
        largest[...] = jnp.full_like(largest, MASKED)
        totals[...] = jnp.zeros_like(totals)
        sums[...] = jnp.zeros_like(sums)

    def add(part, masked: bool):
        here = pl.ds(pl.multiple_of(part * sizes.part, ROWS), sizes.part)
        if masked:
            first = chunk_start(word, sizes.chunk, keys) + part * sizes.part
            cap[...] = mask_cap(bounds, first, other_start(word), sizes.part)
        news = []
        for place, (t, g, n) in enumerate(heads):
            of_q = slice((t * group + g) * tile, (t * group + g + 1) * tile)
            s = dot(*facing(k[here, t * tile : (t + 1) * tile], q[:, of_q], n, head_dim), (1, 1))
            s = s * (head_dim**-0.5 * LOG2E)
            s = jnp.minimum(s, cap[...]) if masked else s
            row = row_of(t, g, n)
            news.append(jnp.maximum(largest[row : row + 1], jnp.max(s, axis=0, keepdims=True)))
            scores[place] = s
        for place, (t, g, n) in enumerate(heads):
            if not place or t != heads[place - 1][0]:
                values = v[here, t * tile : (t + 1) * tile].T
            row = row_of(t, g, n)
            p = jnp.exp2(scores[place] - news[place])
            shrink = jnp.exp2(largest[row : row + 1] - news[place])
            largest[row : row + 1] = news[place]
            totals[row : row + 1] = totals[row : row + 1] * shrink + jnp.sum(p, axis=0, keepdims=True)
            own = slice(row * head_dim, (row + 1) * head_dim)
            o = dot(values[n * head_dim : (n + 1) * head_dim], p.astype(v.dtype), (1, 0))
            sums[own] = sums[own] * shrink + o

    # Two forms of one loop: most pairs of a long causal sequence need no mask. (The backward passes do five products
    # where this does two, so there the mask is a twentieth of the work, and one form is enough.)
    for masked in (False, True):

        @pl.when(((word & FULL) == 0) == masked)
        def _parts(masked=masked):
            jax.lax.fori_loop(0, sizes.chunk // sizes.part, lambda part, _: add(part, masked), None)

    @pl.when((word & LAST) != 0)
    def _finish():
        empty = bounds[1:2] <= bounds[0:1]
        inverse = jnp.where(empty, 0, 1 / totals[...])
        for t, g, _ in heads[::per_tile]:
            outs = []
            for n in range(per_tile):
                row = row_of(t, g, n)
                outs.append(sums[row * head_dim : (row + 1) * head_dim] * inverse[row : row + 1])
            out[:, (t * group + g) * tile : (t * group + g + 1) * tile] = jnp.concatenate(outs).astype(out.dtype).T
        if lse is not None:
            lse[0] = jnp.where(empty, -MASKED, largest[...] + jnp.log2(totals[...]))


def flat_forward(schedule: Schedule, bounds, query, key, value, *, sizes: FlatSizes, save: bool, interpret: bool):
    """bounds [8, T'], query [T, N*H], key and value [S, K*H] -> out [T, N*H], log2-sum-exp [steps, heads, T'] or None.

    S is a multiple of 16 and at least a chunk; T' is T in whole blocks.
    """
    keys, steps = key.shape[0], key.shape[1] // sizes.lanes
    of_q = pl.BlockSpec((sizes.block, sizes.group * sizes.lanes), lambda h, i, owner, word: (owner[i], h))
    of_kv = pl.BlockSpec(
        (pl.Element(sizes.chunk), pl.Element(sizes.lanes)),
        lambda h, i, owner, word: (chunk_start(word[i], sizes.chunk, keys), h * sizes.lanes),
    )
    inputs = (bounds, query, key, value)
    out_specs, out_shape = [of_q], [out_like(query.shape, query.dtype, *inputs)]
    if save:
        out_specs.append(pl.BlockSpec((1, sizes.heads, sizes.block), lambda h, i, owner, word: (h, 0, owner[i])))
        out_shape.append(out_like((steps, sizes.heads, bounds.shape[1]), jnp.float32, *inputs))
    out, *lse = pl.pallas_call(
        functools.partial(_kernel, sizes=sizes, keys=keys),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(steps, schedule.count),
            in_specs=[
                pl.BlockSpec((8, sizes.block), lambda h, i, owner, word: (0, owner[i])),
                of_q, of_kv, of_kv,
            ],
            out_specs=out_specs,
            scratch_shapes=[
                pltpu.VMEM((sizes.kv_heads * sizes.group, sizes.part, sizes.block), jnp.float32),
                pltpu.VMEM((sizes.part, sizes.block), jnp.float32),
                pltpu.VMEM((sizes.heads, sizes.block), jnp.float32),
                pltpu.VMEM((sizes.heads, sizes.block), jnp.float32),
                pltpu.VMEM((sizes.kv_heads * sizes.group * sizes.head_dim, sizes.block), jnp.float32),
            ],
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=sizes.vmem_limit
        ),
        interpret=interpret,
        name="interval_attention_flat",
    )(schedule.owner, schedule.word, bounds, query, key, value)  # fmt: skip
    return out, (lse[0] if save else None)
