"""Audio encoder: Whisper-style layers that attend within blocks of 2 s (paper, section 2.2).

Blocks never see each other, not even through the convolutions, so a block can be encoded as soon as it has been
heard: the encoder's state between blocks is empty.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from omni_jax.config import AudioEncoderConfig
from omni_jax.layers.convolution import Conv1d
from omni_jax.layers.feed_forward import GeluFeedForward
from omni_jax.layers.interval_attention import attend_intervals
from omni_jax.layers.linear import Linear
from omni_jax.layers.norms import LayerNorm
from omni_jax.layers.remat import rematerialised
from omni_jax.layers.rounded_products import unroll


class AudioEncoderLayer(nn.Module):
    config: AudioEncoderConfig
    dtype: DTypeLike
    param_dtype: DTypeLike
    trace: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "G T D"], seen: tuple[Array, Array]):
        config = self.config
        width, heads, head_dim = config.d_model, config.encoder_attention_heads, config.head_dim
        common = dict(dtype=self.dtype, param_dtype=self.param_dtype, stddev=config.initializer_range)
        hidden = LayerNorm(name="attention_norm", param_dtype=self.param_dtype)(x)
        x = x + _Attention(width, heads, head_dim, name="attention", **common)(hidden, seen)
        hidden = LayerNorm(name="mlp_norm", param_dtype=self.param_dtype)(x)
        x = x + GeluFeedForward(width, config.encoder_ffn_dim, name="mlp", **common)(hidden)
        return x, (x if self.trace else None)


class _Attention(nn.Module):
    width: int
    heads: int
    head_dim: int
    dtype: DTypeLike
    param_dtype: DTypeLike
    stddev: float

    @nn.compact
    def __call__(self, x, seen):
        common = dict(dtype=self.dtype, param_dtype=self.param_dtype, stddev=self.stddev)

        def into(name: str, use_bias: bool):
            shape, axes = (self.heads, self.head_dim), ("embed", "heads", "head_dim")
            return Linear((self.width,), shape, axes, use_bias=use_bias, name=name, **common)(x)

        query, key, value = into("query", True), into("key", False), into("value", True)
        out = attend_intervals(query, key, value, *seen, reach=x.shape[1])
        shape, axes = (self.heads, self.head_dim), ("heads", "head_dim", "embed")
        return Linear(shape, (self.width,), axes, use_bias=True, name="out", **common)(out)


class AudioEncoder(nn.Module):
    """Mel blocks to audio tokens, one token for 40 ms."""

    config: AudioEncoderConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: str = "none"
    trace: bool = False

    @nn.compact
    def __call__(
        self, mel: Float[Array, "G F M"], frames: Int[Array, "G"]
    ) -> tuple[Float[Array, "G T D"], Float[Array, "L G U E"] | None]:
        """Encodes independent blocks.

        Args:
            mel: log-mel blocks, F = 2 * n_window frames, zero beyond the valid ones.
            frames: valid frames of each block; 0 for a padding block.

        Returns:
            T = n_window // 2 tokens a block, of which the first ((frames - 1) // 2 + 1) // 2 are real, and each
            layer's output when `trace` is set.
        """
        config = self.config
        common = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = convolved(mel, frames, config.d_model, self.dtype)
        seen = seen_positions(frames, x.shape[1])
        layers = stacked_layers(config.encoder_layers, self.remat)
        x, outputs = layers(config, trace=self.trace, name="layers", **common)(x, seen)

        x = x.reshape(x.shape[0], x.shape[1] // 2, 2, config.d_model).mean(axis=2)
        x = LayerNorm(name="final_norm", param_dtype=self.param_dtype)(x)
        shape = (config.d_model,), (config.output_dim,)
        x = Linear(*shape, ("embed", "embed_out"), use_bias=True, name="projection", **common)(x)
        # marker embeddings of the published checkpoint, which its own forward pass never reads
        self.param(
            "bos_eos_embedding",
            nn.with_logical_partitioning(nn.initializers.normal(config.initializer_range), (None, "embed_out")),
            (2, config.output_dim),
            self.param_dtype,
        )
        return x, outputs


def convolved(mel: Float[Array, "G F M"], frames: Int[Array, "G"], width: int, dtype: DTypeLike) -> Array:
    """Mel blocks to positions [G, F / 2, D], one for 20 ms, with their place in the block added.

    Called inside a module, whose `conv1` and `conv2` it makes.
    """
    heard = (jnp.arange(mel.shape[1]) < frames[:, None])[..., None].astype(dtype)
    x = jax.nn.gelu(Conv1d(width, 3, dtype=dtype, name="conv1")(mel.astype(dtype) * heard), approximate=False)
    # the bias makes padding non-zero; the next convolution must not see it
    x = Conv1d(width, 3, stride=2, dtype=dtype, name="conv2")(x * heard)
    x = jax.nn.gelu(x, approximate=False)
    return x + sinusoids(x.shape[1], width).astype(dtype)


def stacked_layers(length: int, remat: str = "none") -> type[nn.Module]:
    """`AudioEncoderLayer`, `length` times, as one module over stacked parameters."""
    return nn.scan(
        rematerialised(AudioEncoderLayer, remat),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast,),
        length=length,
        unroll=unroll(),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def seen_positions(frames: Int[Array, "G"], length: int) -> tuple[Int[Array, "G T"], Int[Array, "G T"]]:
    """Bounds of attention: all positions of a block see its valid ones."""
    valid = jnp.broadcast_to((frames[:, None] + 1) // 2, (frames.shape[0], length))
    return jnp.zeros_like(valid), valid


def sinusoids(length: int, width: int, *, max_timescale: float = 10000.0) -> Float[Array, "T D"]:
    """Whisper's position table: sines in the first half of the channels, cosines in the second."""
    rates = np.exp(-np.log(max_timescale) / (width // 2 - 1) * np.arange(width // 2))
    angles = np.arange(length)[:, None] * rates[None, :]
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), jnp.float32)
