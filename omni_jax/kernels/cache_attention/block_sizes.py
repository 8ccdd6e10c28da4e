"""Block sizes of the TPU kernel."""

import dataclasses

from omni_jax.kernels.target import Target

# Bytes of keys and values that a decoding step should move: about one microsecond of a core's share of the published
# memory bandwidth, beside which the fixed cost of a grid step and the start of a DMA should be small. Larger blocks
# would move more slots past the end of the used part. Reasoned, not timed: no chip was at hand.
_STEP_BYTES = {
    "v4": 1 << 19,  # 1.2 TB/s for two cores
    "v5e": 1 << 20,  # 0.8 TB/s
    "v5p": 1 << 20,  # 2.8 TB/s for two cores
    "v6e": 1 << 21,  # 1.6 TB/s
    "tpu7x": 1 << 22,  # 3.7 TB/s a core
}
_TWO_CORES = ("v4", "v5p")  # one program runs on both; a parallel axis of the grid is split between them
_MOST_ROWS = 1024  # of a block of queries: the scores of 1,024 rows and 512 slots are 2 MB of vector memory
FEW_ROWS = 128  # up to this many rows of a kv head, memory is what bounds


@dataclasses.dataclass(frozen=True)
class CacheBlocks:
    """What one grid step holds: kv heads, tokens of the query, slots of the cache."""

    heads: int
    tokens: int
    slots: int


def cache_blocks(
    target: Target, *, batch: int, length: int, heads: int, kv_heads: int, slots: int, width: int, itemsize: int
) -> CacheBlocks:
    """Blocks for a query of `length` tokens over a cache of `slots` slots.

    Few rows: all kv heads in a step, so that a DMA is large. Many rows: one head, and enough rows that the products
    outweigh the loads.
    """
    group = heads // kv_heads
    if length * group <= FEW_ROWS:
        # a single row of the batch leaves only the heads to be split over two cores
        split = 2 if target.generation in _TWO_CORES and batch == 1 and kv_heads % 2 == 0 else 1
        at_once = kv_heads // split
        block = _STEP_BYTES.get(target.generation, 1 << 20) // (2 * at_once * width * itemsize)
        return CacheBlocks(at_once, length, _fit(block, slots))
    pieces = -(-length * group // _MOST_ROWS)
    tokens = length if pieces == 1 else _round_up(-(-length // pieces), 16)  # 16: rows of a bf16 tile
    return CacheBlocks(1, min(tokens, length), _fit(512, slots))


def _fit(block: int, slots: int) -> int:
    """A power of two of 128 to 2,048 slots; all of them where the cache is no longer than that."""
    block = min(2048, max(128, 1 << (max(block, 1).bit_length() - 1)))
    return min(block, slots)


def _round_up(x: int, step: int) -> int:
    return -(-x // step) * step
