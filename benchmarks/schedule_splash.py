"""JAX's splash attention with the mask of each pattern, for `tpu_schedule.py`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from schedule_cases import Pattern, segment_ids, split


class NearBlocks(masks._ComputableMask):
    """Blocks that see themselves and their neighbours. Computed in the kernel: the cheapest form that splash has."""

    def __init__(self, length: int, size: int, near: tuple[int, int]):
        self.key = (length, size, near)
        back, ahead = near

        def seen(query, key):
            away = key // size - query // size
            return (away >= -back) & (away <= ahead) if any(near) else away == 0

        super().__init__(shape=(length, length), mask_function=seen, shard_count=1)

    def __eq__(self, other):
        return isinstance(other, NearBlocks) and self.key == other.key

    def __hash__(self):
        return hash(self.key)


def padded_length(pattern: Pattern, block: int) -> int:
    return -(-pattern.length // block) * block


def make_splash(pattern: Pattern, block: int):
    """(function of columns, kernel). Build it outside of any mesh."""
    length = padded_length(pattern, block)
    group = pattern.heads // pattern.kv_heads
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
        block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    one = masks.CausalMask((length, length)) if pattern.causal else NearBlocks(length, pattern.blocks, pattern.near)
    make = splash.make_splash_mqa_single_device if group > 1 else splash.make_splash_mha_single_device
    kernel = make(mask=masks.MultiHeadMask([one] * (group if group > 1 else pattern.heads)), block_sizes=sizes)
    ids = segment_ids(length) if "segments" in pattern.name else None

    def attend(query, key, value, start, stop):
        q, k, v = (
            jnp.pad(x, ((0, length - pattern.length), (0, 0), (0, 0))).swapaxes(0, 1)
            for x in split(pattern, query, key, value)
        )
        q = q * np.asarray(pattern.head_dim**-0.5, q.dtype)
        # made from an argument, so that they are not constants
        segments = None if ids is None else splash.SegmentIds(*(jnp.asarray(ids) + 0 * start[0],) * 2)
        if group > 1:
            q = q.reshape(pattern.kv_heads, group, length, pattern.head_dim)
            out = jax.vmap(lambda *qkv: kernel(*qkv, segments))(q, k, v)
            out = out.reshape(pattern.heads, length, pattern.head_dim)
        else:
            out = kernel(q, k, v, segments)
        return out.swapaxes(0, 1)[: pattern.length].reshape(query.shape)

    return attend, kernel


def steps_and_shares(pattern: Pattern, info) -> tuple[float, float, float, float]:
    """Grid steps of all heads, the share of steps with work, the share that begin a row, and elements of a block."""
    block_mask = np.asarray(info.block_mask)[0]  # [rows, steps of a row], or turned for the gradients of keys
    rows, width = max(block_mask.shape), min(block_mask.shape)
    block = padded_length(pattern, 128) / rows
    return pattern.heads * rows * width, float((block_mask > 0).mean()), 1 / width, block
