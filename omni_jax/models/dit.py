"""Flow-matching transformer that turns speech codes (50 Hz) into a log mel spectrogram (100 Hz).

Attention is confined to blocks of 24 mel frames: every layer sees its own block, a few also the block before or the
block after, so the cost is linear in length. What one velocity depends on is prepared at the pace at which it changes:

    Voice          once per speaker     timbre and speaker vector, through their columns of the input projection
    Conditioning   once per codes       + code embeddings, each repeated for its two mel frames
    Modulation     once per solver      shifts, scales and gates of all layers for all evaluation times
    velocity       36 times             x through its columns, and the layers
"""

import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from omni_jax.config import DiTConfig

TIME_FREQUENCIES = 128
NORM_EPS = 1e-6


@flax.struct.dataclass
class Voice:
    """A speaker, projected to the width of the network; the null voice is what guidance pushes away from."""

    conditional: Float[Array, "B D"]
    null: Float[Array, " D"]


@flax.struct.dataclass
class Conditioning:
    """All of the network's first layer that does not depend on the state of the flow. `null` is None without guidance."""

    conditional: Float[Array, "B T D"]
    null: Float[Array, " D"] | None


@flax.struct.dataclass
class Modulation:
    """Shift, scale and gate before and after attention and feed-forward of every layer, for E times."""

    layers: Float[Array, "L E 6 D"]
    final: Float[Array, "E 2 D"]


def time_features(t: Float[Array, " E"]) -> Float[Array, "E 256"]:
    """Sines, then cosines, of 1000·t at 128 frequencies from 1 down to 1/10000. Float32: the angles reach 1000 rad."""
    frequencies = jnp.exp(-math.log(10000) / (TIME_FREQUENCIES - 1) * jnp.arange(TIME_FREQUENCIES, dtype=jnp.float32))
    angles = 1000 * t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotary_angles(
    positions: Int[Array, "#B T"], head_dim: int, theta: float
) -> tuple[Float[Array, "#B T h"], Float[Array, "#B T h"]]:
    """Float32 cosines and sines of the head_dim / 2 rotation angles of each position."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate_first_head(
    x: Float[Array, "B T N H"], cos: Float[Array, "#B T h"], sin: Float[Array, "#B T h"]
) -> Float[Array, "B T N H"]:
    """Rotate the pairs (0,1), (2,3), … of head 0. The published model was trained with its other heads unrotated."""
    head = x[..., 0, :].astype(jnp.float32)
    even, odd = head[..., 0::2], head[..., 1::2]
    rotated = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(head.shape)
    return jnp.concatenate([rotated[..., None, :].astype(x.dtype), x[..., 1:, :]], axis=-2)


def block_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T N H"],
    value: Float[Array, "B T N H"],
    valid: Bool[Array, "B T"],
    *,
    block_size: int,
    look_back: int,
    look_ahead: int,
) -> Float[Array, "B T N H"]:
    """Attention of every block to itself, `look_back` blocks before and `look_ahead` after it.

    T is a multiple of `block_size`; keys that are not `valid` are not seen. Softmax in float32.

        block b, looking back 1:   keys │ b-1 │ b │     block 0:  │ none │ 0 │
    """
    batch, time, _, head_dim = query.shape
    blocks = time // block_size

    def window(x):
        """[B, T, ...] -> [B, blocks, keys of the window, ...]; beyond the ends zero, or False."""
        x = x.reshape(batch, blocks, block_size, *x.shape[2:])
        padded = jnp.pad(x, ((0, 0), (look_back, look_ahead)) + ((0, 0),) * (x.ndim - 2))
        seen = [padded[:, start : start + blocks] for start in range(look_back + look_ahead + 1)]
        return jnp.concatenate(seen, axis=2)

    query = query.reshape(batch, blocks, block_size, *query.shape[2:])
    scores = jnp.einsum("bcqnh,bcknh->bcnqk", query, window(key), preferred_element_type=jnp.float32)
    # A finite floor: a query without any key (padding) must not turn into NaN.
    scores = jnp.where(window(valid)[:, :, None, None, :], scores * head_dim**-0.5, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bcnqk,bcknh->bcqnh", weights, window(value)).reshape(batch, time, *value.shape[2:])


def layer_windows(config: DiTConfig) -> tuple[list[tuple[int, int]], Int[np.ndarray, " L"]]:
    """The distinct (look_back, look_ahead) of the model, in blocks, and which of them each layer uses."""
    windows = [
        (int(i in config.look_backward_layers), int(i in config.look_ahead_layers))
        for i in range(config.num_hidden_layers)
    ]
    distinct = sorted(set(windows))
    return distinct, np.asarray([distinct.index(window) for window in windows], np.int32)


def _partitioned(*names: str):
    return nn.with_logical_partitioning(nn.initializers.lecun_normal(), names)


def _zeros(*names: str):
    return nn.with_logical_partitioning(nn.initializers.zeros, names)


def _dense(features: int, name: str, names: tuple[str, str], dtype: Any) -> nn.Dense:
    return nn.Dense(features, kernel_init=_partitioned(*names), bias_init=_zeros(names[1]), dtype=dtype, name=name)


def _modulated_norm(x: Float[Array, "B T D"], shift: jax.Array, scale: jax.Array) -> Float[Array, "B T D"]:
    """Layer norm in float32 without parameters of its own, then (1 + scale) and shift."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + NORM_EPS)
    return normed * (1 + scale) + shift


class BlockAttention(nn.Module):
    """Projections around `block_attention`; `window` picks one of the model's window shapes."""

    config: DiTConfig
    dtype: Any

    @nn.compact
    def __call__(self, x, window, rotary, valid):
        c = self.config

        def project(name):
            return nn.DenseGeneral(
                (c.num_attention_heads, c.head_dim),
                kernel_init=_partitioned("embed", "heads", "head_dim"),
                bias_init=_zeros("heads", "head_dim"),
                dtype=self.dtype,
                name=name,
            )(x)

        query, key, value = project("query"), project("key"), project("value")
        query, key = rotate_first_head(query, *rotary), rotate_first_head(key, *rotary)

        def attend(look_back, look_ahead):
            return lambda *qkv: block_attention(
                *qkv, valid, block_size=c.block_size, look_back=look_back, look_ahead=look_ahead
            )

        attended = jax.lax.switch(window, [attend(*shape) for shape in layer_windows(c)[0]], query, key, value)
        return nn.DenseGeneral(
            c.hidden_size,
            axis=(-2, -1),
            kernel_init=_partitioned("heads", "head_dim", "embed"),
            bias_init=_zeros("embed"),
            dtype=self.dtype,
            name="out",
        )(attended)


class Layer(nn.Module):
    """Modulated attention and feed-forward, each behind its gate. `modulation` is [B or 1, 6, D], float32."""

    config: DiTConfig
    dtype: Any

    @nn.compact
    def __call__(self, x, modulation, window, rotary, valid):
        c = self.config
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = jnp.split(modulation, 6, axis=1)
        h = _modulated_norm(x, shift_a, scale_a)
        x = x + gate_a * BlockAttention(c, self.dtype, name="attention")(h, window, rotary, valid)
        h = _modulated_norm(x, shift_f, scale_f)
        x = x + gate_f * FeedForward(c, self.dtype, name="mlp")(h)
        return x, x


class FeedForward(nn.Module):
    config: DiTConfig
    dtype: Any

    @nn.compact
    def __call__(self, x):
        width = self.config.hidden_size
        h = _dense(self.config.ff_mult * width, "up", ("embed", "mlp"), self.dtype)(x)
        return _dense(width, "down", ("mlp", "embed"), self.dtype)(jax.nn.gelu(h, approximate=True))


class _StackedDense(nn.Module):
    """One linear layer per transformer layer, all applied to the same input: [E, D] -> [L, E, F]."""

    layers: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        init = nn.with_logical_partitioning(
            nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=(0,)), ("layers", "embed", "mlp")
        )
        kernel = self.param("kernel", init, (self.layers, x.shape[-1], self.features))
        bias = self.param("bias", _zeros("layers", "mlp"), (self.layers, self.features))
        y = jnp.einsum("ed,ldf->lef", x.astype(self.dtype), kernel.astype(self.dtype))
        return y + bias[:, None].astype(self.dtype)


class _InputProjection(nn.Module):
    """One published linear layer over [mel ‖ timbre ‖ code ‖ speaker], applied by its columns."""

    config: DiTConfig
    dtype: Any

    def setup(self):
        c = self.config
        width = c.mel_dim + c.enc_dim + c.emb_dim + c.enc_emb_dim
        self.kernel = self.param("kernel", _partitioned("code_embed", "embed"), (width, c.hidden_size))
        self.bias = self.param("bias", _zeros("embed"), (c.hidden_size,))

    def part(self, x: jax.Array, part: str) -> jax.Array:
        c = self.config
        ends = np.cumsum([c.mel_dim, c.enc_dim, c.emb_dim, c.enc_emb_dim])
        i = ("mel", "timbre", "code", "speaker").index(part)
        return x.astype(self.dtype) @ self.kernel[ends[i] - x.shape[-1] : ends[i]].astype(self.dtype)


class DiT(nn.Module):
    """Velocity of the flow. Use the functions below, which say what each method takes, with `apply`.

    Args:
        dtype: of the matrix products. Norms, softmax, angles, residual stream and solver state are float32.
        remat: recompute layers in the backward pass (training).
    """

    config: DiTConfig
    dtype: Any = jnp.float32
    remat: bool = False

    def setup(self):
        c = self.config
        self.time_in = _dense(c.hidden_size, "time_in", ("code_embed", "embed"), self.dtype)
        self.time_out = _dense(c.hidden_size, "time_out", ("code_embed", "embed"), self.dtype)
        self.codes = nn.Embed(c.num_embeds + 1, c.emb_dim, embedding_init=_partitioned("vocab", "code_embed"))
        self.input = _InputProjection(c, self.dtype)
        self.modulation = _StackedDense(c.num_hidden_layers, 6 * c.hidden_size, self.dtype)
        self.final_modulation = _dense(2 * c.hidden_size, "final_modulation", ("embed", "mlp"), self.dtype)
        self.layers = nn.scan(
            nn.remat(Layer, prevent_cse=False) if self.remat else Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast),
            length=c.num_hidden_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, self.dtype)
        self.output = _dense(c.mel_dim, "output", ("embed", "code_embed"), self.dtype)

    def voice(self, speaker, timbre, null_timbre) -> Voice:
        project = self.input.part
        conditional = project(timbre, "timbre") + project(speaker, "speaker") + self.input.bias
        null = project(null_timbre, "timbre") + project(self.codes.embedding[0], "code") + self.input.bias
        return Voice(conditional.astype(jnp.float32), null.astype(jnp.float32))

    def condition(self, codes, voice: Voice, guided: bool) -> Conditioning:
        embedded = self.codes.embedding.at[codes].get(mode="clip")
        frames = jnp.repeat(self.input.part(embedded, "code"), self.config.repeats, axis=1)
        return Conditioning(frames + voice.conditional[:, None], voice.null if guided else None)

    def modulate(self, t) -> Modulation:
        hidden = jax.nn.silu(self.time_out(jax.nn.silu(self.time_in(time_features(t)))))
        layers, final = self.modulation(hidden), self.final_modulation(hidden)
        shape = (self.config.num_hidden_layers, t.shape[0], 6, self.config.hidden_size)
        return Modulation(
            layers.reshape(shape).astype(jnp.float32), final.reshape(t.shape[0], 2, -1).astype(jnp.float32)
        )

    def __call__(self, x, modulation: Modulation, conditioning: Conditioning, valid, positions, trace: bool = False):
        """Velocity of each branch [B, branches, T, mel_dim] (conditional, then null), and the traced hidden states."""
        c = self.config
        batch, time, _ = x.shape
        h = self.input.part(x, "mel")
        # The branches of one row lie side by side, so that a batch split over devices stays where it is.
        branches = [h + conditioning.conditional] + ([] if conditioning.null is None else [h + conditioning.null])
        count = len(branches)
        h = jnp.stack(branches, axis=1).reshape(batch * count, time, -1).astype(jnp.float32)

        def per_branch(a, axis=0):
            return a if a.shape[axis] == 1 else jnp.repeat(a, count, axis=axis)

        tail = -time % c.block_size
        h = jnp.pad(h, ((0, 0), (0, tail), (0, 0)))
        valid = per_branch(jnp.pad(jnp.broadcast_to(valid, (batch, time)), ((0, 0), (0, tail))))
        valid = jnp.broadcast_to(valid, h.shape[:2])
        rotary = rotary_angles(jnp.pad(positions, ((0, 0), (0, tail))), c.head_dim, c.rope_theta)
        rotary = tuple(per_branch(a) for a in rotary)

        windows = jnp.asarray(layer_windows(c)[1])
        h, hidden_states = self.layers(h, per_branch(modulation.layers, axis=1), windows, rotary, valid)
        scale, shift = jnp.split(per_branch(modulation.final), 2, axis=1)
        velocity = self.output(_modulated_norm(h, shift, scale)).astype(jnp.float32)
        velocity = velocity[:, :time].reshape(batch, count, time, c.mel_dim)
        return (velocity, hidden_states[:, :, :time]) if trace else velocity
