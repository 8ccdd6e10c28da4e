"""Speech tokenizer: mel of speech to codes of one codebook, one for 20 ms (50 Hz).

Qwen2.5-Omni's own was never published. Two routes to one, over the same layers in the same blocks of 2 s as the audio
encoder, so that a block's codes are known as soon as it has been heard:

    inversion   mel ─► all layers ─► classifier ─► code            trained on sound that the published decoder made,
                                                                   whose codes are known: codes of the published Talker
    scratch     mel ─► 6 layers ─► 4 channels, rounded ─► code     the place of the quantiser is that of the sibling
                                    │                              Qwen3-TTS (arXiv:2601.15621), its kind that of
                                    ├─► 26 layers ─► text          CosyVoice 2 (arXiv:2412.10117)
                                    └─► convolutions ─► mel        both only train the codes

The text is recognised by connectionist temporal classification: its loss is exact, it needs no decoder that could
learn to guess what the codes do not say, and so what is said has to be in the codes.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from omni_jax.config import SpeechTokenizerConfig
from omni_jax.layers import fsq
from omni_jax.layers.convolution import Conv1d, ConvTranspose1d
from omni_jax.layers.linear import Linear
from omni_jax.layers.norms import LayerNorm
from omni_jax.layers.rounded_products import rounding_products
from omni_jax.models.audio_encoder import convolved, seen_positions, sinusoids, stacked_layers

NO_CODE = -1  # where there is no sound
BLANK_LOGIT = 5.0
MEAN_LOG_MEL = -5.0  # about where speech lies: without it the first steps would only find this out


@struct.dataclass
class Tokenized:
    """C = F / 2 · G codes of each row; `NO_CODE` beyond its sound. What training needs is None otherwise.

    hidden_states: inversion: what the classifier reads.
    text_logits: scratch: label 0 is the blank.
    mel: scratch: natural-log mel restored from the codes, 100 frames a second.
    """

    codes: Int[Array, "B C"]
    hidden_states: Float[Array, "B C D"] | None = None
    text_logits: Float[Array, "B C V"] | None = None
    mel: Float[Array, "B T M"] | None = None


class MelDecoder(nn.Module):
    """Quantised vectors at 50 Hz to a log mel at 100 Hz: a few convolutions, over the borders of blocks."""

    channels: int
    bins: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B C D"], valid: Bool[Array, "B C"]) -> Float[Array, "B T M"]:
        def real(x):  # what lies beyond the sound must not sound into it
            return x * jnp.repeat(valid, x.shape[1] // valid.shape[1], axis=1)[..., None].astype(x.dtype)

        def conv(features, name):
            return Conv1d(features, 7, dtype=self.dtype, name=name)

        x = jax.nn.gelu(conv(self.channels, "conv_in")(real(x)))
        x = jax.nn.gelu(ConvTranspose1d(self.channels, 4, 2, dtype=self.dtype, name="upsample")(real(x)))
        x = x + jax.nn.gelu(conv(self.channels, "conv")(real(x)))
        return conv(self.bins, "conv_out")(real(x)).astype(jnp.float32) + MEAN_LOG_MEL


class SpeechTokenizer(nn.Module):
    """Blocks of Whisper's log mel to codes."""

    config: SpeechTokenizerConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, mel: Float[Array, "B G F M"], frames: Int[Array, "B G"], training: bool = False) -> Tokenized:
        """
        Args:
            mel: log-mel blocks, F = 2 * n_window frames, zero beyond the valid ones.
            frames: valid frames of each block; 0 for a padding block.
            training: also compute what only losses need. Initialise with it.
        """
        c = self.config
        common = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        batch, blocks = frames.shape
        x = convolved(mel.reshape(-1, *mel.shape[2:]), frames.reshape(-1), c.d_model, self.dtype)
        seen = seen_positions(frames.reshape(-1), x.shape[1])
        valid = valid_positions(frames, x.shape[1])

        def layers(x, length, name):
            return stacked_layers(length, self.remat)(c.encoder, name=name, **common)(x, seen)[0]

        def rows(x):  # blocks of a row one after another
            return x.reshape(batch, -1, *x.shape[2:])

        def linear(in_axis, out_axis, name, **options):
            (a, width_in), (b, width_out) = in_axis, out_axis
            options = dict(stddev=c.initializer_range, **common) | options
            return Linear((width_in,), (width_out,), (a, b), name=name, **options)

        x = layers(x, c.coding_layers, "layers")
        width = ("embed", c.d_model)
        if c.route == "inversion":
            hidden = rows(LayerNorm(name="final_norm", param_dtype=self.param_dtype)(x))
            codes = Classifier(c, name="head", **common)(hidden, blocks)
            return Tokenized(jnp.where(valid, codes, NO_CODE), hidden if training else None)

        channels = ("code_channels", len(c.levels))
        # wide enough at the start that all levels are in use; float32, for a rounding error here is another code
        reduce = linear(width, channels, "quantize_in", dtype=jnp.float32, stddev=c.d_model**-0.5)
        hidden = LayerNorm(name="quantize_norm", param_dtype=self.param_dtype)(x)
        with rounding_products(False):
            vectors = fsq.quantise(reduce(hidden), c.levels)
        out = Tokenized(jnp.where(valid, rows(fsq.codes_of(vectors, c.levels)), NO_CODE))
        if not training:
            return out
        # as loud as the places that are added to it, or the layers above would learn to do without
        x = linear(channels, width, "quantize_out", use_bias=True, stddev=len(c.levels) ** -0.5)(vectors)
        mel = MelDecoder(c.decoder_channels, c.target_mel_bins, self.dtype, name="mel_decoder")(rows(x), valid)
        x = x + sinusoids(x.shape[1], c.d_model).astype(x.dtype)
        x = layers(x, c.encoder_layers - c.quantizer_layer, "upper_layers")
        x = LayerNorm(name="final_norm", param_dtype=self.param_dtype)(x)
        logits = linear(width, ("labels", c.text_vocab_size), "text_head", use_bias=True)(rows(x))
        # most positions are blank: if that were left to learn, its gradient would push all codes to one
        blank = jnp.zeros(c.text_vocab_size).at[0].set(BLANK_LOGIT)
        return out.replace(text_logits=logits.astype(jnp.float32) + blank, mel=mel)


class Classifier(nn.Module):
    """The most probable code of each position, a block at a time: all logits at once would be the largest array."""

    config: SpeechTokenizerConfig
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, hidden_states: Float[Array, "B C D"], blocks: int) -> Int[Array, "B C"]:
        c = self.config
        init = nn.with_logical_partitioning(nn.initializers.normal(c.initializer_range), ("embed", "vocab"))
        kernel = self.param("kernel", init, (c.d_model, c.num_codes), self.param_dtype).astype(self.dtype)
        batch, count, width = hidden_states.shape

        def choose(hidden):
            logits = jnp.einsum("bcd,dv->bcv", hidden, kernel, preferred_element_type=jnp.float32)
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)

        pieces = jnp.moveaxis(jax.lax.stop_gradient(hidden_states).reshape(batch, blocks, -1, width), 1, 0)
        return jnp.moveaxis(jax.lax.map(choose, pieces), 0, 1).reshape(batch, count)


def init_params(key: jax.Array, config: SpeechTokenizerConfig) -> dict:
    """Random parameters, boxed with the names of their axes."""
    mel = jnp.zeros((1, 1, 2 * config.n_window, config.num_mel_bins))
    return SpeechTokenizer(config).init(key, mel, jnp.ones((1, 1), jnp.int32), training=True)["params"]


def from_audio_encoder(params: dict, audio_encoder: dict, config: SpeechTokenizerConfig) -> dict:
    """`params` with convolutions, layers and last norm of an audio encoder of the same width and depth: where both
    routes should start, for it has learnt to hear."""
    below = config.coding_layers
    taken = {name: audio_encoder[name] for name in ("conv1", "conv2", "final_norm")}
    taken["layers"] = jax.tree.map(lambda leaf: leaf[:below], audio_encoder["layers"])
    if config.route == "scratch":
        taken["upper_layers"] = jax.tree.map(lambda leaf: leaf[below:], audio_encoder["layers"])
    return params | taken


def codes(
    params: dict,
    config: SpeechTokenizerConfig,
    mel: Float[Array, "B G F M"],
    frames: Int[Array, "B G"],
    *,
    dtype: Any = jnp.float32,
) -> Int[Array, "B C"]:
    """Codes of each row, `NO_CODE` beyond its sound. `params` are those of the tokenizer alone."""
    return SpeechTokenizer(config, dtype=dtype).apply({"params": params}, mel, frames).codes


def valid_positions(frames: Int[Array, "B G"], length: int) -> Bool[Array, "B C"]:
    """Positions that have sound; `length` of them to a block. An odd last frame has one."""
    valid = jnp.arange(length) < ((frames + 1) // 2)[..., None]
    return valid.reshape(frames.shape[0], -1)


def code_counts(codes: Int[Array, "..."], num_codes: int) -> Float[Array, " V"]:
    """How often each code occurs; negative ones do not count. Counts of batches add up."""
    flat = codes.reshape(-1)
    return jnp.zeros(num_codes).at[jnp.where(flat < 0, num_codes, flat)].add(1.0, mode="drop")


def codebook_use(counts: Float[Array, " V"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Share of the codes that occur, and their perplexity: how many equally frequent codes would say as much."""
    share = counts / jnp.maximum(counts.sum(), 1)
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0))
    return jnp.mean(counts > 0), jnp.exp(entropy)
