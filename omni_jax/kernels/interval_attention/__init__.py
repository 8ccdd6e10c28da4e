"""Attention in which query i sees exactly the keys start[i] <= j < stop[i].

One function serves every attention of the model that has no cache: blocks of sound, windows and frames of pictures,
neighbouring blocks of mel frames, and packed causal sequences (`omni_jax.kernels.patterns` makes their bounds).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Float, Int

from omni_jax.kernels.interval_attention import tpu
from omni_jax.kernels.interval_attention.reference import interval_attention_reference
from omni_jax.kernels.target import Target, current_target

__all__ = ["IntervalPlan", "interval_attention", "interval_plan"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IntervalPlan:
    """Bounds, and what the kernel of the target derives from them: the same for all layers that share a pattern."""

    start: Int[Array, " T"]
    stop: Int[Array, " T"]
    tpu: tpu.TpuPlan | None


def interval_plan(
    start: Int[Array, " T"],
    stop: Int[Array, " T"],
    keys: int,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype,
    reach: int | None = None,
    implementation: str | None = None,
    target: Target | None = None,
) -> IntervalPlan:
    """Prepares `interval_attention` for [T, heads, head_dim] queries over `keys` keys; reuse it in every layer.

    Args:
        reach: see `interval_attention`.
        implementation, target: as the call will choose them; None: by `current_target()`.
    """
    target = target or current_target()
    chosen = _choose(implementation, target, heads, kv_heads, head_dim, dtype)
    plan = None
    if chosen == "tpu":
        shape = dict(heads=heads, kv_heads=kv_heads, head_dim=head_dim)
        plan = tpu.make_plan(start, stop, keys, reach=reach, target=target, **shape)
    return IntervalPlan(start, stop, plan)


def interval_attention(
    query: Float[Array, "T N H"],
    key: Float[Array, "S K H"],
    value: Float[Array, "S K H"],
    start: Int[Array, " T"] | None = None,
    stop: Int[Array, " T"] | None = None,
    *,
    reach: int | None = None,
    plan: IntervalPlan | None = None,
    implementation: str | None = None,
    interpret: bool = False,
) -> Float[Array, "T N H"]:
    """Softmax attention of query i over the keys start[i] <= j < stop[i]. Scale is H^-0.5, softmax float32.

    Query head n reads key-value head n // (N / K). A query that sees nothing gives zeros, and zero gradients.
    Differentiable in query, key and value. Memory is linear in T and S where a kernel runs.

    Args:
        start, stop: bounds, 0 <= start[i], stop[i] <= S; in any order. Left out where a plan is given.
        reach: a promise that |i - j| < reach for all i and the j that they see. Where it is short (up to 128), a faster
            kernel runs: audio blocks (100), vision windows (64), DiT blocks (48). A broken promise gives wrong results.
        plan: from `interval_plan`, for these shapes and these bounds.
        implementation: "reference", "tpu" or "gpu"; None: by `current_target()`, and the reference, with one warning
            in the log, where its kernel cannot take these heads.
        interpret: run the kernel on any platform, slowly (tests).

    Raises:
        ValueError: shapes do not fit each other or the plan, or the named implementation cannot take them.
    """
    heads, head_dim = query.shape[1:]
    kv_heads = key.shape[1]
    if key.shape != value.shape or key.shape[2] != head_dim or heads % kv_heads:
        raise ValueError(
            f"interval_attention: query {query.shape}, key {key.shape} and value {value.shape} do not fit: key and "
            "value must be equal in shape, head sizes equal, and the query heads a multiple of the key-value heads."
        )
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            f"interval_attention: query is {query.dtype}, key {key.dtype} and value {value.dtype}; cast them alike."
        )
    if plan is None and (start is None or stop is None):
        raise ValueError("interval_attention: give start and stop, or a plan from interval_plan.")
    start, stop = (plan.start, plan.stop) if plan is not None else (start, stop)
    if start.shape != query.shape[:1] or stop.shape != query.shape[:1]:
        raise ValueError(
            f"interval_attention: {query.shape[0]} queries need as many bounds, not {start.shape} and {stop.shape}."
        )
    if query.size == 0 or key.size == 0:  # nothing is asked, or nothing can be seen
        return jnp.zeros_like(query)
    chosen = _choose(implementation, current_target(), heads, kv_heads, head_dim, query.dtype)
    if chosen == "tpu":
        shape = dict(heads=heads, kv_heads=kv_heads, head_dim=head_dim)
        prepared = plan.tpu if plan is not None else None
        if prepared is None:
            prepared = tpu.make_plan(start, stop, key.shape[0], reach=reach, target=current_target(), **shape)
        if (prepared.length, prepared.total) != (query.shape[0], key.shape[0]):
            raise ValueError(
                f"interval_attention: the plan is for {prepared.length} queries and {prepared.total} keys, "
                f"not {query.shape[0]} and {key.shape[0]}; make a plan for each shape."
            )
        return tpu.interval_attention_tpu(query, key, value, prepared, interpret=interpret)
    if chosen == "gpu":
        from omni_jax.kernels.interval_attention.gpu import interval_attention_gpu

        return interval_attention_gpu(query, key, value, start, stop, interpret=interpret)
    return interval_attention_reference(query, key, value, start, stop)


def _choose(implementation: str | None, target: Target, heads: int, kv_heads: int, head_dim: int, dtype) -> str:
    if implementation not in (None, "reference", "tpu", "gpu"):
        raise ValueError(f"implementation={implementation!r}: give 'reference', 'tpu', 'gpu' or None.")
    chosen = implementation or {"tpu": "tpu", "gpu": "gpu"}.get(target.platform, "reference")
    reason = tpu.why_not(heads, kv_heads, head_dim, dtype) if chosen == "tpu" else None
    if reason and implementation:
        raise ValueError(f"interval_attention on TPU: {reason}.")
    if reason:
        _say_once(reason)
        return "reference"
    return chosen


@functools.cache
def _say_once(reason: str) -> None:
    logging.warning("interval_attention runs without its kernel: %s.", reason)
