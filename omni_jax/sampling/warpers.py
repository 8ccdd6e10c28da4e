"""From logits to a token: repetition penalty, suppression, temperature, top-k, top-p, and the draw itself.

The order, and the treatment of each step, are those of `transformers`' generation loop, so that processed logits can
be compared. Every option is an array with one value a row: rows with different options share one program.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped


@struct.dataclass
class WarperOptions:
    """One value a row. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `repetition_penalty` 1 do nothing."""

    temperature: Float[Array, "B"]
    top_k: Int[Array, "B"]
    top_p: Float[Array, "B"]
    repetition_penalty: Float[Array, "B"]
    seed: Int[Array, "B"]


def penalise(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: Float[Array, "B"]) -> Float[Array, "B V"]:
    """Divides positive and multiplies negative logits of tokens that the row has seen (CTRL, arXiv:1909.05858)."""
    factor = penalty[:, None]
    return jnp.where(seen, jnp.where(logits < 0, logits * factor, logits / factor), logits)


def truncate(logits: Float[Array, "B V"], top_k: Int[Array, "B"], top_p: Float[Array, "B"]) -> Float[Array, "B V"]:
    """Sets to -inf all but the `top_k` largest, then all beyond the smallest set of probability `top_p`.

    At least one token stays. Equal values at the border of top-k all stay.
    """
    size, rank = logits.shape[-1], _ranks(logits)
    count = jnp.where((top_k <= 0) | (top_k > size), size, top_k)[:, None]
    kth = _highest_where(lambda bar: jnp.sum(rank >= bar, axis=-1, keepdims=True) >= count, rank)
    logits = jnp.where(rank < kth, -jnp.inf, logits)
    probabilities = jax.nn.softmax(logits, axis=-1)
    # a token goes when it and all smaller ones together hold at most 1 - top_p
    rest = 1 - top_p[:, None]
    bar = _highest_where(lambda bar: jnp.sum(jnp.where(rank < bar, probabilities, 0), -1, keepdims=True) <= rest, rank)
    goes = (rank < jnp.minimum(bar, jnp.max(rank, axis=-1, keepdims=True))) & (top_p < 1)[:, None]
    return jnp.where(goes, -jnp.inf, logits)


def _ranks(logits: Float[Array, "B V"]) -> Shaped[Array, "B V"]:
    """Unsigned integers in the order of the float32 logits (both zeros alike)."""
    bits = jax.lax.bitcast_convert_type(jnp.where(logits == 0, 0.0, logits), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _highest_where(holds: Callable[[Array], Array], rank: Array) -> Shaped[Array, "B 1"]:
    """The highest bar at which `holds` is true, for each row; it must hold at 0 and, once false, stay so.

    Found bit by bit, in 32 passes over the row. A sort of a vocabulary of 152k takes a TPU's compiler 20 s and is
    slower on the device.
    """

    def add(index, bar):
        higher = bar | (jnp.uint32(1) << (31 - index).astype(jnp.uint32))
        return jnp.where(holds(higher), higher, bar)

    return jax.lax.fori_loop(0, 32, add, jnp.zeros((rank.shape[0], 1), jnp.uint32))


def warp(
    logits: Float[Array, "B V"],
    seen: Bool[Array, "B V"],
    options: WarperOptions,
    suppressed: Bool[Array, "V"] | None = None,
) -> Float[Array, "B V"]:
    """Processed float32 logits. A greedy row (temperature 0) gets the penalty and suppression only."""
    logits = penalise(logits.astype(jnp.float32), seen, options.repetition_penalty)
    if suppressed is not None:
        logits = jnp.where(suppressed, -jnp.inf, logits)
    return jax.lax.cond(
        jnp.any(options.temperature > 0), lambda: _soften(logits, options), lambda: logits
    )  # greedy batches never pay for it


def _soften(logits, options):
    greedy = (options.temperature <= 0)[:, None]
    softened = logits / jnp.where(greedy, 1.0, options.temperature[:, None])
    truncating = jnp.any((options.top_k > 0) | (options.top_p < 1))
    softened = jax.lax.cond(truncating, lambda x: truncate(x, options.top_k, options.top_p), lambda x: x, softened)
    return jnp.where(greedy, logits, softened)


def draw(logits: Float[Array, "B V"], options: WarperOptions, step: Int[Array, "B"]) -> Int[Array, "B"]:
    """A token for each row from processed logits: the largest, or a draw that depends on (seed, step) alone."""

    def sampled():
        def one(row, seed, step):
            key = jax.random.fold_in(jax.random.key(seed), step)
            return jax.random.categorical(key, row)

        drawn = jax.vmap(one)(logits, options.seed, step)
        return jnp.where(options.temperature > 0, drawn, jnp.argmax(logits, axis=-1))

    tokens = jax.lax.cond(jnp.any(options.temperature > 0), sampled, lambda: jnp.argmax(logits, axis=-1))
    return tokens.astype(jnp.int32)
