"""Interval attention on TPU: the kernels joined to one function with a gradient.

The plan holds what depends on the bounds only. It is the same for all layers that share a pattern, so it is computed
once, outside the scan over layers.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from omni_jax.kernels.interval_attention import schedule
from omni_jax.kernels.interval_attention.block_sizes import Flat, choose
from omni_jax.kernels.interval_attention.schedule import Schedule
from omni_jax.kernels.interval_attention.tpu_delta import row_sums
from omni_jax.kernels.interval_attention.tpu_flat import flat_forward
from omni_jax.kernels.interval_attention.tpu_flat_backward import flat_backward_keys, flat_backward_queries
from omni_jax.kernels.interval_attention.tpu_parts import ROWS, head_tile, round_up
from omni_jax.kernels.interval_attention.tpu_window import WindowSizes, window_forward
from omni_jax.kernels.interval_attention.tpu_window_backward import window_backward
from omni_jax.kernels.target import Target


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TpuPlan:
    """Bounds as the kernels read them, and the pairs of long intervals.

    Attributes:
        bounds: start and stop of each query, in whole blocks, [8, T'].
        queries, keys: pairs in the order of queries, and of keys; None for windows.
        sizes: static.
        length, total: queries and keys that the plan is for; static.
    """

    bounds: Int[Array, "8 _"]
    queries: Schedule | None
    keys: Schedule | None
    sizes: WindowSizes | Flat = dataclasses.field(metadata={"static": True})
    length: int = dataclasses.field(metadata={"static": True})
    total: int = dataclasses.field(metadata={"static": True})


def why_not(heads: int, kv_heads: int, head_dim: int, dtype) -> str | None:
    """Why the kernels cannot take these heads, or None if they can."""
    tile = head_tile(head_dim)
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float32):
        return f"the dtype is {jnp.dtype(dtype).name}; the kernel takes bfloat16 and float32"
    if head_dim % ROWS or kv_heads * head_dim % tile:
        return (
            f"{kv_heads} key-value heads of size {head_dim} do not fill whole registers: the kernel takes sizes that "
            f"are multiples of {ROWS}, and heads that make a multiple of {tile} columns"
        )
    return None


def make_plan(
    start, stop, keys: int, *, heads: int, kv_heads: int, head_dim: int, reach: int | None, target: Target
) -> TpuPlan:
    length = start.shape[0]
    sizes = choose(target, heads=heads, kv_heads=kv_heads, head_dim=head_dim, length=length, keys=keys, reach=reach)
    window = isinstance(sizes, WindowSizes)
    # All passes read the same bounds; padding sees nothing.
    whole = sizes.block if window else max(sizes.forward.block, sizes.queries.block, sizes.keys.chunk)
    padding = (0, -length % whole)
    start, stop = (jnp.pad(x.astype(jnp.int32), padding) for x in (start, stop))
    bounds = jnp.pad(jnp.stack([start, stop]), ((0, 6), (0, 0)))
    if window:
        return TpuPlan(bounds, None, None, sizes, length, keys)
    if (sizes.forward.block, sizes.forward.chunk) != (sizes.queries.block, sizes.queries.chunk):
        raise ValueError("the forward pass and the gradient of the queries share one schedule")
    ranges = dict(reach=reach)
    return TpuPlan(
        bounds,
        schedule.by_queries(start, stop, keys, block=sizes.forward.block, chunk=sizes.forward.chunk, **ranges),
        schedule.by_keys(start, stop, keys, block=sizes.keys.block, chunk=sizes.keys.chunk, **ranges),
        sizes,
        length,
        keys,
    )


def interval_attention_tpu(
    query: Float[Array, "T N H"],
    key: Float[Array, "S K H"],
    value: Float[Array, "S K H"],
    plan: TpuPlan,
    *,
    interpret: bool = False,
) -> Float[Array, "T N H"]:
    """As `interval_attention`, for the bounds of `plan`. Differentiable in query, key and value."""
    length, heads, head_dim = query.shape
    keys, kv_heads = key.shape[:2]
    per_tile = head_tile(head_dim) // head_dim
    moved = heads != kv_heads and per_tile > 1
    if moved:  # a tile of queries holds one head for each key-value head of a tile
        query = query.reshape(length, kv_heads // per_tile, per_tile, heads // kv_heads, head_dim).swapaxes(2, 3)
    sizes = plan.sizes
    chunk = sizes.chunk if isinstance(sizes, WindowSizes) else max(sizes.forward.chunk, sizes.keys.block)
    padding = ((0, max(round_up(keys, ROWS), chunk) - keys), (0, 0))
    key, value = (jnp.pad(x.reshape(keys, -1), padding) for x in (key, value))
    query = query.reshape(length, -1)
    if isinstance(sizes, Flat) and sizes.keys.chunk > sizes.forward.block:  # else no block lies beyond the last query
        query = jnp.pad(query, ((0, plan.bounds.shape[1] - length), (0, 0)))
    out = _attend(sizes, interpret, plan, query, key, value)[:length]
    if moved:
        out = out.reshape(length, kv_heads // per_tile, heads // kv_heads, per_tile, head_dim).swapaxes(2, 3)
    return out.reshape(length, heads, head_dim)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(sizes, interpret, plan, query, key, value):
    return _forward(sizes, interpret, plan, query, key, value, save=False)[0]


def _forward(sizes, interpret, plan, query, key, value, save):
    if isinstance(sizes, WindowSizes):
        return window_forward(plan.bounds, query, key, value, sizes=sizes, save=save, interpret=interpret)
    return flat_forward(
        plan.queries, plan.bounds, query, key, value, sizes=sizes.forward, save=save, interpret=interpret
    )


def _attend_forward(sizes, interpret, plan, query, key, value):
    out, lse = _forward(sizes, interpret, plan, query, key, value, save=True)
    return out, (plan, query, key, value, out, lse)


def _attend_backward(sizes, interpret, saved, dout):
    plan, query, key, value, out, lse = saved
    one = sizes if isinstance(sizes, WindowSizes) else sizes.forward
    lanes = one.lanes * one.group
    delta = row_sums(out, dout, lse, head_dim=one.head_dim, lanes=lanes, block=one.block, interpret=interpret)
    inputs = (plan.bounds, lse, delta, query, key, value, dout)
    if isinstance(sizes, WindowSizes):
        dq, dk, dv = window_backward(*inputs, sizes=sizes, interpret=interpret)
    else:
        dq = flat_backward_queries(plan.queries, *inputs, sizes=sizes.queries, interpret=interpret)
        dk, dv = flat_backward_keys(plan.keys, *inputs, sizes=sizes.keys, interpret=interpret)
    return None, dq, dk, dv


_attend.defvjp(_attend_forward, _attend_backward)
