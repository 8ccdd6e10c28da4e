"""Gradients of interval attention on GPUs (arXiv:2307.08691, section 3.2), from the saved log-sum-exp.

One kernel makes the queries' gradient, by the forward pass's walk over keys. Another makes those of keys and values: a
program holds one block of keys of one key-value head and walks over the query blocks that touch it, for each of the
head's queries in turn, so nothing is summed between programs and the result is the same in every run.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from omni_jax.kernels.interval_attention.gpu_tiles import (
    LOG2_E,
    GpuBlocks,
    column_mask,
    load_mask,
    padded_width,
    row_mask,
    seen_of,
    walk,
)
from omni_jax.kernels.shared import dot, out_like


def backward_blocks(itemsize: int) -> GpuBlocks:
    """Tiles of both kernels, for the bytes of an element.

    Measured with ptxas for an H100 at bfloat16 heads of 128: 226 registers a thread for queries and 244 for keys,
    nothing spilled, 98 KB of shared memory, so that two programs fit a multiprocessor. float32 spills with tiles of 64.
    """
    side = 64 if itemsize <= 2 else 32
    return GpuBlocks(query=side, key=side, warps=4, stages=2)


def gradients(query, key, value, start, stop, out, log_sum, d_out, *, interpret: bool):
    """Gradients of query [T, N, H], key and value [S, K, H]; start, stop and log_sum are padded in T by the caller."""
    with jax.named_scope("interval_attention_backward"):
        delta = jnp.einsum("tnh,tnh->nt", d_out, out, preferred_element_type=jnp.float32)
        delta = jnp.pad(delta, ((0, 0), (0, log_sum.shape[1] - len(query))))
        operands = (query, key, value, d_out, log_sum, delta, start, stop)
        return _query_gradient(*operands, interpret), *_key_gradients(*operands, interpret)


def _query_gradient(query, key, value, d_out, log_sum, delta, start, stop, interpret):
    length, heads, width = query.shape
    keys, kv_heads, _ = key.shape
    blocks, padded, group = backward_blocks(key.dtype.itemsize), padded_width(width), heads // kv_heads
    whole = pl.BlockSpec((pl.cdiv(keys, blocks.key) * blocks.key, None, padded), lambda i, n: (0, n // group, 0))
    tile = pl.BlockSpec((blocks.query, None, padded), lambda i, n: (i, n, 0))
    of_head = pl.BlockSpec((None, blocks.query), lambda i, n: (n, i))
    row = pl.BlockSpec((blocks.query,), lambda i, n: (i,))
    return pl.pallas_call(
        functools.partial(_query_kernel, length=length, keys=keys, width=width, block=blocks.key),
        grid=(pl.cdiv(length, blocks.query), heads),
        in_specs=[tile, whole, whole, tile, of_head, of_head, row, row],
        out_specs=tile,
        out_shape=out_like(query.shape, query.dtype, query, key, value, d_out, start, stop),
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name="interval_attention_backward_query",
    )(query, key, value, d_out, log_sum, delta, start, stop)


def _query_kernel(
    query_ref, key_ref, value_ref, d_out_ref, log_sum_ref, delta_ref, start_ref, stop_ref, d_query_ref,
    *, length, keys, width, block,
):  # fmt: skip
    rows, padded = query_ref.shape
    start, stop, delta, log_sum = start_ref[...], stop_ref[...], delta_ref[...], log_sum_ref[...]
    tile_mask = row_mask(pl.program_id(0) * rows, rows, length) & column_mask(padded, width)
    query = plgpu.load(query_ref, mask=tile_mask, other=0)
    d_out = plgpu.load(d_out_ref, mask=tile_mask, other=0)
    to_base_2 = width**-0.5 * LOG2_E

    def add(index, d_query, masked):
        at = pl.ds(index * block, block)
        mask = load_mask(index * block, block, keys, padded, width, edge=masked)
        k, v = (plgpu.load(ref.at[at, :], mask=mask, other=None if mask is None else 0) for ref in (key_ref, value_ref))
        scores = dot(query, k.T)
        weights = jnp.exp2(scores * to_base_2 - log_sum[:, None])
        if masked:
            weights = jnp.where(seen_of(index * block, block, start, stop), weights, 0.0)
        d_weights = dot(d_out, v.T)
        d_scores = weights * (d_weights - delta[:, None])
        return d_query + dot(d_scores.astype(k.dtype), k)

    d_query = walk(add, jnp.zeros((rows, padded), jnp.float32), start, stop, keys, block) * width**-0.5
    plgpu.store(d_query_ref, d_query.astype(d_query_ref.dtype), mask=tile_mask)


def _key_gradients(query, key, value, d_out, log_sum, delta, start, stop, interpret):
    length, heads, width = query.shape
    keys, kv_heads, _ = key.shape
    blocks, padded, group = backward_blocks(key.dtype.itemsize), padded_width(width), heads // kv_heads
    num_blocks, padded_length = pl.cdiv(keys, blocks.key), log_sum.shape[1]
    first, last = touching_blocks(start, stop, blocks.query, blocks.key, num_blocks)
    group_rows = pl.BlockSpec((padded_length, group, padded), lambda j, k: (0, k, 0))
    group_sums = pl.BlockSpec((group, padded_length), lambda j, k: (k, 0))
    tile = pl.BlockSpec((blocks.key, None, padded), lambda j, k: (j, k, 0))
    row = pl.BlockSpec((padded_length,), lambda j, k: (0,))
    scalar = pl.BlockSpec((num_blocks,), lambda j, k: (0,))
    outs = [out_like(each.shape, each.dtype, query, key, value, d_out, start, stop) for each in (key, value)]
    return pl.pallas_call(
        functools.partial(_key_kernel, length=length, keys=keys, width=width, block=blocks.query),
        grid=(num_blocks, kv_heads),
        in_specs=[group_rows, tile, tile, group_rows, group_sums, group_sums, row, row, scalar, scalar],
        out_specs=[tile, tile],
        out_shape=outs,
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name="interval_attention_backward_key_value",
    )(query, key, value, d_out, log_sum, delta, start, stop, first, last)


def _key_kernel(
    query_ref, key_ref, value_ref, d_out_ref, log_sum_ref, delta_ref, start_ref, stop_ref, first_ref, last_ref,
    d_key_ref, d_value_ref, *, length, keys, width, block,
):  # fmt: skip
    rows, padded = key_ref.shape
    group = query_ref.shape[1]
    index_of_block = pl.program_id(0)
    tile_mask = row_mask(index_of_block * rows, rows, keys) & column_mask(padded, width)
    key = plgpu.load(key_ref, mask=tile_mask, other=0)
    value = plgpu.load(value_ref, mask=tile_mask, other=0)
    place = (index_of_block * rows + jnp.arange(rows))[:, None]
    first, last = first_ref[index_of_block], last_ref[index_of_block]
    to_base_2 = width**-0.5 * LOG2_E

    def add_head(head, carry):
        def add(index, carry):
            d_key, d_value = carry
            at = pl.ds(index * block, block)
            mask = load_mask(index * block, block, length, padded, width, edge=True)
            query, d_out = (
                plgpu.load(ref.at[at, head, :], mask=mask, other=None if mask is None else 0)
                for ref in (query_ref, d_out_ref)
            )
            # keys × queries, so that both sums over queries take their left side as it is
            scores = dot(key, query.T)
            seen = (place >= start_ref[at][None]) & (place < stop_ref[at][None])
            weights = jnp.where(seen, jnp.exp2(scores * to_base_2 - log_sum_ref[head, at][None]), 0.0)
            d_value += dot(weights.astype(d_out.dtype), d_out)
            d_weights = dot(value, d_out.T)
            d_scores = weights * (d_weights - delta_ref[head, at][None])
            d_key += dot(d_scores.astype(query.dtype), query)
            return d_key, d_value

        return jax.lax.fori_loop(first, last, add, carry)

    zeros = jnp.zeros((rows, padded), jnp.float32)
    d_key, d_value = jax.lax.fori_loop(0, group, add_head, (zeros, zeros))
    plgpu.store(d_key_ref, (d_key * width**-0.5).astype(d_key_ref.dtype), mask=tile_mask)
    plgpu.store(d_value_ref, d_value.astype(d_value_ref.dtype), mask=tile_mask)


def touching_blocks(start, stop, query_block: int, key_block: int, num_key_blocks: int):
    """Range first <= i < last of query blocks that may see each block of keys, for any bounds; Int32 [key blocks].

    The table of all pairs of blocks is only reduced, never stored: XLA fuses it into the reductions.
    """
    sees = start < stop
    low = jnp.min(jnp.where(sees, start, jnp.iinfo(jnp.int32).max).reshape(-1, query_block), axis=1)
    high = jnp.max(jnp.where(sees, stop, 0).reshape(-1, query_block), axis=1)
    begin = jnp.arange(num_key_blocks, dtype=jnp.int32)[:, None] * key_block
    touches = (low < begin + key_block) & (high > begin)
    index = jnp.arange(len(low), dtype=jnp.int32)
    first = jnp.min(jnp.where(touches, index, len(low)), axis=1)
    return first, jnp.max(jnp.where(touches, index + 1, 0), axis=1)
