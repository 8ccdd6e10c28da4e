"""Cache attention on TPUs: Pallas Mosaic, flash attention's running softmax over blocks of slots (arXiv:2205.14135).

Memory bounds decoding, the matrix unit a chunk; each has its own orientation of the scores.

The grid is (rows of the batch, kv heads, blocks of tokens, blocks of slots). Layer and first slots are prefetched
scalars: they choose the block of the cache that a step loads, straight out of the stack. The last axis of the grid is
as long as the longest row needs; where a row needs fewer, its last block stays put and nothing is loaded.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from omni_jax.kernels.cache_attention.block_sizes import FEW_ROWS, cache_blocks
from omni_jax.kernels.cache_attention.rows import heads_of_rows, lay_rows
from omni_jax.kernels.shared import out_like
from omni_jax.kernels.target import current_target

_MASKED = -1e30
_LOG2_E = math.log2(math.e)
_LANES, _SUBLANES = 128, 8


def cache_attention_tpu(
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
    _, _, kv_heads, slots, _ = key.shape
    group = heads // kv_heads
    blocks = cache_blocks(
        current_target(), batch=batch, length=length, heads=heads, kv_heads=kv_heads, slots=slots, width=width,
        itemsize=key.dtype.itemsize,
    )  # fmt: skip
    rows, all_blocks = blocks.tokens * group, pl.cdiv(slots, blocks.slots)

    def last_block(start, piece):
        """The last block of slots that a block of tokens sees."""
        tokens = jnp.minimum((piece + 1) * blocks.tokens, length)
        # not `//`: its lowering asks for the device, which an ahead-of-time compile does not have
        return jnp.minimum(jax.lax.div(start + tokens - 1, blocks.slots), all_blocks - 1)

    def at_cache(b, k, piece, j, layer, start):
        return layer[0], b, k, jnp.minimum(j, last_block(start[b], piece)), 0

    tile = pl.BlockSpec((None, blocks.heads, rows, width), lambda b, k, piece, j, *_: (b, k, piece, 0))
    cache = pl.BlockSpec((None, None, blocks.heads, blocks.slots, width), at_cache)
    pieces = pl.cdiv(length, blocks.tokens)
    if rows <= FEW_ROWS:
        parts, running, sums = (_add_few_rows, _finish_few_rows), (rows, _LANES), (rows, width)
    else:
        parts, running, sums = (_add_many_rows, _finish_many_rows), (_SUBLANES, rows), (width, rows)
    running, sums = (pltpu.VMEM((blocks.heads, *shape), jnp.float32) for shape in (running, sums))
    kernel = functools.partial(
        _kernel, parts, last_block=last_block, length=length, tokens=blocks.tokens, group=group, block=blocks.slots
    )
    out = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, kv_heads // blocks.heads, pieces, last_block(jnp.max(start), pieces - 1) + 1),
            in_specs=[tile, cache, cache],
            out_specs=tile,
            scratch_shapes=[running, running, sums],
        ),
        out_shape=out_like((batch, kv_heads, length * group, width), query.dtype, query, key, value, layer, start),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="cache_attention",
    )(layer[None], start, lay_rows(query, kv_heads).astype(key.dtype), key, value)
    return heads_of_rows(out, length)


def _kernel(
    parts, layer_ref, start_ref, query_ref, key_ref, value_ref, out_ref, largest_ref, total_ref, sum_ref,
    *, last_block, length, tokens, group, block,
):  # fmt: skip
    add, finish = parts
    piece, j = pl.program_id(2), pl.program_id(3)
    start = start_ref[pl.program_id(0)]
    first_own = start + piece * tokens  # the last slot that the block's first token sees
    last = last_block(start, piece)
    heads = query_ref.shape[0]

    @pl.when(j == 0)
    def _():
        largest_ref[...] = jnp.full_like(largest_ref, _MASKED)
        total_ref[...] = jnp.zeros_like(total_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    def step(edge: bool):
        for head in range(heads):
            value = value_ref[head]
            if edge:  # what lies past the used part may be anything, and zero times NaN is NaN
                slot = j * block + jax.lax.broadcasted_iota(jnp.int32, value.shape, 0)
                value = jnp.where(slot < start + length, value, jnp.zeros_like(value))
            # slot <= own slot of a row, which is first_own + row // group; without the division
            mask = (lambda slot, row: (j * block + slot - first_own) * group <= row) if edge else None
            add(query_ref[head], key_ref[head], value, mask, largest_ref.at[head], total_ref.at[head], sum_ref.at[head])

    whole = (j + 1) * block <= first_own + 1
    pl.when((j <= last) & whole)(lambda: step(edge=False))
    pl.when((j <= last) & ~whole)(lambda: step(edge=True))

    @pl.when(j == last)
    def _():
        for head in range(heads):
            out_ref[head] = finish(total_ref[head], sum_ref[head]).astype(out_ref.dtype)


def _add_few_rows(query, key, value, mask, largest_ref, total_ref, sum_ref):
    """Scores [rows, slots]: a handful of rows fills registers only with slots on lanes."""
    scores = _dot(query, key, (1, 1)) * (query.shape[1] ** -0.5 * _LOG2_E)
    if mask is not None:
        slot, row = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (1, 0))
        scores = jnp.where(mask(slot, row), scores, _MASKED)
    before = largest_ref[:, :1]
    largest = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))  # every row sees slot 0: never _MASKED
    weights, shrink = jnp.exp2(scores - largest), jnp.exp2(before - largest)
    total = total_ref[:, :1] * shrink + jnp.sum(weights, axis=1, keepdims=True)
    sum_ref[...] = sum_ref[...] * shrink + _dot(weights.astype(value.dtype), value, (1, 0))
    largest_ref[...] = jnp.broadcast_to(largest, largest_ref.shape)
    total_ref[...] = jnp.broadcast_to(total, total_ref.shape)


def _add_many_rows(query, key, value, mask, largest_ref, total_ref, sum_ref):
    """Scores [slots, rows]: maximum and sum over slots work on whole registers, and what belongs to a row broadcasts
    for free.

    Measured by the compiler's schedule at 896 rows and 512 slots, against the other orientation: 2,682 bundles instead
    of 3,501 on a v5e, 1,809 instead of 3,292 on a v6e.
    """
    scores = _dot(key, query, (1, 1)) * (query.shape[1] ** -0.5 * _LOG2_E)
    if mask is not None:
        slot, row = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (0, 1))
        scores = jnp.where(mask(slot, row), scores, _MASKED)
    before = largest_ref[:1]
    largest = jnp.maximum(before, jnp.max(scores, axis=0, keepdims=True))
    weights, shrink = jnp.exp2(scores - largest), jnp.exp2(before - largest)
    total_ref[:1] = total_ref[:1] * shrink + jnp.sum(weights, axis=0, keepdims=True)
    sum_ref[...] = sum_ref[...] * shrink + _dot(value, weights.astype(value.dtype), (0, 0))
    largest_ref[:1] = largest


def _finish_few_rows(total, sums):
    return sums / total[:, :1]


def _finish_many_rows(total, sums):
    return (sums / total[:1]).T


def _dot(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Contracts one axis of each; float32 out, and float32 operands are not rounded."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    contract = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(a, b, contract, precision=precision, preferred_element_type=jnp.float32)
