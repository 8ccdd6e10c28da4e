"""Anti-aliased periodic activation of BigVGAN: SnakeBeta computed at twice the rate, between two low-pass filters.

Neither the doubled signal nor a zero-stuffed one is ever built. A 12-tap filter at the double rate is two 6-tap
filters at the single rate, one per phase, so the whole wrapper is four short sums of shifted arrays:

    x ──6 taps──► even phase ──snake──► 6 taps ─┐
      ──6 taps──► odd phase  ──snake──► 6 taps ─┴► sum

Measured on a CPU at the vocoder's widths, this is 10 to 17 times faster than depthwise convolutions. Sines by a
polynomial and filters whose gradient is a filter make it another 4 times faster, and its gradient 6 times.
"""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from omni_jax.layers.convolution import keep_frames

TAPS = 12
REACH = 5  # input frames on either side of a frame that the wrapper looks at: 3 + 2


# Least-squares fits on [-π/2, π/2]: sin(r), odd powers, within 2e-11; cos(r), even powers, within 1e-12.
_SINE = (
    0.99999999988953,
    -0.16666666541169,
    0.0083333292581676,
    -1.9840702265674e-4,
    2.7518830863534e-6,
    -2.37943399e-8,
)
_COSINE = (1.0, -0.5, 0.041666666473086, -0.0013888884174723, 2.4801040229107e-5, -2.7524681052746e-7, 1.9907646992e-9)
_PI = (3.140625, 0.0009670257568359375, 6.277114152908325e-7)  # the first two have few digits: products are exact


def sine_squared(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """sin²(x), whose period is π: the sine of what is left of x, by a polynomial. Where |x| < 1000, within 4e-7.

    XLA's own sine is exact for any x, and takes 15 times as long on a CPU, where this is most of a vocoder's work.
    """
    rest = _rest(x)
    return jnp.square(rest * _polynomial(_SINE, jnp.square(rest)))


def _rest(x: jax.Array) -> jax.Array:
    """x less multiples of π, within [-π/2, π/2]."""
    turns = jnp.round(x * (1 / math.pi))
    for part in _PI:
        x = x - turns * part
    return x


def _polynomial(coefficients: tuple[float, ...], x: jax.Array) -> jax.Array:
    *others, value = coefficients
    for coefficient in reversed(others):
        value = value * x + coefficient
    return value


@jax.custom_vjp
def snake_beta(x: Float[Array, "... C"], alpha: Float[Array, " C"], beta: Float[Array, " C"]) -> Float[Array, "... C"]:
    """x + sin²(x · exp(alpha)) / exp(beta), per channel; both parameters are stored as logarithms."""
    return x + sine_squared(x * jnp.exp(alpha)) / (jnp.exp(beta) + 1e-9)


def _snake_gradients(kept: tuple, gradient: Float[Array, "... C"]) -> tuple:
    """Written out, so that sines are computed once, and nothing is kept but x. Half the time of what XLA derives."""
    x, alpha, beta = kept
    speed, size = jnp.exp(alpha), 1 / (jnp.exp(beta) + 1e-9)
    rest = _rest(x * speed)
    square = jnp.square(rest)
    sine, cosine = rest * _polynomial(_SINE, square), _polynomial(_COSINE, square)
    # the barrier keeps XLA from computing these anew for each of the three gradients
    slope, height = lax.optimization_barrier((2 * sine * cosine * gradient, jnp.square(sine) * gradient))
    of_alpha = jnp.einsum("...c,...c->c", slope, x) * speed * size
    of_beta = -jnp.einsum("...c->c", height) * jnp.square(size) * jnp.exp(beta)
    return gradient + slope * (speed * size), of_alpha, of_beta


snake_beta.defvjp(lambda x, alpha, beta: (snake_beta(x, alpha, beta), (x, alpha, beta)), _snake_gradients)


def kaiser_sinc_filter(cutoff: float, half_width: float, taps: int) -> Float[np.ndarray, " taps"]:
    """Low-pass filter: a sinc under a Kaiser window, normalised to sum 1 (Kaiser's design formulae).

    cutoff and half_width (of the transition band) are fractions of the sampling rate; `taps` is even.
    """
    attenuation = 2.285 * (taps // 2 - 1) * math.pi * 4 * half_width + 7.95  # dB
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation >= 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    else:
        beta = 0.0
    time = np.arange(taps) - taps / 2 + 0.5
    kernel = np.kaiser(taps, beta) * np.sinc(2 * cutoff * time)
    return (kernel / kernel.sum()).astype(np.float32)


Taps = tuple[float, ...]
_FILTER: Taps = tuple(map(float, kaiser_sinc_filter(cutoff=0.25, half_width=0.3, taps=TAPS)))
_DOUBLED: Taps = tuple(2 * tap for tap in _FILTER)  # zeros between the samples take half of the sum


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _fir(x: Float[Array, "B T C"], taps: Taps) -> Float[Array, "B T2 C"]:
    """Correlation of every channel with the same taps, without padding."""
    length = x.shape[1] - len(taps) + 1
    return sum(x[:, i : i + length] * tap for i, tap in enumerate(taps))


def _fir_transposed(taps: Taps, _: None, gradient: Float[Array, "B T2 C"]) -> tuple[Float[Array, "B T C"]]:
    """The gradient is a correlation, too. Derived from slices it would be a sum of padded arrays, and three times as
    slow."""
    beyond = len(taps) - 1
    return (_fir(jnp.pad(gradient, ((0, 0), (beyond, beyond), (0, 0))), taps[::-1]),)


_fir.defvjp(lambda x, taps: (_fir(x, taps), None), _fir_transposed)


def _at_end(x: Float[Array, "B T C"], lengths: jax.Array | None) -> Float[Array, "B 1 C"]:
    """Last true frame of each row."""
    if lengths is None:
        return x[:, -1:]
    return jnp.take_along_axis(x, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)


def anti_aliased(
    activation: Callable[[jax.Array], jax.Array], x: Float[Array, "B T C"], lengths: jax.Array | None = None
) -> Float[Array, "B T C"]:
    """Apply an element-wise `activation` at twice the rate of x, low-passed before and after.

    Both filters repeat the edge values of their own input beyond its ends. `lengths` [B] gives each row's true end:
    a row's first `lengths` frames are what the row would give alone, and the rest of it is zero.
    """
    batch, time, channels = x.shape
    inside = None if lengths is None else (jnp.arange(time) < lengths[:, None])[..., None]

    def extend(signal, last):
        return signal if inside is None else jnp.where(inside, signal, last)

    x = jnp.pad(extend(x, _at_end(x, lengths)), ((0, 0), (3, 3), (0, 0)), mode="edge")
    # Sample 2q of the doubled signal is a sum over frames q-3 … q+2; sample 2q+1 over q-2 … q+3.
    even = activation(_fir(x[:, :-1], _DOUBLED[1::2][::-1]))
    odd = activation(_fir(x[:, 1:], _DOUBLED[0::2][::-1]))

    first, last = even[:, :1], _at_end(odd, lengths)  # edge values of the doubled signal
    even, odd = extend(even, last), extend(odd, last)

    def repeat(edge, count):
        return jnp.broadcast_to(edge, (batch, count, channels))

    even = jnp.concatenate([repeat(first, 2), even, repeat(last, 3)], axis=1)
    odd = jnp.concatenate([repeat(first, 3), odd, repeat(last, 2)], axis=1)
    # Without the barrier XLA fuses the sines into the taps and computes each of them six times.
    even, odd = lax.optimization_barrier((even, odd))
    return keep_frames(_fir(even, _FILTER[1::2]) + _fir(odd, _FILTER[0::2]), lengths)


class AntiAliasedSnake(nn.Module):
    """SnakeBeta inside the anti-aliasing wrapper; one alpha and one beta per channel, in log scale."""

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"], lengths: jax.Array | None = None) -> Float[Array, "B T C"]:
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",))
        alpha = self.param("alpha", init, (x.shape[-1],))
        beta = self.param("beta", init, (x.shape[-1],))
        return anti_aliased(lambda signal: snake_beta(signal, alpha, beta), x, lengths)
