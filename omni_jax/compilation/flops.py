"""Floating-point operations of matrix products and convolutions, counted from a traced program.

A product of [M, K] and [K, N] is 2 M K N operations; a convolution 2 for each output value and each weight that it
sees. Everything else is not counted: roofline models of transformers leave it out (arXiv:2001.08361, section 2.1), and
rematerialised work is counted again, because it is done again.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from omni_jax.compilation.kernels import known_kernel

# Named scopes that say how often the dearer branch of a conditional is taken, and how many rows lie end to end.
_SHARE = re.compile(r"\b(\d+)_of_(\d+)\b")
_ROWS = re.compile(r"\brows_(\d+)\b")


@dataclass
class Flops:
    """Operations of the whole program, all devices together.

    guessed: loops whose length data decides. uncounted: kernels without a cost estimate, whose grid is not static.
    """

    total: int = 0
    guessed: int = 0
    uncounted: list[str] = field(default_factory=list)
    scopes: list[str] = field(default_factory=list, repr=False)  # of the equations around the one that is counted


def count_flops(jaxpr: ClosedJaxpr | Jaxpr, *, while_trips: int = 1) -> Flops:
    """Counts a jaxpr, e.g. `jax.jit(f).trace(...).jaxpr`.

    Args:
        while_trips: iterations of each `while` loop; scans state theirs. Loops inside such loops run as often too.

    Of a conditional the branch with most counts, or as often as a scope `4_of_32` around it says. A kernel counts its
    `pl.CostEstimate`, or what `kernels.py` says, or its body times its grid.
    """
    flops = Flops()
    flops.total = _jaxpr(_open(jaxpr), while_trips, flops)
    return flops


def _open(jaxpr: ClosedJaxpr | Jaxpr) -> Jaxpr:
    return jaxpr.jaxpr if hasattr(jaxpr, "jaxpr") else jaxpr


def _jaxpr(jaxpr: Jaxpr, trips: int, flops: Flops) -> int:
    return sum(_equation(eqn, trips, flops) for eqn in jaxpr.eqns)


def _equation(eqn: JaxprEqn, trips: int, flops: Flops) -> int:
    name, params = eqn.primitive.name, eqn.params

    def inner(jaxpr: Any) -> int:
        # conditions in a kernel's body are its own
        around, own = flops.scopes, str(eqn.source_info.name_stack)
        flops.scopes = [] if name == "pallas_call" else [*around, own]
        try:
            return _jaxpr(_open(jaxpr), trips, flops)
        finally:
            flops.scopes = around

    match name:
        case "dot_general":
            return _dot(eqn)
        case "ragged_dot_general" | "ragged_dot":
            (rows, depth), columns = eqn.invars[0].aval.shape[-2:], eqn.invars[1].aval.shape[-1]
            return 2 * rows * depth * columns
        case "conv_general_dilated":
            return _convolution(eqn)
        case "scan":
            return params["length"] * inner(params["jaxpr"])
        case "while":
            flops.guessed += 1
            return trips * (inner(params["body_jaxpr"]) + inner(params["cond_jaxpr"]))
        case "cond":
            counts = sorted(map(inner, params["branches"]))
            taken, layers = _hint(_SHARE, eqn, flops) or (1, 1)
            return (taken * counts[-1] + (layers - taken) * counts[0]) // layers
        case "shard_map":
            sizes = dict(params["mesh"].shape)
            manual = params.get("manual_axes") or sizes
            return math.prod(sizes[axis] for axis in manual) * inner(params["jaxpr"])
        case "pallas_call":
            return _kernel(eqn, inner, flops)
    return sum(map(inner, _parts(params)))


def _parts(params: dict[str, Any]) -> Iterator[Any]:
    """Jaxprs that an equation runs once: of `jit`, `remat`, custom derivatives and the like."""
    for value in params.values():
        for each in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(each, (ClosedJaxpr, Jaxpr)):
                yield each


def _hint(pattern: re.Pattern[str], eqn: JaxprEqn, flops: Flops) -> tuple[int, ...] | None:
    """Numbers of the innermost named scope of this form: what the shapes of a program do not tell."""
    found = list(pattern.finditer("/".join([*flops.scopes, str(eqn.source_info.name_stack)])))
    return tuple(map(int, found[-1].groups())) if found else None


def _dot(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    return 2 * math.prod(eqn.outvars[0].aval.shape) * depth


def _convolution(eqn: JaxprEqn) -> int:
    numbers, weights = eqn.params["dimension_numbers"], eqn.invars[1].aval.shape
    out_features = weights[numbers.rhs_spec[0]]
    full = math.prod(weights) // out_features  # weights that one output value sees
    # of an input that was spread out with zeros (a transposed convolution), the zeros are not worked on
    return 2 * math.prod(eqn.outvars[0].aval.shape) * full // math.prod(eqn.params["lhs_dilation"])


def _kernel(eqn: JaxprEqn, inner: Any, flops: Flops) -> int:
    estimate = eqn.params.get("cost_estimate")
    if estimate is not None and estimate.flops:
        return int(estimate.flops)
    name = str(eqn.params.get("name_and_src_info") or eqn.params.get("name") or "kernel")
    known = known_kernel(name)
    if known is not None:
        (rows,) = _hint(_ROWS, eqn, flops) or (1,)
        return known.flops([variable.aval for variable in eqn.invars]) // rows
    grid = eqn.params["grid_mapping"].grid
    if all(isinstance(size, int) for size in grid):
        return math.prod(grid) * inner(eqn.params["jaxpr"])
    flops.uncounted.append(name.split(" ")[0])
    return 0
