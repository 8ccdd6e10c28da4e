"""ECAPA-TDNN: a reference mel spectrogram to one vector of timbre (Desplanques et al. 2020; no batch norm)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from omni_jax.config import DiTConfig
from omni_jax.layers.convolution import Conv1d


def _conv(features: int, kernel_size: int = 1, dilation: int = 1, name: str | None = None) -> Conv1d:
    return Conv1d(features, kernel_size, dilation=dilation, padding="reflect", name=name)


class Res2Net(nn.Module):
    """Channels in `scale` groups: the first passes, each next one is convolved after adding the one before."""

    features: int
    scale: int
    kernel_size: int
    dilation: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        groups = jnp.split(x, self.scale, axis=-1)
        outputs = groups[:1]
        for i, group in enumerate(groups[1:]):
            if i > 0:
                group = group + outputs[-1]
            conv = _conv(self.features // self.scale, self.kernel_size, self.dilation, name=f"conv_{i}")
            outputs.append(jax.nn.relu(conv(group)))
        return jnp.concatenate(outputs, axis=-1)


class Block(nn.Module):
    """1x1 conv, Res2Net, 1x1 conv, squeeze-and-excitation, residual."""

    features: int
    scale: int
    squeeze: int
    kernel_size: int
    dilation: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        h = jax.nn.relu(_conv(self.features, name="conv_in")(x))
        h = Res2Net(self.features, self.scale, self.kernel_size, self.dilation, name="res2net")(h)
        h = jax.nn.relu(_conv(self.features, name="conv_out")(h))
        gate = h.mean(axis=1, keepdims=True)
        gate = jax.nn.relu(_conv(self.squeeze, name="squeeze")(gate))
        gate = jax.nn.sigmoid(_conv(self.features, name="excite")(gate))
        return x + h * gate


def _mean_and_deviation(x: Float[Array, "B T C"], weights: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """Weighted over time, both [B, 1, C]; weights sum to 1. The variance is kept from zero, where sqrt has no slope."""
    mean = jnp.sum(weights * x, axis=1, keepdims=True)
    variance = jnp.sum(weights * jnp.square(x - mean), axis=1, keepdims=True)
    return mean, jnp.sqrt(jnp.maximum(variance, 1e-12))


class AttentiveStatistics(nn.Module):
    """Mean and deviation over time, each channel weighing the frames for itself."""

    attention_channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B 1 2*C"]:
        mean, deviation = _mean_and_deviation(x, 1 / x.shape[1])
        context = [x, jnp.broadcast_to(mean, x.shape), jnp.broadcast_to(deviation, x.shape)]
        h = jax.nn.relu(_conv(self.attention_channels, name="hidden")(jnp.concatenate(context, axis=-1)))
        scores = _conv(x.shape[-1], name="scores")(jnp.tanh(h))
        return jnp.concatenate(_mean_and_deviation(x, jax.nn.softmax(scores, axis=1)), axis=-1)


class SpeakerEncoder(nn.Module):
    """Log mel of a reference voice, all frames real -> timbre vector.

    [B, T, mel_dim] float32 -> [B, enc_dim] float32. T must exceed the reach of the widest convolution (4 frames in
    the published model), because the paddings are mirrored.
    """

    config: DiTConfig

    @nn.compact
    def __call__(self, mel: Float[Array, "B T M"]) -> Float[Array, "B E"]:
        c = self.config
        h = jax.nn.relu(_conv(c.enc_channels[0], c.enc_kernel_sizes[0], c.enc_dilations[0], name="conv_in")(mel))
        outputs = []
        for i in range(1, len(c.enc_channels) - 1):
            block = Block(
                c.enc_channels[i],
                c.enc_res2net_scale,
                c.enc_se_channels,
                c.enc_kernel_sizes[i],
                c.enc_dilations[i],
                name=f"block_{i}",
            )
            h = block(h)
            outputs.append(h)
        aggregate = _conv(c.enc_channels[-1], c.enc_kernel_sizes[-1], c.enc_dilations[-1], name="aggregate")
        h = jax.nn.relu(aggregate(jnp.concatenate(outputs, axis=-1)))
        pooled = AttentiveStatistics(c.enc_attention_channels, name="pooling")(h)
        return _conv(c.enc_dim, name="project")(pooled)[:, 0]
