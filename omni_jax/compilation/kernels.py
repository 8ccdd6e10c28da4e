"""What our kernels do and move, where neither their operands nor their grid tell.

A kernel that states a `pl.CostEstimate` needs no entry here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from omni_jax.compilation.hlo import Shape


@dataclass(frozen=True)
class Kernel:
    """`moved(operands, results)`: bytes. `flops(operands)`: operations, from anything with a `shape`."""

    moved: Callable[[Sequence[Shape], Sequence[Shape]], int]
    flops: Callable[[Sequence[Any]], int]


def _cache_moved(operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """Keys and values of one layer, to the last slot: blocks beyond what is in use are not even read."""
    stacks = [shape for shape in operands if len(shape.dims) == 5]
    others = [shape for shape in (*operands, *results) if len(shape.dims) != 5]
    return sum(shape.bytes // shape.dims[0] for shape in stacks) + sum(shape.bytes for shape in others)


def _cache_flops(operands: Sequence[Any]) -> int:
    """Scores and weighted sums over all slots: query [B, K, T G, H], key and value [L, B, K, S, H]."""
    query = next(one.shape for one in operands if len(one.shape) == 4)
    slots = next(one.shape[3] for one in operands if len(one.shape) == 5)
    rows, kv_heads, tokens, width = query
    return 4 * rows * kv_heads * tokens * slots * width


def _once(operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """Every operand and result once: less than the truth, for keys are read again for each tile of queries."""
    return sum(shape.bytes for shape in (*operands, *results))


def _interval(products: int, first: int) -> Kernel:
    """`products` of the size of the scores, over the pairs of one causal sequence: the bounds are data.

    Right for one sequence a row, too many for packed short ones and for frames of a film. `first` is the place of the
    query among the operands (from the end where the size of the grid comes before them), which the key follows:
    [T, N H] and [S, K H], or [T, N, H] and [S, K, H].
    """

    def flops(operands: Sequence[Any]) -> int:
        query, key = (operands[place].shape for place in (first, first + 1))
        return 2 * products * math.prod(query) * key[0] // 2

    return Kernel(_once, flops)


# by a part of the kernel's name, the longest first
KERNELS = {
    "interval_attention_backward_key_value": _interval(4, 0),
    "interval_attention_backward_query": _interval(3, 0),
    "interval_attention_flat_dkv": _interval(4, -4),
    "interval_attention_flat_dq": _interval(3, -4),
    "interval_attention_forward": _interval(2, 0),
    "interval_attention_flat": _interval(2, -3),
    "cache_attention": Kernel(_cache_moved, _cache_flops),
}


def known_kernel(names: str) -> Kernel | None:
    """The entry for a kernel, by its instruction's or its equation's names."""
    return next((kernel for part, kernel in KERNELS.items() if part in names), None)
