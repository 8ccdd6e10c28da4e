"""What tells real speech from the vocoder's, in training only: discriminators of periods and of spectrograms.

    periods       HiFi-GAN (arXiv:2010.05646): every p-th sample side by side, [W] -> [W / p, p], convolved along time
    resolutions   UnivNet (arXiv:2106.07889), as BigVGAN has them (arXiv:2206.04658): magnitudes of a short-time
                  Fourier transform, [W] -> [T, F], convolved along both; wide kernels and strides lie along time, so
                  that every bin keeps its own scores

Each gives scores, 1 for real, and the features that it finds on the way, to be matched.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from omni_jax.config import DiscriminatorConfig
from omni_jax.layers.spectrogram import magnitudes

_SLOPE = 0.1  # of leaky ReLU below zero


@struct.dataclass
class Judgement:
    """Of each of K discriminators: scores [B, …], and features, a list of [B, T, F, C] from input to output."""

    scores: tuple[Array, ...]
    features: tuple[tuple[Array, ...], ...]


class Conv2d(nn.Module):
    """Convolution over [B, T, F, C] that keeps the size at stride 1, with weight normalisation (arXiv:1602.07868):
    the kernel gives a direction to every output channel, `scale` a length."""

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T F I"]) -> Float[Array, "B T2 F2 O"]:
        partition = nn.with_logical_partitioning
        shape = (*self.kernel_size, x.shape[-1], self.features)
        init = partition(nn.initializers.lecun_normal(), ("conv_kernel", "conv_kernel", "conv_in", "conv_out"))
        kernel = self.param("kernel", init, shape).astype(jnp.float32)
        scale = self.param("scale", partition(nn.initializers.ones, ("conv_out",)), (self.features,))
        bias = self.param("bias", partition(nn.initializers.zeros, ("conv_out",)), (self.features,))
        kernel = kernel * scale * jax.lax.rsqrt(jnp.sum(jnp.square(kernel), axis=(0, 1, 2)) + 1e-12)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            self.strides,
            [((size - 1) // 2, (size - 1) // 2) for size in self.kernel_size],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + bias.astype(self.dtype)


class Tower(nn.Module):
    """Convolutions, each but the last followed by leaky ReLU: (channels, kernel size, strides) of each."""

    layers: tuple[tuple[int, tuple[int, int], tuple[int, int]], ...]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T F C"]) -> tuple[Float[Array, "B S"], tuple[Array, ...]]:
        features = []
        for i, (channels, kernel_size, strides) in enumerate(self.layers):
            x = Conv2d(channels, kernel_size, strides, self.dtype, name=f"conv_{i}")(x)
            x = x if i == len(self.layers) - 1 else jax.nn.leaky_relu(x, _SLOPE)
            features.append(x)
        return x.reshape(len(x), -1).astype(jnp.float32), tuple(features)


class Discriminator(nn.Module):
    """All of them together. Waveform [B, W], W above the longest transform and of any length otherwise."""

    config: DiscriminatorConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, waveform: Float[Array, "B W"]) -> Judgement:
        c, results = self.config, []
        channels = c.period_channels
        strides = [(3, 1)] * (len(channels) - 1) + [(1, 1)]
        layers = (*((n, (5, 1), stride) for n, stride in zip(channels, strides)), (1, (3, 1), (1, 1)))
        for period in c.periods:
            x = jnp.pad(waveform, ((0, 0), (0, -waveform.shape[1] % period)), mode="reflect")
            tower = Tower(layers, self.dtype, name=f"period_{period}")
            results.append(tower(x.reshape(len(x), -1, period, 1)))
        n = c.resolution_channels
        # published as (3, 9) over [frequency, time]; here time comes first
        layers = ((n, (9, 3), (1, 1)), *((n, (9, 3), (2, 1)),) * 3, (n, (3, 3), (1, 1)), (1, (3, 3), (1, 1)))
        for n_fft, hop, window in c.resolutions:
            tower = Tower(layers, self.dtype, name=f"resolution_{n_fft}_{hop}")
            results.append(tower(magnitudes(waveform, n_fft, hop, window)[..., None]))
        scores, features = zip(*results)
        return Judgement(scores, features)


def init_params(key: jax.Array, config: DiscriminatorConfig) -> dict:
    """Random parameters, boxed with the names of their axes."""
    longest = max((n_fft for n_fft, _, _ in config.resolutions), default=0)
    return Discriminator(config).init(key, jnp.zeros((1, max(2 * longest, 64))))["params"]


def judge(params: dict, config: DiscriminatorConfig, waveform: Float[Array, "B W"], dtype=jnp.float32) -> Judgement:
    """`params` are those of the discriminator alone."""
    return Discriminator(config, dtype=dtype).apply({"params": params}, waveform)
