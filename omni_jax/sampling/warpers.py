"""From logits to a token: repetition penalty, suppression, temperature, top-k, top-p, and the draw itself.

The order, and the treatment of each step, are those of `transformers`' generation loop, so that processed logits can
be compared. Every option is an array with one value a row: rows with different options share one program.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int


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
    size = logits.shape[-1]
    ordered = jnp.sort(logits, axis=-1, descending=True)
    count = jnp.where((top_k <= 0) | (top_k > size), size, top_k)
    kth = jnp.take_along_axis(ordered, count[:, None] - 1, axis=-1)
    logits = jnp.where(logits < kth, -jnp.inf, logits)
    ordered = jnp.where(ordered < kth, -jnp.inf, ordered)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    # a token goes when it and all smaller ones together hold at most 1 - top_p
    tail = jnp.flip(jnp.cumsum(jnp.flip(probabilities, -1), axis=-1), -1)
    kept = (tail > 1 - top_p[:, None]) | (jnp.arange(size) == 0) | (top_p >= 1)[:, None]
    smallest = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < smallest, -jnp.inf, logits)


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
    )  # greedy batches never pay for a sort of the vocabulary


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
