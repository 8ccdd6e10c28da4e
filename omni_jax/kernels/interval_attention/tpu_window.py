"""Interval attention on TPU for patterns of short reach: one chunk of keys holds all that a block of queries sees.

With |i - j| < reach for every query i and key j that it sees, the queries [a, a + block) see keys in
[a - reach, a + block + reach) only: the chunk is known before anything is computed, and the softmax is done in one go.

    queries            │ a ........ a+128 │
    keys   │ a-64 ...........................a+192 │          reach 64: a chunk of 256

Arrays are [T, N*H], as projections give them, so nothing is transposed on the way in or out.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from omni_jax.kernels.interval_attention.tpu_parts import (
    LANES,
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
class WindowSizes:
    """Static sizes of the kernel.

    Attributes:
        block: queries of a step.
        kv_heads: key-value heads of a step.
        stage: of them, how many go through the softmax together: one alone leaves the units of the chip waiting.
    """

    head_dim: int
    group: int
    reach: int
    block: int
    kv_heads: int
    stage: int
    vmem_limit: int | None = None

    @property
    def chunk(self) -> int:
        """Keys of a step."""
        return self.block + 2 * round_up(self.reach, ROWS)

    @property
    def waiting(self) -> int:
        """Query heads whose scores are in memory at once."""
        return self.stage * self.group

    @property
    def lanes(self) -> int:
        return self.kv_heads * self.head_dim

    def for_each_stage(self, run) -> None:
        """Runs run(stage, columns of the queries, columns of the keys), one stage after another."""
        wide = self.stage * self.head_dim

        def one(stage, _=None):
            of_q = pl.ds(pl.multiple_of(stage * wide * self.group, LANES), wide * self.group)
            run(stage, of_q, pl.ds(pl.multiple_of(stage * wide, LANES), wide))

        jax.lax.fori_loop(0, self.kv_heads // self.stage, one, None)

    def first_key(self, index, keys: int):
        """First key of the chunk of a block of queries; chunks stay inside the `keys` that there are."""
        first = index * self.block - round_up(self.reach, ROWS)
        return pl.multiple_of(jnp.clip(first, 0, keys - self.chunk), ROWS)


def _kernel(bounds, q, k, v, out, *rest, sizes: WindowSizes, keys: int):
    lse, scores, cap = rest if len(rest) == 3 else (None, *rest)
    head_dim, group, tile = sizes.head_dim, sizes.group, head_tile(sizes.head_dim)
    first = sizes.first_key(pl.program_id(1), keys)
    cap[...] = mask_cap(bounds, first, 0, sizes.chunk)
    empty = bounds[1:2] <= bounds[0:1]
    heads = heads_of(sizes.stage * head_dim, head_dim, group)
    per_tile = tile // head_dim

    def stage(index, of_q, of_kv):
        qs, ks, vs, to = q.at[:, of_q], k.at[:, of_kv], v.at[:, of_kv], out.at[:, of_q]
        largest, outs = [], []
        for place, (t, g, n) in enumerate(heads):
            s = dot(*facing(ks[:, t * tile : (t + 1) * tile], qs[:, tile_of_q(t, g)], n, head_dim), (1, 1))
            s = jnp.minimum(s * (head_dim**-0.5 * LOG2E), cap[...])
            largest.append(jnp.max(s, axis=0, keepdims=True))
            scores[place] = s
        for place, (t, g, n) in enumerate(heads):
            if not place or t != heads[place - 1][0]:
                values = vs[:, t * tile : (t + 1) * tile].T
            p = jnp.exp2(scores[place] - largest[place])
            total = jnp.sum(p, axis=0, keepdims=True)
            o = dot(values[n * head_dim : (n + 1) * head_dim], p.astype(v.dtype), (1, 0))
            outs.append(o * jnp.where(empty, 0, 1 / total))
            if lse is not None:
                row = index * len(heads) + (t * group + g) * per_tile + n
                lse[0, pl.ds(row, 1)] = jnp.where(empty, -MASKED, largest[place] + jnp.log2(total))
            if n == per_tile - 1:
                to[:, tile_of_q(t, g)] = jnp.concatenate(outs).astype(out.dtype).T
                outs = []

    def tile_of_q(t, g):
        return slice((t * group + g) * tile, (t * group + g + 1) * tile)

    sizes.for_each_stage(stage)


def window_forward(bounds, query, key, value, *, sizes: WindowSizes, save: bool, interpret: bool):
    """bounds [8, T'], query [T, N*H], key and value [S, K*H] -> out [T, N*H], log2-sum-exp [N, T'] or None.

    S is a multiple of 16 and at least a chunk; T' is T in whole blocks.
    """
    length, keys = query.shape[0], key.shape[0]
    steps, blocks = key.shape[1] // sizes.lanes, pl.cdiv(length, sizes.block)
    of_q = pl.BlockSpec((sizes.block, sizes.group * sizes.lanes), lambda h, i: (i, h))
    of_kv = pl.BlockSpec(
        (pl.Element(sizes.chunk), pl.Element(sizes.lanes)), lambda h, i: (sizes.first_key(i, keys), h * sizes.lanes)
    )
    out_specs, out_shape = [of_q], [out_like(query.shape, query.dtype, bounds, query, key, value)]
    if save:
        heads = round_up(sizes.group * sizes.kv_heads, 8)
        out_specs.append(pl.BlockSpec((1, heads, sizes.block), lambda h, i: (h, 0, i)))
        out_shape.append(out_like((steps, heads, blocks * sizes.block), jnp.float32, bounds, query, key, value))
    out, *lse = pl.pallas_call(
        functools.partial(_kernel, sizes=sizes, keys=keys),
        grid=(steps, blocks),
        in_specs=[pl.BlockSpec((8, sizes.block), lambda h, i: (0, i)), of_q, of_kv, of_kv],
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=[
            pltpu.VMEM((sizes.waiting, sizes.chunk, sizes.block), jnp.float32),
            pltpu.VMEM((sizes.chunk, sizes.block), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=sizes.vmem_limit
        ),
        interpret=interpret,
        name="interval_attention_window",
    )(bounds, query, key, value)
    return out, (lse[0] if save else None)
