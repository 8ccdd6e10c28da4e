"""Gradients of the kernel in tpu_flat.py: one pass over pairs owned by queries, one over pairs owned by keys.

The weights are made again from the saved log-sum-exp (arXiv:2205.14135, appendix B.2). Like the forward pass, scores
have keys on sublanes and queries on lanes; the gradients of keys and values then need no transposition at all.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from omni_jax.kernels.interval_attention.schedule import FIRST, LAST, Schedule, other_start
from omni_jax.kernels.interval_attention.tpu_flat import FlatSizes, chunk_start
from omni_jax.kernels.interval_attention.tpu_parts import (
    LANES,
    LOG2E,
    ROWS,
    dot,
    facing,
    gradient_width,
    head_tile,
    heads_of,
    join_heads,
    mask_cap,
    only_rows,
    slice_of_head,
)  # fmt: skip
from omni_jax.kernels.shared import out_like


def _query_kernel(owners, words, bounds, lse, delta, q, k, v, dout, dq, weights, cap, sums, *, sizes, keys):
    head_dim, group, tile = sizes.head_dim, sizes.group, head_tile(sizes.head_dim)
    per_tile = tile // head_dim
    heads = heads_of(k.shape[1], head_dim, group)
    word = words[pl.program_id(1)]

    @pl.when((word & FIRST) != 0)
    def _start():
        sums[...] = jnp.zeros_like(sums)

    def add(part, _):
        here = pl.ds(pl.multiple_of(part * sizes.part, ROWS), sizes.part)
        first = chunk_start(word, sizes.chunk, keys) + part * sizes.part
        cap[...] = mask_cap(bounds, first, other_start(word), sizes.part)
        for place, (t, g, n) in enumerate(heads):
            of_q = slice((t * group + g) * tile, (t * group + g + 1) * tile)
            row = (t * group + g) * per_tile + n
            s = dot(*facing(k[here, t * tile : (t + 1) * tile], q[:, of_q], n, head_dim), (1, 1))
            s = jnp.minimum(s * (head_dim**-0.5 * LOG2E), cap[...])
            weights[place] = jnp.exp2(s - lse[0, row : row + 1])
        for place, (t, g, n) in enumerate(heads):
            of_q = slice((t * group + g) * tile, (t * group + g + 1) * tile)
            row = (t * group + g) * per_tile + n
            if not place or t != heads[place - 1][0]:
                columns = k[here, t * tile : (t + 1) * tile].T
            dp = dot(*facing(v[here, t * tile : (t + 1) * tile], dout[:, of_q], n, head_dim), (1, 1))
            ds = (weights[place] * (dp - delta[0, row : row + 1])).astype(k.dtype)
            own = slice(row * head_dim, (row + 1) * head_dim)
            sums[own] += dot(columns[n * head_dim : (n + 1) * head_dim], ds, (1, 0))

    jax.lax.fori_loop(0, sizes.chunk // sizes.part, add, None)

    @pl.when((word & LAST) != 0)
    def _finish():
        for row in range(0, len(heads), per_tile):
            of_tile = slice(row * head_dim, (row + per_tile) * head_dim)
            dq[:, of_tile] = (sums[of_tile] * head_dim**-0.5).astype(dq.dtype).T


def flat_backward_queries(
    schedule: Schedule, bounds, lse, delta, query, key, value, dout, *, sizes: FlatSizes, interpret
):
    """Gradient of the queries, [T, N*H]. lse and delta are [steps, heads of a step, T']."""
    keys, steps = key.shape[0], key.shape[1] // sizes.lanes
    of_q = pl.BlockSpec((sizes.block, sizes.group * sizes.lanes), lambda h, i, owner, word: (owner[i], h))
    of_row = pl.BlockSpec((1, sizes.heads, sizes.block), lambda h, i, owner, word: (h, 0, owner[i]))
    of_kv = pl.BlockSpec(
        (pl.Element(sizes.chunk), pl.Element(sizes.lanes)),
        lambda h, i, owner, word: (chunk_start(word[i], sizes.chunk, keys), h * sizes.lanes),
    )
    of_bounds = pl.BlockSpec((8, sizes.block), lambda h, i, owner, word: (0, owner[i]))
    inputs = (bounds, lse, delta, query, key, value, dout)
    return pl.pallas_call(
        functools.partial(_query_kernel, sizes=sizes, keys=keys),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(steps, schedule.count),
            in_specs=[of_bounds, of_row, of_row, of_q, of_kv, of_kv, of_q],
            out_specs=of_q,
            scratch_shapes=[
                pltpu.VMEM((sizes.kv_heads * sizes.group, sizes.part, sizes.block), jnp.float32),
                pltpu.VMEM((sizes.part, sizes.block), jnp.float32),
                pltpu.VMEM((sizes.kv_heads * sizes.group * sizes.head_dim, sizes.block), jnp.float32),
            ],
        ),
        out_shape=out_like(query.shape, query.dtype, *inputs),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=sizes.vmem_limit
        ),
        interpret=interpret,
        name="interval_attention_flat_dq",
    )(schedule.owner, schedule.word, *inputs)


def _key_kernel(
    owners, words, bounds, lse, delta, q, k, v, dout, dk, dv, weights, cap, dk_sums, dv_sums, *, sizes, length
):
    head_dim, group, tile = sizes.head_dim, sizes.group, head_tile(sizes.head_dim)
    per_tile = tile // head_dim
    heads = heads_of(k.shape[1], head_dim, group)
    pair = pl.program_id(1)
    word, first_key = words[pair], owners[pair] * sizes.block

    @pl.when((word & FIRST) != 0)
    def _start():
        dk_sums[...] = jnp.zeros_like(dk_sums)
        dv_sums[...] = jnp.zeros_like(dv_sums)

    def add(part, _):
        rows = pl.ds(pl.multiple_of(part * sizes.part, ROWS), sizes.part)
        lanes = pl.ds(pl.multiple_of(part * sizes.part, LANES), sizes.part)
        left = length - other_start(word) - part * sizes.part
        cap[...] = mask_cap(bounds[:, lanes], first_key, 0, sizes.block)

        def tile_of(ref, t, g):
            x = ref[rows, (t * group + g) * tile : (t * group + g + 1) * tile]
            return only_rows(x, left) if length % sizes.chunk else x

        for place, (t, g, n) in enumerate(heads):
            row = (t * group + g) * per_tile + n
            s = dot(*facing(k[:, t * tile : (t + 1) * tile], tile_of(q, t, g), n, head_dim), (1, 1))
            s = jnp.minimum(s * (head_dim**-0.5 * LOG2E), cap[...])
            weights[place] = jnp.exp2(s - lse[0, row : row + 1, lanes])
        for place, (t, g, n) in enumerate(heads):
            row = (t * group + g) * per_tile + n
            p = weights[place]
            wide, of_out = facing(v[:, t * tile : (t + 1) * tile], tile_of(dout, t, g), n, head_dim)
            ds = (p * (dot(wide, of_out, (1, 1)) - delta[0, row : row + 1, lanes])).astype(q.dtype)
            _, of_q = facing(k[:, t * tile : (t + 1) * tile], tile_of(q, t, g), n, head_dim)
            into = slice_of_head(t, n, head_dim)
            dv_sums[:, into] += dot(p.astype(dout.dtype), of_out, (1, 0))
            dk_sums[:, into] += dot(ds, of_q, (1, 0))

    jax.lax.fori_loop(0, sizes.chunk // sizes.part, add, None)

    @pl.when((word & LAST) != 0)
    def _finish():
        dk[...] = join_heads(dk_sums[...] * head_dim**-0.5, head_dim).astype(dk.dtype)
        dv[...] = join_heads(dv_sums[...], head_dim).astype(dv.dtype)


def flat_backward_keys(schedule: Schedule, bounds, lse, delta, query, key, value, dout, *, sizes: FlatSizes, interpret):
    """Gradients of the keys and values, [S, K*H] each. lse and delta are [steps, heads of a step, T']."""
    length, steps = query.shape[0], key.shape[1] // sizes.lanes

    def of_chunk(word):
        return jax.lax.div(other_start(word), sizes.chunk)  # Mosaic's floor division asks which chip is here

    of_q = pl.BlockSpec((sizes.chunk, sizes.group * sizes.lanes), lambda h, i, owner, word: (of_chunk(word[i]), h))
    of_row = pl.BlockSpec((1, sizes.heads, sizes.chunk), lambda h, i, owner, word: (h, 0, of_chunk(word[i])))
    of_kv = pl.BlockSpec((sizes.block, sizes.lanes), lambda h, i, owner, word: (owner[i], h))
    of_bounds = pl.BlockSpec((8, sizes.chunk), lambda h, i, owner, word: (0, of_chunk(word[i])))
    inputs = (bounds, lse, delta, query, key, value, dout)
    width = gradient_width(sizes.kv_heads, sizes.head_dim)
    return pl.pallas_call(
        functools.partial(_key_kernel, sizes=sizes, length=length),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(steps, schedule.count),
            in_specs=[of_bounds, of_row, of_row, of_q, of_kv, of_kv, of_q],
            out_specs=[of_kv, of_kv],
            scratch_shapes=[
                pltpu.VMEM((sizes.kv_heads * sizes.group, sizes.block, sizes.part), jnp.float32),
                pltpu.VMEM((sizes.block, sizes.part), jnp.float32),
                pltpu.VMEM((sizes.block, width), jnp.float32),
                pltpu.VMEM((sizes.block, width), jnp.float32),
            ],
        ),
        out_shape=[out_like(x.shape, x.dtype, *inputs) for x in (key, value)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=sizes.vmem_limit
        ),
        interpret=interpret,
        name="interval_attention_flat_dkv",
    )(schedule.owner, schedule.word, *inputs)
