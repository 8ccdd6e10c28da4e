"""BigVGAN vocoder: log mel (100 Hz) to waveform (24 kHz) (Lee et al. 2023).

Every convolution pads with zeros at the true ends of its row, and every anti-aliasing filter repeats the edge there.
So a row in a batch with `lengths` is exactly what it is alone.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from omni_jax.config import BigVGANConfig
from omni_jax.layers import periodic
from omni_jax.layers.convolution import Conv1d, ConvTranspose1d, keep_frames

FLOOR_DB = -115.0
REFERENCE_DB = 20.0
EDGE_TAPS = 7  # of the first and the last convolution


def normalise_log_mel(mel: Float[Array, "B T M"]) -> Float[Array, "B T M"]:
    """Natural-log amplitude -> decibels below the reference -> [-1, 1].

    0 -> 0.65217, -5 -> -0.10312; from 2.3026 up -> 1, from -10.94 down -> -1.
    """
    amplitude = jnp.maximum(jnp.exp(mel), 10 ** (FLOOR_DB / 20))
    decibels = 20 * jnp.log10(amplitude) - REFERENCE_DB
    return jnp.clip(2 * (decibels - FLOOR_DB) / -FLOOR_DB - 1, -1, 1)


class PeriodicBlock(nn.Module):
    """Residual steps x + conv(snake(dilated conv(snake(x)))), one per dilation ("AMP block")."""

    kernel_size: int
    dilations: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"], lengths: jax.Array | None) -> Float[Array, "B T C"]:
        channels = x.shape[-1]
        for i, dilation in enumerate(self.dilations):
            h = periodic.AntiAliasedSnake(name=f"snake_in_{i}")(x, lengths)
            h = Conv1d(channels, self.kernel_size, dilation=dilation, name=f"dilated_{i}")(h)
            h = periodic.AntiAliasedSnake(name=f"snake_mid_{i}")(h, lengths)
            x = x + Conv1d(channels, self.kernel_size, name=f"conv_{i}")(h)
        return x


class BigVGAN(nn.Module):
    """Log mel [B, T, mel_dim] -> waveform [B, T * 240] in [-1, 1].

    Args of the call:
        mel: natural-log mel, 100 frames per second.
        lengths: true frames of each row; None where all are. Samples beyond them are zero.
        trace: also return the hidden states after every upsampling stage.
    """

    config: BigVGANConfig

    @nn.compact
    def __call__(
        self, mel: Float[Array, "B T M"], lengths: Int[Array, " B"] | None = None, trace: bool = False
    ) -> Float[Array, "B W"] | tuple[Float[Array, "B W"], list[jax.Array]]:
        c = self.config
        stages = []
        h = keep_frames(normalise_log_mel(mel), lengths)
        h = Conv1d(c.upsample_initial_channel, EDGE_TAPS, name="conv_in")(h)
        for s, (rate, kernel_size) in enumerate(zip(c.upsample_rates, c.upsample_kernel_sizes)):
            h = keep_frames(h, lengths)
            h = ConvTranspose1d(h.shape[-1] // 2, kernel_size, rate, name=f"upsample_{s}")(h)
            lengths = None if lengths is None else lengths * rate
            blocks = [
                PeriodicBlock(size, dilations, name=f"block_{s}_{j}")(h, lengths)
                for j, (size, dilations) in enumerate(zip(c.resblock_kernel_sizes, c.resblock_dilation_sizes))
            ]
            h = sum(blocks) / len(blocks)
            stages.append(h)
        h = periodic.AntiAliasedSnake(name="snake_out")(h, lengths)
        h = Conv1d(1, EDGE_TAPS, use_bias=False, name="conv_out")(h)
        waveform = keep_frames(jnp.clip(h, -1, 1), lengths)[..., 0]
        return (waveform, stages) if trace else waveform


def init_params(key: jax.Array, config: BigVGANConfig) -> dict:
    """Random parameters of `BigVGAN`, boxed with the names of their axes."""
    return BigVGAN(config).init(key, jnp.zeros((1, 1, config.mel_dim)))["params"]


def samples_per_frame(config: BigVGANConfig) -> int:
    """Waveform samples of one mel frame: 240."""
    return math.prod(config.upsample_rates)


def receptive_field_frames(config: BigVGANConfig) -> int:
    """Mel frames on either side of a frame that the frame's samples can depend on.

    Follows the span of inputs behind each of the frame's samples, layer by layer, from the end to the start.
    """
    widest_block = max(
        sum((size - 1) // 2 * (dilation + 1) + 2 * periodic.REACH for dilation in dilations)
        for size, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes)
    )
    edge = EDGE_TAPS // 2

    def span(sample: int) -> tuple[int, int]:
        low, high = sample - edge - periodic.REACH, sample + edge + periodic.REACH
        for rate, size in reversed(list(zip(config.upsample_rates, config.upsample_kernel_sizes))):
            crop = (size - rate) // 2
            # Output n sums inputs i with 0 <= n + crop - rate * i < size.
            low = -((size - 1 - (low - widest_block + crop)) // rate)
            high = (high + widest_block + crop) // rate
        return low - edge, high + edge

    spans = [span(sample) for sample in range(samples_per_frame(config))]
    return max(max(-low, high) for low, high in spans)
