"""Attention without a cache, over a mesh: every query sees one interval of keys.

Heads are split over the mesh, and the sequence too where a context axis is in use: each device then holds its own
queries and gathers all keys and values, few as grouped heads have (arXiv:2407.21783, section 3.3.2).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from omni_jax.kernels.target import current_target
from omni_jax.layers.attention import attend, attend_within_blocks
from omni_jax.layers.partitioning import LENGTH, gather, mesh_axes, natural_order, over_mesh, parts


def attend_intervals(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    start: Int[Array, "B T"],
    stop: Int[Array, "B T"],
    *,
    reach: int | None = None,
    striped: bool = False,
) -> Float[Array, "B T N H"]:
    """Query t of row b sees keys start[b, t] <= s < stop[b, t] of its row. Rows that see nothing are not to be read.

    Args:
        reach: a promise that t and the s that it sees are less than this apart; faster where it is short.
        striped: the sequences have passed `partitioning.stripe`, and lie over the devices of the context axis if there
            is one. The bounds still count in natural order.
    """
    batch, heads = mesh_axes("batch", query.shape[0]), mesh_axes("heads", query.shape[2])
    context = mesh_axes(LENGTH) if striped else ()
    if current_target().platform == "tpu" and heads:
        # The kernel takes heads that fill whole registers. Where a device's share does not, all devices do all heads:
        # plain products over a long packed sequence would take more memory than there is.
        from omni_jax.kernels.interval_attention.tpu import why_not

        own = query.shape[2] // parts(heads)
        share = own if key.shape[2] % parts(heads) else key.shape[2] // parts(heads)
        if why_not(own, share, query.shape[3], query.dtype):
            heads = ()
    if key.shape[2] % parts(heads):  # fewer key-value heads than devices: each query head brings its own
        group = query.shape[2] // key.shape[2]
        key, value = (jnp.repeat(x, group, axis=2) for x in (key, value))

    def on_one_device(query, key, value, start, stop):
        if context:
            key, value = (natural_order(gather(x, context, axis=1), 1, parts(context)) for x in (key, value))
        return _attend(query, key, value, start, stop, reach)

    wide = PartitionSpec(batch or None, context or None, heads or None)
    flat = PartitionSpec(batch or None, context or None)
    return over_mesh(on_one_device, (wide, wide, wide, flat, flat), wide)(query, key, value, start, stop)


def _attend(query, key, value, start, stop, reach):
    batch, length, heads, width = query.shape
    keys, kv_heads = key.shape[1:3]
    if current_target().platform == "cpu":
        place = jnp.arange(keys)
        mask = (place >= start[..., None]) & (place < stop[..., None])
        return attend(query, key.swapaxes(1, 2), value.swapaxes(1, 2), mask)
    from omni_jax.kernels.interval_attention import interval_attention
    from omni_jax.kernels.interval_attention.block_sizes import MAX_WINDOW_REACH

    # rows laid end to end: the kernel knows no batch, but that none sees as far as another
    if batch > 1 and reach is None and length == keys > MAX_WINDOW_REACH:
        reach = keys
    offset = jnp.arange(batch)[:, None] * keys
    with jax.named_scope(f"rows_{batch}"):  # read by compilation/flops.py
        out = interval_attention(
            query.reshape(-1, heads, width),
            key.reshape(-1, kv_heads, width),
            value.reshape(-1, kv_heads, width),
            (start + offset).reshape(-1),
            (stop + offset).reshape(-1),
            reach=reach,
        )
    return out.reshape(batch, length, heads, width)


def attend_packed_blocks(
    query: Float[Array, "P N H"],
    key: Float[Array, "P N H"],
    value: Float[Array, "P N H"],
    *,
    slots: Sequence[Int[Array, "_ _"]],
    home: Int[Array, "P"],
) -> Float[Array, "P N H"]:
    """Each position attends to its own block, a run of the packed sequence; see `attend_within_blocks`.

    That function gathers blocks into tables, which suits plain products. A kernel reads the runs where they lie.
    """
    if current_target().platform == "cpu":
        return attend_within_blocks(query, key, value, slots=slots, home=home)
    length, firsts, counts = query.shape[0], [], []
    for table in slots:
        count = jnp.broadcast_to(jnp.sum(table < length, axis=1, keepdims=True), table.shape)
        firsts.append(jnp.broadcast_to(table[:, :1], table.shape).reshape(-1))
        counts.append(count.reshape(-1))
    held = jnp.concatenate([table.reshape(-1) for table in slots])[home]
    real = held == jnp.arange(length)  # padding has no block: it sees nothing
    start = jnp.where(real, jnp.concatenate(firsts)[home], 0)
    stop = jnp.where(real, start + jnp.concatenate(counts)[home], 0)
    reach = max(table.shape[1] for table in slots)
    return attend_intervals(query[None], key[None], value[None], start[None], stop[None], reach=reach)[0]


def causal_bounds(
    segment_ids: Int[Array, "B T"] | None, *, batch: int, length: int
) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """Each token sees its own segment, a run of equal ids, up to itself. Id 0 is padding, which sees nothing."""
    place = jnp.broadcast_to(jnp.arange(length), (batch, length))
    if segment_ids is None:
        return jnp.zeros_like(place), place + 1
    fresh = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    start = jax.lax.cummax(jnp.where(fresh, place, 0), axis=1)
    return start, jnp.where(segment_ids > 0, place + 1, start)
