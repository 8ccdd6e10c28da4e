"""Row sums of dout * out, of each head: what the softmax's gradient subtracts.

A kernel of its own because XLA would write the float32 products out before it sums them: 4 bytes for each of T * N * H.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from omni_jax.kernels.interval_attention.tpu_parts import dot, head_tile
from omni_jax.kernels.shared import out_like


def _kernel(out, dout, delta, *, head_dim: int, length: int):
    tile = head_tile(head_dim)
    per_tile, block = tile // head_dim, out.shape[0]
    head, column = (jax.lax.broadcasted_iota(jnp.int32, (per_tile, tile), axis) for axis in (0, 1))
    own = ((column >= head * head_dim) & (column < (head + 1) * head_dim)).astype(jnp.float32)
    query = pl.program_id(1) * block + jax.lax.broadcasted_iota(jnp.int32, (per_tile, block), 1)
    for t in range(out.shape[1] // tile):
        of_tile = slice(t * tile, (t + 1) * tile)
        product = out[:, of_tile].astype(jnp.float32) * dout[:, of_tile].astype(jnp.float32)
        # Beyond the last query the block holds anything, also NaN.
        sums = jnp.where(query < length, dot(own, product, (1, 1)), 0)
        delta[0, t * per_tile : (t + 1) * per_tile] = sums


def row_sums(out, dout, like, *, head_dim: int, lanes: int, block: int, interpret: bool):
    """out and dout [T, N*H] -> float32 of the shape of `like`, the log-sum-exp [steps, heads of a step, T'].

    Args:
        lanes: columns of `out` of one step.
        block: queries of a step.
    """
    of_q = pl.BlockSpec((block, lanes), lambda h, i: (i, h))
    return pl.pallas_call(
        functools.partial(_kernel, head_dim=head_dim, length=out.shape[0]),
        grid=(like.shape[0], pl.cdiv(out.shape[0], block)),
        in_specs=[of_q, of_q],
        out_specs=pl.BlockSpec((1, like.shape[1], block), lambda h, i: (h, 0, i)),
        out_shape=out_like(like.shape, jnp.float32, out, dout),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="interval_attention_row_sums",
    )(out, dout)
