"""Training in float32 whose linear maps round their factors to bfloat16, as a TPU does by default, for CPUs with AMX.

XLA's CPU back end has fast products of bfloat16 only where the result is float32 and the left factor lies row by row.
Hence the forms below, forwards and backwards. Attention in tiles runs in bfloat16 as a whole, with float32 sums.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Float32

from omni_jax.kernels.target import current_target

_wanted: ContextVar[bool] = ContextVar("rounded_products", default=False)


@contextlib.contextmanager
def rounding_products(wanted: bool = True) -> Iterator[None]:
    """What is traced within, for a CPU, has rounded products, and its layers stand one after another.

    Traces are cached, so enter it within the function that is traced. Not for programs of several devices: the
    partitioner does not know the constraint on the layout of `product`.
    """
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def rounded() -> bool:
    """Whether the program that is being traced is to have rounded products."""
    return _wanted.get() and current_target().platform == "cpu"


def unroll() -> bool | int:
    """The argument of that name of `nn.scan` over layers.

    What a loop over layers keeps for its gradient is copied into a stack and out of it, and once more where factors
    are rounded on the way. Measured on a step of Omni-tiny's Talker (one core, AMX): 1.69 s in float32 with the loop,
    1.53 without, 1.99 rounded with the loop, 1.33 without.
    """
    return True if rounded() else 1


@jax.custom_vjp
def product(rows: Float[Array, "N I"], kernel: Float[Array, "I O"]) -> Float32[Array, "N O"]:
    """rows @ kernel, rounded to bfloat16 before they are multiplied, with a gradient of the same kind."""
    return _sums(_half(rows), _half(kernel))


def _forward(rows, kernel):
    halves = _half(rows), _half(kernel)
    # empty arrays tell the gradient's dtypes
    return _sums(*halves), (*halves, jnp.zeros(0, rows.dtype), jnp.zeros(0, kernel.dtype))


def _backward(kept, slope):
    rows, kernel, *like = kept
    slope = _half(slope)
    # A transpose on the left that nothing forces is a view, and the product falls back to a slow path. Measured for
    # [256, 3840] @ [3840, 768]: 10 ms, 4 when forced, 9 in float32. On the right a view costs nothing.
    turned = with_layout_constraint(rows.T, Layout((0, 1)))
    return _sums(slope, kernel.T).astype(like[0].dtype), _sums(turned, slope).astype(like[1].dtype)


product.defvjp(_forward, _backward)


def _half(x):
    return x.astype(jnp.bfloat16)


def _sums(a, b):
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)
