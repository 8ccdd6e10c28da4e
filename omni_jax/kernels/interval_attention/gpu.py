"""Interval attention on GPUs: flash attention in Pallas Triton (arXiv:2205.14135, arXiv:2307.08691).

A program holds one block of queries of one head and walks over the key blocks that its rows can touch. Key blocks that
every row sees whole need no mask, so the walk is in three parts: left edge, inside, right edge. The backward pass is in
`gpu_backward.py`.

JAX's own kernels cover less. `pallas.ops.gpu.attention.mha` knows causal masks and segments, but walks over every key
before the diagonal and refuses lengths that its tiles do not divide. `jax.nn.dot_product_attention` with
implementation="cudnn" is NVIDIA's tuned kernel and the one to try first for plain causal attention, without packing,
where speed on a real GPU is measured; it takes no table of intervals.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from omni_jax.kernels.interval_attention import gpu_backward
from omni_jax.kernels.interval_attention.gpu_tiles import (
    LOG2_E,
    MASKED,
    GpuBlocks,
    column_mask,
    load_mask,
    padded_width,
    row_mask,
    seen_of,
    walk,
)
from omni_jax.kernels.shared import dot, out_like

# Lengths of padded side arrays (bounds, log-sum-exp): a multiple of every block size below.
_LARGEST_BLOCK = 128


def forward_blocks(width: int, itemsize: int) -> GpuBlocks:
    """Tiles of the forward kernel for a head size and the bytes of an element.

    Heads of 128 belong to the decoders (long causal rows: large tiles reuse each key more often); smaller heads to the
    encoders and the DiT, whose blocks of 24 to 100 positions would fill large tiles with masked scores. Measured with
    ptxas for an H100 at bfloat16 heads of 128: 186 registers a thread, nothing spilled, 131 KB of shared memory.
    float32 would need 224 KB for these tiles, more than an A100 has.
    """
    if itemsize > 2:
        return GpuBlocks(query=64, key=32, warps=4, stages=2)
    if width > 64:
        return GpuBlocks(query=128, key=64, warps=8, stages=3)
    return GpuBlocks(query=64, key=64, warps=4, stages=3)


def interval_attention_gpu(
    query: Float[Array, "T N H"],
    key: Float[Array, "S K H"],
    value: Float[Array, "S K H"],
    start: Int[Array, "T"],
    stop: Int[Array, "T"],
    *,
    interpret: bool = False,
) -> Float[Array, "T N H"]:
    """Query i attends to the keys start[i] <= j < stop[i]; a row without keys gives zeros. Scale is H^-0.5.

    Query head n reads key-value head n // (N / K). Products run in the inputs' dtype (bfloat16 or float32), softmax
    and sums in float32. Differentiable in query, key and value. Any lengths, any bounds, any head size.
    """
    if 0 in query.shape or 0 in key.shape:
        return jnp.zeros_like(query)
    rows = -len(start) % _LARGEST_BLOCK  # rows past the end see nothing
    start = jnp.pad(jnp.maximum(start, 0), (0, rows)).astype(jnp.int32)
    stop = jnp.pad(jnp.minimum(stop, key.shape[0]), (0, rows)).astype(jnp.int32)
    return _attention(query, key, value, start, stop, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(query, key, value, start, stop, interpret):
    return _forward(query, key, value, start, stop, interpret)[0]


def _attention_forward(query, key, value, start, stop, interpret):
    out, log_sum = _forward(query, key, value, start, stop, interpret)
    return out, (query, key, value, start, stop, out, log_sum)


def _attention_backward(interpret, saved, d_out):
    return *gpu_backward.gradients(*saved, d_out, interpret=interpret), None, None


_attention.defvjp(_attention_forward, _attention_backward)


def _forward(query, key, value, start, stop, interpret):
    """Output, and the base-2 logarithm of each row's sum of exponentials [N, padded T] (1e30 where it sees nothing)."""
    length, heads, width = query.shape
    keys, kv_heads, _ = key.shape
    blocks, padded, group = forward_blocks(width, key.dtype.itemsize), padded_width(width), heads // kv_heads
    kernel = functools.partial(_forward_kernel, length=length, keys=keys, width=width, block=blocks.key)
    whole = pl.BlockSpec((pl.cdiv(keys, blocks.key) * blocks.key, None, padded), lambda i, n: (0, n // group, 0))
    tile = pl.BlockSpec((blocks.query, None, padded), lambda i, n: (i, n, 0))
    row = pl.BlockSpec((blocks.query,), lambda i, n: (i,))
    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(length, blocks.query), heads),
        in_specs=[tile, whole, whole, row, row],
        out_specs=[tile, pl.BlockSpec((None, blocks.query), lambda i, n: (n, i))],
        out_shape=[
            out_like((length, heads, width), query.dtype, query, key, value, start, stop),
            out_like((heads, len(start)), jnp.float32, query, key, value, start, stop),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name="interval_attention_forward",
    )(query, key, value, start, stop)


def _forward_kernel(
    query_ref, key_ref, value_ref, start_ref, stop_ref, out_ref, log_sum_ref, *, length, keys, width, block
):
    rows, padded = query_ref.shape
    start, stop = start_ref[...], stop_ref[...]
    tile_mask = row_mask(pl.program_id(0) * rows, rows, length) & column_mask(padded, width)
    query = plgpu.load(query_ref, mask=tile_mask, other=0)
    to_base_2 = width**-0.5 * LOG2_E

    def add(index, carry, masked):
        largest, total, out = carry
        at = pl.ds(index * block, block)
        mask = load_mask(index * block, block, keys, padded, width, edge=masked)
        k = plgpu.load(key_ref.at[at, :], mask=mask, other=None if mask is None else 0)
        scores = dot(query, k.T)
        if masked:
            scores = jnp.where(seen_of(index * block, block, start, stop), scores, MASKED)
        new = jnp.maximum(largest, jnp.max(scores, axis=1))
        # a row that has seen nothing yet: subtracting MASKED from itself leaves a rounding error of 1e22 with an FMA
        offset = jnp.where(new > MASKED, new, 0.0) if masked else new
        weights = jnp.exp2(scores * to_base_2 - (offset * to_base_2)[:, None])
        shrink = jnp.exp2((largest - new) * to_base_2)
        v = plgpu.load(value_ref.at[at, :], mask=mask, other=None if mask is None else 0)
        out = out * shrink[:, None] + dot(weights.astype(v.dtype), v)
        return new, total * shrink + jnp.sum(weights, axis=1), out

    zeros = jnp.zeros((rows,), jnp.float32)
    carry = (zeros + MASKED, zeros, jnp.zeros((rows, padded), jnp.float32))
    largest, total, out = walk(add, carry, start, stop, keys, block)

    sees = start < stop
    total = jnp.where(sees, total, 1.0)
    log_sum_ref[...] = jnp.where(sees, largest * to_base_2 + jnp.log2(total), -MASKED)
    out = jnp.where(sees[:, None], out / total[:, None], 0.0)
    plgpu.store(out_ref, out.astype(out_ref.dtype), mask=tile_mask)
