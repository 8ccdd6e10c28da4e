"""Gradients of the kernel in tpu_window.py, all three in one pass.

Queries go by in order, so the gradients of keys are summed in a window that slides along with them: when the queries
of block i are done, nobody is left who sees the keys of block i - 1 (the reach is at most a block).

    window at step i   │ done │ i-1 ► out │ i │ i+1 │ …        then everything moves one block to the left
"""

import functools

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

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
    round_up,
    slice_of_head,
)  # fmt: skip
from omni_jax.kernels.interval_attention.tpu_window import WindowSizes
from omni_jax.kernels.shared import out_like


def _kernel(
    bounds, lse, delta, q, k, v, dout, dq, dk, dv, weights, cap, dk_sums, dv_sums, *, sizes: WindowSizes, length, keys
):
    head_dim, group, tile, block = sizes.head_dim, sizes.group, head_tile(sizes.head_dim), sizes.block
    per_tile, done = tile // head_dim, 2 * round_up(sizes.reach, ROWS)
    heads = heads_of(sizes.stage * head_dim, head_dim, group)
    wide = gradient_width(sizes.stage, head_dim)
    i = pl.program_id(1)
    window = dk_sums.shape[0]

    @pl.when(i == 0)
    def _start():
        dk_sums[...] = jnp.zeros_like(dk_sums)
        dv_sums[...] = jnp.zeros_like(dv_sums)

    @pl.when(i < pl.cdiv(length, block))
    def _add():
        first = sizes.first_key(i, keys)
        # Chunks that were moved into the array reach into what is done; they add zeros there.
        into = pl.ds(pl.multiple_of(jnp.maximum(first - (i - 1) * block + done, 0), ROWS), sizes.chunk)
        cap[...] = mask_cap(bounds, first, 0, sizes.chunk)

        def tile_of(ref, t, g):
            x = ref[:, (t * group + g) * tile : (t * group + g + 1) * tile]
            return only_rows(x, length - i * block) if length % block else x

        def stage(index, of_q, of_kv):
            qs, ks, vs = q.at[:, of_q], k.at[:, of_kv], v.at[:, of_kv]
            douts, to = dout.at[:, of_q], dq.at[:, of_q]
            summed = pl.ds(pl.multiple_of(index * wide, LANES), wide)
            dk_here, dv_here = dk_sums.at[:, summed], dv_sums.at[:, summed]
            for place, (t, g, n) in enumerate(heads):
                row = pl.ds(index * len(heads) + (t * group + g) * per_tile + n, 1)
                s = dot(*facing(ks[:, t * tile : (t + 1) * tile], tile_of(qs, t, g), n, head_dim), (1, 1))
                s = jnp.minimum(s * (head_dim**-0.5 * LOG2E), cap[...])
                weights[place] = jnp.exp2(s - lse[0, row])
            grads = []
            for place, (t, g, n) in enumerate(heads):
                of_k = slice(t * tile, (t + 1) * tile)
                if not place or t != heads[place - 1][0]:
                    columns = ks[:, of_k].T
                row = pl.ds(index * len(heads) + (t * group + g) * per_tile + n, 1)
                p = weights[place]
                values, of_out = facing(vs[:, of_k], tile_of(douts, t, g), n, head_dim)
                ds = (p * (dot(values, of_out, (1, 1)) - delta[0, row])).astype(k.dtype)
                _, of_query = facing(ks[:, of_k], tile_of(qs, t, g), n, head_dim)
                of_head = slice_of_head(t, n, head_dim)
                dv_here[into, of_head] += dot(p.astype(dout.dtype), of_out, (1, 0))
                dk_here[into, of_head] += dot(ds, of_query, (1, 0))
                grads.append(dot(columns[n * head_dim : (n + 1) * head_dim], ds, (1, 0)))
                if n == per_tile - 1:
                    of_tile = slice((t * group + g) * tile, (t * group + g + 1) * tile)
                    to[:, of_tile] = (jnp.concatenate(grads) * head_dim**-0.5).astype(dq.dtype).T
                    grads = []

        sizes.for_each_stage(stage)

    @pl.when((i > 0) & (i <= pl.cdiv(keys, block)))
    def _give():
        dk[...] = join_heads(dk_sums[done : done + block] * head_dim**-0.5, head_dim).astype(dk.dtype)
        dv[...] = join_heads(dv_sums[done : done + block], head_dim).astype(dv.dtype)

    for sums in (dk_sums, dv_sums):
        sums[0 : window - block] = sums[block:window]
        sums[window - block : window] = jnp.zeros((block, sums.shape[1]), sums.dtype)


def window_backward(bounds, lse, delta, query, key, value, dout, *, sizes: WindowSizes, interpret: bool):
    """Gradients of query [T, N*H], key and value [S, K*H]. lse and delta are [steps, heads of a step, T']."""
    length, keys, block = query.shape[0], key.shape[0], sizes.block
    steps, of_queries, of_keys = key.shape[1] // sizes.lanes, pl.cdiv(length, block), pl.cdiv(keys, block)

    def asked(i):
        return jnp.minimum(i, of_queries - 1)

    of_q = pl.BlockSpec((block, sizes.group * sizes.lanes), lambda h, i: (asked(i), h))
    of_row = pl.BlockSpec((1, lse.shape[1], block), lambda h, i: (h, 0, asked(i)))
    of_kv = pl.BlockSpec(
        (pl.Element(sizes.chunk), pl.Element(sizes.lanes)),
        lambda h, i: (sizes.first_key(asked(i), keys), h * sizes.lanes),
    )
    finished = pl.BlockSpec((block, sizes.lanes), lambda h, i: (jnp.clip(i - 1, 0, of_keys - 1), h))
    inputs = (bounds, lse, delta, query, key, value, dout)
    reach = round_up(sizes.reach, ROWS)
    sums = pltpu.VMEM((4 * reach + 2 * block, gradient_width(sizes.kv_heads, sizes.head_dim)), jnp.float32)
    return pl.pallas_call(
        functools.partial(_kernel, sizes=sizes, length=length, keys=keys),
        grid=(steps, max(of_queries, of_keys) + 1),
        in_specs=[pl.BlockSpec((8, block), lambda h, i: (0, asked(i))), of_row, of_row, of_q, of_kv, of_kv, of_q],
        out_specs=[of_q, finished, finished],
        out_shape=[out_like(x.shape, x.dtype, *inputs) for x in (query, key, value)],
        scratch_shapes=[
            pltpu.VMEM((sizes.waiting, sizes.chunk, block), jnp.float32),
            pltpu.VMEM((sizes.chunk, block), jnp.float32),
            sums,
            sums,
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=sizes.vmem_limit
        ),
        interpret=interpret,
        name="interval_attention_window_grad",
    )(*inputs)
