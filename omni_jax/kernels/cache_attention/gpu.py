"""Cache attention on GPUs: flash attention in Pallas Triton (arXiv:2307.08691), with the slots split for decoding.

A program holds a block of rows of one kv head and walks over its share of the slots that are in use. Where the rows
alone would leave most of the GPU idle, as in decoding, several programs share a row's slots evenly, whatever its
length; their partial results are joined by their sums of exponentials.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from omni_jax.kernels.cache_attention.rows import heads_of_rows, lay_rows
from omni_jax.kernels.shared import dot, out_like

_MASKED = -1e30
_LOG2_E = math.log2(math.e)
_SLOTS = 64  # of a tile: 16 KB of keys at bfloat16 heads of 128
_MOST_ROWS = 128
_MULTIPROCESSORS = 132  # of an H100
_MOST_SPLITS = 64


def cache_attention_gpu(
    query: Float[Array, "B T N H"],
    key: Float[Array, "L B K S H"],
    value: Float[Array, "L B K S H"],
    layer: Int[Array, ""],
    start: Int[Array, "B"],
    *,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """See `cache_attention`."""
    batch, length, heads, width = query.shape
    layers, _, kv_heads, slots, _ = key.shape
    group = heads // kv_heads
    rows_of_head = length * group
    rows = min(_MOST_ROWS, max(16, pl.next_power_of_2(rows_of_head)))  # a matrix product needs 16
    padded = max(16, pl.next_power_of_2(width))
    pieces = pl.cdiv(rows_of_head, rows)
    # Measured with ptxas at bfloat16 heads of 128: 70 KB of shared memory with 16 rows, 131 KB with 128 rows
    at_once = _MULTIPROCESSORS * (1 if rows == _MOST_ROWS else 2)
    splits = _splits(batch * kv_heads * pieces, at_once, pl.cdiv(slots, _SLOTS))
    kernel = functools.partial(
        _kernel, length=length, group=group, slots=slots, width=width, splits=splits, block=_SLOTS
    )
    padded_slots = pl.cdiv(slots, _SLOTS) * _SLOTS
    cache = pl.BlockSpec((layers, None, None, padded_slots, padded), lambda b, k, i: (0, b, k, 0, 0))
    tile = pl.BlockSpec((None, None, rows, padded), lambda b, k, i: (b, k, i // splits, 0))
    part = pl.BlockSpec((None, None, None, rows, padded), lambda b, k, i: (b, k, i % splits, i // splits, 0))
    part_sum = pl.BlockSpec((None, None, None, rows), lambda b, k, i: (b, k, i % splits, i // splits))
    operands = (lay_rows(query, kv_heads).astype(key.dtype), key, value, layer[None], start)
    dtype = query.dtype if splits == 1 else jnp.float32
    out, log_sum = pl.pallas_call(
        kernel,
        grid=(batch, kv_heads, pieces * splits),
        in_specs=[
            tile,
            cache,
            cache,
            pl.BlockSpec((1,), lambda b, k, i: (0,)),
            pl.BlockSpec((1,), lambda b, k, i: (b,)),
        ],
        out_specs=[part, part_sum],
        out_shape=[
            out_like((batch, kv_heads, splits, rows_of_head, width), dtype, *operands),
            out_like((batch, kv_heads, splits, pieces * rows), jnp.float32, *operands),
        ],
        compiler_params=plgpu.CompilerParams(
            num_warps=8 if rows == _MOST_ROWS else 4, num_stages=3 if key.dtype.itemsize <= 2 else 2
        ),
        interpret=interpret,
        name="cache_attention",
    )(*operands)
    if splits == 1:
        out = out[:, :, 0]
    else:
        log_sum = log_sum[..., :rows_of_head, None]
        weights = jnp.exp2(log_sum - jnp.max(log_sum, axis=2, keepdims=True))
        out = jnp.sum(out * weights, axis=2) / jnp.sum(weights, axis=2)
    return heads_of_rows(out.astype(query.dtype), length)


def _splits(programs: int, at_once: int, blocks: int) -> int:
    """How many programs share a row's slots: a power of two that fills the GPU, and leaves each some blocks."""
    splits = 1
    while 2 * splits * programs <= at_once and 4 * splits <= blocks and splits < _MOST_SPLITS:
        splits *= 2
    return splits


def _kernel(
    query_ref, key_ref, value_ref, layer_ref, start_ref, out_ref, log_sum_ref,
    *, length, group, slots, width, splits, block,
):  # fmt: skip
    rows, padded = query_ref.shape
    program = pl.program_id(2)
    piece, split = jax.lax.div(program, splits), jax.lax.rem(program, splits)
    layer, start = layer_ref[0], start_ref[0]
    row = piece * rows + jnp.arange(rows)
    columns = (jnp.arange(padded) < width)[None]
    tile_mask = (row < length * group)[:, None] & columns
    query = plgpu.load(query_ref, mask=tile_mask, other=0)
    to_base_2 = width**-0.5 * _LOG2_E

    # slots that the first and the last token of the block see, and this program's share of the blocks that hold them
    first_sees = start + jax.lax.div(piece * rows, group) + 1
    last_token = jnp.minimum(jax.lax.div(piece * rows + rows - 1, group), length - 1)
    last_sees = jnp.minimum(start + last_token + 1, slots)
    blocks = jax.lax.div(last_sees + block - 1, block)
    share = jax.lax.div(blocks + splits - 1, splits)
    begin = jnp.minimum(split * share, blocks)
    end = jnp.minimum(begin + share, blocks)
    whole = jnp.maximum(jnp.minimum(jax.lax.div(jnp.minimum(first_sees, slots), block), end), begin)

    def add(index, carry, edge):
        largest, total, out = carry
        at = pl.ds(index * block, block)
        slot = index * block + jnp.arange(block)
        mask = None
        if edge:  # what lies past the used part may be anything: it is not even loaded
            mask = jnp.broadcast_to((slot < jnp.minimum(start + length, slots))[:, None] & columns, (block, padded))
        elif padded != width:
            mask = jnp.broadcast_to(columns, (block, padded))
        k = plgpu.load(key_ref.at[layer, at, :], mask=mask, other=None if mask is None else 0)
        scores = dot(query, k.T)
        if edge:
            # slot <= start + row // group, without the division
            seen = ((slot - start) * group)[None] <= row[:, None]
            scores = jnp.where(seen, scores, _MASKED)
        new = jnp.maximum(largest, jnp.max(scores, axis=1))
        # a row that has seen nothing yet: subtracting _MASKED from itself leaves a rounding error of 1e22 with an FMA
        offset = jnp.where(new > _MASKED, new, 0.0) if edge else new
        weights = jnp.exp2(scores * to_base_2 - (offset * to_base_2)[:, None])
        shrink = jnp.exp2((largest - new) * to_base_2)
        v = plgpu.load(value_ref.at[layer, at, :], mask=mask, other=None if mask is None else 0)
        out = out * shrink[:, None] + dot(weights.astype(v.dtype), v)
        return new, total * shrink + jnp.sum(weights, axis=1), out

    zeros = jnp.zeros((rows,), jnp.float32)
    carry = (zeros + _MASKED, zeros, jnp.zeros((rows, padded), jnp.float32))
    carry = jax.lax.fori_loop(begin, whole, functools.partial(add, edge=False), carry)
    largest, total, out = jax.lax.fori_loop(whole, end, functools.partial(add, edge=True), carry)

    sees = total > 0  # not so where the share is empty, or lies past what the row sees
    total = jnp.where(sees, total, 1.0)
    log_sum_ref[...] = jnp.where(sees, largest * to_base_2 + jnp.log2(total), _MASKED)
    plgpu.store(out_ref, (out / total[:, None]).astype(out_ref.dtype), mask=tile_mask)
