"""Block sizes of the TPU kernels, by chip generation; `benchmarks/block_sizes.py` ranks them by compiled schedule.

Windows: a query costs block + 2 * reach keys, so the block is the fewest queries that fill the 128 lanes.
Long intervals: blocks of 256 queries by parts of 256 keys are as near to the peak of the matrix unit as larger ones, a
quarter of the code of 512 by 512, and waste less on the diagonal of a causal mask.
"""

import dataclasses

from omni_jax.kernels.interval_attention.schedule import most_pairs
from omni_jax.kernels.interval_attention.tpu_flat import FlatSizes
from omni_jax.kernels.interval_attention.tpu_parts import LANES, head_tile, round_up
from omni_jax.kernels.interval_attention.tpu_window import WindowSizes
from omni_jax.kernels.target import Target

_MEBI = 1 << 20


@dataclasses.dataclass(frozen=True)
class Chip:
    """What of a generation matters here.

    Attributes:
        vmem_limit: bytes of vector memory that a kernel may take.
        cores: tensor cores that share one kernel: its grid needs as many independent steps over heads.
        stage_heads: heads of a window that go through each stage together: their scores wait in memory, and their code
            is laid out without a loop.
    """

    vmem_limit: int
    cores: int = 1
    stage_heads: int = 8


_CHIPS = {
    "v4": Chip(15 * _MEBI, cores=2, stage_heads=4),  # 16 MiB in all
    "v5e": Chip(96 * _MEBI),
    "v5p": Chip(48 * _MEBI, cores=2),
    "v6e": Chip(96 * _MEBI),
    "tpu7x": Chip(48 * _MEBI),
}
_OTHER = Chip(15 * _MEBI, stage_heads=4)

# Two words a pair lie in scalar memory, 1 MiB on all of them.
MAX_PAIRS = 96 * 1024

WINDOW_BLOCK = 128
MAX_WINDOW_REACH = 128  # the backward pass keeps keys in memory for one block of queries longer


@dataclasses.dataclass(frozen=True)
class Flat:
    """Sizes of the three passes over long intervals."""

    forward: FlatSizes
    queries: FlatSizes
    keys: FlatSizes


def chip_of(target: Target) -> Chip:
    return _CHIPS.get(target.generation, _OTHER)


def choose(
    target: Target, *, heads: int, kv_heads: int, head_dim: int, length: int, keys: int, reach: int | None
) -> WindowSizes | Flat:
    """Sizes for arrays of these shapes. `reach`: see `interval_attention`."""
    chip = chip_of(target)
    per_tile = head_tile(head_dim) // head_dim
    group = heads // kv_heads
    # With more queries than keys the window of the gradient would slide off the keys.
    if reach is not None and reach <= MAX_WINDOW_REACH and length <= keys:
        step = _heads_of_a_step(kv_heads, per_tile, chip.cores, most=max(per_tile, 2048 // head_dim // group))
        stage = _heads_of_a_step(step, per_tile, 1, most=max(per_tile, chip.stage_heads // group))
        return WindowSizes(head_dim, group, reach, WINDOW_BLOCK, step, stage, chip.vmem_limit)
    step = _heads_of_a_step(kv_heads, per_tile, chip.cores, most=max(per_tile, 1024 // head_dim // group))

    def sizes(own: int, other: int, block: int, chunk: int, part: int) -> FlatSizes:
        block, chunk = min(block, round_up(own, LANES)), min(chunk, round_up(other, LANES))
        while most_pairs(own, other, block=block, chunk=chunk, reach=reach) > MAX_PAIRS and chunk < other:
            chunk *= 2  # of a very long sequence: more is worked on beside the diagonal, in as many parts
        part = part if chunk % part == 0 else LANES
        return FlatSizes(head_dim, group, block, chunk, part, step, chip.vmem_limit)

    return Flat(
        forward=sizes(length, keys, 256, 512, 256),
        queries=sizes(length, keys, 256, 512, 256),
        keys=sizes(keys, length, 256, 256, 256),
    )


def _heads_of_a_step(kv_heads: int, per_tile: int, cores: int, most: int) -> int:
    """The most key-value heads that divide into equal steps over the cores, in whole tiles."""
    tiles = kv_heads // per_tile
    return per_tile * max(n for n in range(1, tiles + 1) if tiles % n == 0 and _fits(n, tiles, per_tile, cores, most))


def _fits(n: int, tiles: int, per_tile: int, cores: int, most: int) -> bool:
    return n == 1 or (n * per_tile <= most and (tiles // n) % cores == 0)
