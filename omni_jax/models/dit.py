"""Flow-matching transformer that turns speech codes (50 Hz) into a log mel spectrogram (100 Hz).

Attention is confined to blocks of 24 mel frames: every layer sees its own block, a few also the block before or the
block after, so the cost is linear in length. What one velocity depends on is prepared at the pace at which it changes:

    Voice          once per speaker     timbre and speaker vector, through their columns of the input projection
    Conditioning   once per codes       + code embeddings, each repeated for its two mel frames
    Modulation     once per solver      shifts, scales and gates of all layers for all evaluation times
    velocity       36 times             x through its columns, and the layers

New parameters are drawn as in F5-TTS (arXiv:2410.06885), whose network this is: codes with a variance of one, linear
layers by their fan-in, and nothing at all where the original DiT begins with nothing (AdaLN-Zero, arXiv:2212.09748):
shifts, scales, gates and the output. So codes are as loud as the noise beside them from the first step on, and every
layer begins as the identity.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from omni_jax.config import DiTConfig
from omni_jax.errors import CapacityError, OmniError
from omni_jax.layers.block_attention import rotary_angles
from omni_jax.layers.linear import Embed, Linear
from omni_jax.layers.rounded_products import rounded, unroll
from omni_jax.layers.weight_only import matrix_product
from omni_jax.models.dit_layers import Layer, layer_windows, modulated_norm, torch_stddev
from omni_jax.models.flow import FlowOptions, evaluation_times, guide, integrate
from omni_jax.models.speaker_encoder import SpeakerEncoder

TIME_FREQUENCIES = 128
DEFAULT_OPTIONS = FlowOptions()


@flax.struct.dataclass
class Voice:
    """A speaker, projected to the width of the network; the null voice is what guidance pushes away from.

    `null` is shared by all rows, or of each row where rows bring their own (`stack_voices`).
    """

    conditional: Float[Array, "B D"]
    null: Float[Array, " D"] | Float[Array, "B D"]


@flax.struct.dataclass
class Conditioning:
    """The share of the first layer that does not depend on the flow's state. `null` is None without guidance."""

    conditional: Float[Array, "B T D"]
    null: Float[Array, " D"] | Float[Array, "B 1 D"] | None


@flax.struct.dataclass
class Modulation:
    """Shift, scale and gate of attention, then of the feed-forward, of every layer, for E times.

    The solver puts its own axes [intervals, stages] in front.
    """

    layers: Float[Array, "*S L E 6 D"]
    final: Float[Array, "*S E 2 D"]


def time_features(t: Float[Array, " E"]) -> Float[Array, "E 256"]:
    """Sines, then cosines, of 1000·t at 128 frequencies from 1 down to 1/10000. Float32: the angles reach 1000 rad."""
    frequencies = jnp.exp(-math.log(10000) / (TIME_FREQUENCIES - 1) * jnp.arange(TIME_FREQUENCIES, dtype=jnp.float32))
    angles = 1000 * t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class LayerModulation(nn.Module):
    """The linear layer before each transformer layer, all applied to the same input: [E, D] -> [L, E, 6 D]."""

    config: DiTConfig
    dtype: Any

    @nn.compact
    def __call__(self, x):
        layers, width = self.config.num_hidden_layers, self.config.hidden_size
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("layers", "embed", "mlp"))
        kernel = self.param("kernel", init, (layers, width, 6 * width))
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("layers", "mlp"))
        bias = self.param("bias", init, (layers, 6 * width))
        y = jnp.einsum("ed,ldf->lef", x.astype(self.dtype), kernel.astype(self.dtype))
        return y + bias[:, None].astype(self.dtype)


class InputProjection(nn.Module):
    """One published linear layer over [mel | timbre | code | speaker], applied by its columns."""

    config: DiTConfig
    dtype: Any

    def setup(self):
        c = self.config
        self.widths = {"mel": c.mel_dim, "timbre": c.enc_dim, "code": c.emb_dim, "speaker": c.enc_emb_dim}
        fan_in = sum(self.widths.values())
        init = nn.with_logical_partitioning(nn.initializers.normal(torch_stddev(fan_in)), ("code_embed", "embed"))
        self.kernel = self.param("kernel", init, (fan_in, c.hidden_size))
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
        self.bias = self.param("bias", init, (c.hidden_size,))

    def __call__(self, part: str, x: Float[Array, "... P"]) -> Float[Array, "... D"]:
        names = list(self.widths)
        start = sum(self.widths[name] for name in names[: names.index(part)])
        kernel = self.kernel[start : start + self.widths[part]]
        return matrix_product(x, kernel, self.dtype)


class DiT(nn.Module):
    """The network. Its methods have function forms below, which document what they take.

    Args:
        dtype: of the matrix products. Norms, softmax, angles, the residual stream and the velocity are float32.
        remat: recompute layers in the backward pass (training).
        trace: return the hidden states after every layer as well.
        training: drop out `config.dropout` of what attention and the feed-forward's activation give; `apply` then
            takes rngs={"dropout": key}.
    """

    config: DiTConfig
    dtype: Any = jnp.float32
    remat: bool = False
    trace: bool = False
    training: bool = False

    def setup(self):
        c = self.config

        def linear(width, out, axes, stddev=None):
            stddev = torch_stddev(width) if stddev is None else stddev
            return Linear((width,), (out,), axes, use_bias=True, dtype=self.dtype, stddev=stddev)

        self.time_in = linear(2 * TIME_FREQUENCIES, c.hidden_size, ("code_embed", "embed"))
        self.time_out = linear(c.hidden_size, c.hidden_size, ("embed", "mlp"))
        self.codes = Embed(c.num_embeds + 1, c.emb_dim, ("vocab", "code_embed"), dtype=self.dtype, stddev=1.0)
        self.input = InputProjection(c, self.dtype)
        self.modulation = LayerModulation(c, self.dtype)
        self.layers = nn.scan(
            nn.remat(Layer, prevent_cse=rounded()) if self.remat else Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast, 0),
            length=c.num_hidden_layers,
            unroll=unroll(),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, self.dtype, self.trace, self.training)
        self.final_modulation = linear(c.hidden_size, 2 * c.hidden_size, ("embed", "mlp"), stddev=0.0)
        self.output = linear(c.hidden_size, c.mel_dim, ("embed", "code_embed"), stddev=0.0)

    def voice(self, speaker, timbre, null_timbre) -> Voice:
        null_code = self.codes(jnp.zeros((), jnp.int32))
        conditional = self.input("timbre", timbre) + self.input("speaker", speaker) + self.input.bias
        null = self.input("timbre", null_timbre) + self.input("code", null_code) + self.input.bias
        return Voice(conditional.astype(jnp.float32), null.astype(jnp.float32))

    def condition(self, codes, voice: Voice, guided: bool) -> Conditioning:
        frames = jnp.repeat(self.input("code", self.codes(codes)), self.config.repeats, axis=1)
        null = voice.null if voice.null.ndim == 1 else voice.null[:, None]
        return Conditioning(frames + voice.conditional[:, None], null if guided else None)

    def modulate(self, times) -> Modulation:
        hidden = jax.nn.silu(self.time_out(jax.nn.silu(self.time_in(time_features(times)))))
        layers = self.modulation(hidden).astype(jnp.float32)
        final = self.final_modulation(hidden).astype(jnp.float32)
        return Modulation(
            layers.reshape(*layers.shape[:2], 6, self.config.hidden_size),
            final.reshape(-1, 2, self.config.hidden_size),
        )

    def __call__(self, x, modulation: Modulation, conditioning: Conditioning, valid, positions, past=None):
        """Velocity of each branch, [B, branches, T, mel_dim]: conditional, then null if the conditioning has one.

        `modulation` is for one time, or for one time per row. With `trace`, also returns the hidden states after
        every layer, [L, B, branches, T, D].

        With `past` (leaves [L, B · branches, 24, N, H]) x goes on from a block that is over; `valid` and `positions`
        begin with that block, and the `Past` of the first block of x is returned as well.
        """
        c = self.config
        batch, time, _ = x.shape
        projected = self.input("mel", x)
        branches = [projected + conditioning.conditional]
        if conditioning.null is not None:
            branches.append(projected + conditioning.null)
        count = len(branches)
        # The branches of a row lie side by side, so that a batch split over devices stays where it is.
        h = jnp.stack(branches, axis=1).reshape(batch * count, time, -1).astype(jnp.float32)

        def per_branch(a, axis=0):
            return a if a.shape[axis] == 1 else jnp.repeat(a, count, axis=axis)

        tail = ((0, 0), (0, -time % c.block_size))
        h = jnp.pad(h, (*tail, (0, 0)))
        valid = jnp.repeat(jnp.pad(valid, tail), count, axis=0)
        cos, sin = rotary_angles(jnp.pad(positions, tail), c.head_dim, c.rope_theta)
        rotary = (per_branch(cos), per_branch(sin))

        windows = jnp.asarray(layer_windows(c)[1])
        layers = per_branch(modulation.layers, axis=1)
        h, (hidden_states, record) = self.layers(h, layers, windows, rotary, valid, past)
        scale, shift = jnp.split(per_branch(modulation.final), 2, axis=1)
        velocity = self.output(modulated_norm(h, shift, scale)).astype(jnp.float32)
        velocity = velocity.reshape(batch, count, -1, c.mel_dim)[:, :, :time]
        if past is not None:
            return velocity, record
        if not self.trace:
            return velocity
        return velocity, hidden_states.reshape(c.num_hidden_layers, batch, count, -1, c.hidden_size)[:, :, :, :time]

    def initialise(self):
        """Touch every parameter once: `DiT(config).init(key, method=DiT.initialise)`."""
        c = self.config
        voice = self.voice(jnp.zeros((1, c.enc_emb_dim)), jnp.zeros((1, c.enc_dim)), jnp.zeros(c.enc_dim))
        conditioning = self.condition(jnp.zeros((1, 1), jnp.int32), voice, False)
        x = jnp.zeros((1, c.repeats, c.mel_dim))
        valid = jnp.ones((1, c.repeats), bool)
        return self(x, self.modulate(jnp.zeros(1)), conditioning, valid, jnp.arange(c.repeats)[None])


def init_params(key: jax.Array, config: DiTConfig) -> dict:
    """Random {"speaker_encoder": …, "dit": …}, boxed with the names of their axes."""
    dit_key, speaker_key = jax.random.split(key)
    mel = jnp.zeros((1, 2 + max(d * (k - 1) for d, k in zip(config.enc_dilations, config.enc_kernel_sizes)), 1))
    mel = jnp.broadcast_to(mel, (*mel.shape[:2], config.mel_dim))
    return {
        "speaker_encoder": SpeakerEncoder(config).init(speaker_key, mel)["params"],
        "dit": DiT(config).init(dit_key, method=DiT.initialise)["params"],
    }


def check_codes(codes: np.ndarray, config: DiTConfig) -> None:
    """On the host, before the device: JAX would clamp a code outside the table without a word. Raises OmniError."""
    codes = np.asarray(codes)
    if not np.issubdtype(codes.dtype, np.integer):
        raise OmniError(f"Speech codes must be integers, not {codes.dtype}.")
    bad = (codes < 0) | (codes > config.num_embeds)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise OmniError(
            f"Speech code {codes[where]} at index {where} is outside 0 … {config.num_embeds} "
            f"({int(bad.sum())} such codes). Drop the Talker's start, end, pad and mask ids before decoding."
        )


def frame_mask(lengths: Int[Array, " B"] | None, frames: int) -> Bool[Array, "#B T"]:
    """True for the frames before each row's length; all of them where `lengths` is None."""
    if lengths is None:
        return jnp.ones((1, frames), bool)
    return jnp.arange(frames) < jnp.asarray(lengths)[:, None]


def make_voice(
    params: dict,
    config: DiTConfig,
    speaker: Float[Array, "B S"],
    ref_mel: Float[Array, "B R M"],
    *,
    dtype: Any = jnp.float32,
) -> Voice:
    """Everything the network needs to know of a speaker; compute it once and keep it.

    Args:
        params: holds "speaker_encoder" and "dit".
        speaker: the published `cond` vector.
        ref_mel: natural-log mel of the reference, 100 frames per second, all of them real.
    """
    # The null voice is not a zero timbre, but the timbre of a reference of zeros.
    mels = jnp.concatenate([ref_mel, jnp.zeros_like(ref_mel[:1])])
    timbres = SpeakerEncoder(config).apply({"params": params["speaker_encoder"]}, mels)
    model = DiT(config, dtype=dtype)
    return model.apply({"params": params["dit"]}, speaker, timbres[:-1], timbres[-1], method=DiT.voice)


def stack_voices(voices: Sequence[Voice]) -> Voice:
    """One row per given voice."""
    null = jnp.concatenate([jnp.broadcast_to(voice.null, voice.conditional.shape) for voice in voices])
    return Voice(jnp.concatenate([voice.conditional for voice in voices]), null)


def condition(
    params: dict, config: DiTConfig, codes: Int[Array, "B C"], voice: Voice, *, guided: bool = True, dtype=jnp.float32
) -> Conditioning:
    """First layer's share of codes and voice, for 2·C mel frames. Check codes on the host with `check_codes`."""
    return DiT(config, dtype=dtype).apply({"params": params["dit"]}, codes, voice, guided, method=DiT.condition)


def modulate(params: dict, config: DiTConfig, times: Float[Array, " E"], *, dtype=jnp.float32) -> Modulation:
    """Modulations of all layers for E times, reading their weights (two fifths of the model) once."""
    return DiT(config, dtype=dtype).apply({"params": params["dit"]}, times, method=DiT.modulate)


def modulate_solver(params: dict, config: DiTConfig, options: FlowOptions, *, dtype: Any = jnp.float32) -> Modulation:
    """Modulations of every evaluation that `options` ask for; leaves begin with [intervals, stages]."""
    times = evaluation_times(options)
    flat = modulate(params, config, jnp.asarray(times.reshape(-1)), dtype=dtype)
    return Modulation(  # [intervals, stages, L, 1, 6, D] and [intervals, stages, 1, 2, D]
        jnp.moveaxis(flat.layers, 1, 0)[:, :, None].reshape(*times.shape, -1, 1, *flat.layers.shape[2:]),
        flat.final[:, None].reshape(*times.shape, 1, *flat.final.shape[1:]),
    )


def velocity(
    params: dict,
    config: DiTConfig,
    x: Float[Array, "B T M"],
    t: Float[Array, ""] | Float[Array, " B"] | Modulation,
    conditioning: Conditioning,
    *,
    valid: Bool[Array, "#B T"] | None = None,
    positions: Int[Array, "#B T"] | None = None,
    guidance_scale: float | jax.Array = 0.5,
    dtype: Any = jnp.float32,
) -> Float[Array, "B T M"]:
    """d x / dt, guided where the conditioning has a null branch.

    Args:
        t: one time for all rows, one per row, or the prepared `Modulation` of either.
        valid: real frames (`frame_mask(lengths, T)`); attention sees no others. None: all.
        positions: for the rotary embedding, which only sees differences. None: 0 … T-1.
    """
    modulation = (
        t if isinstance(t, Modulation) else modulate(params, config, jnp.reshape(jnp.asarray(t), (-1,)), dtype=dtype)
    )
    batch, time, _ = x.shape
    valid = jnp.broadcast_to(frame_mask(None, time) if valid is None else valid, (batch, time))
    positions = jnp.arange(time)[None] if positions is None else jnp.reshape(positions, (-1, time))
    branches = DiT(config, dtype=dtype).apply({"params": params["dit"]}, x, modulation, conditioning, valid, positions)
    return branches[:, 0] if conditioning.null is None else guide(branches[:, 0], branches[:, 1], guidance_scale)


def solve(
    params: dict,
    config: DiTConfig,
    noise: Float[Array, "B T M"],
    conditioning: Conditioning,
    options: FlowOptions = DEFAULT_OPTIONS,
    *,
    valid: Bool[Array, "#B T"] | None = None,
    positions: Int[Array, "#B T"] | None = None,
    modulation: Modulation | None = None,
    dtype: Any = jnp.float32,
) -> Float[Array, "B T M"]:
    """Log mel at the end of the flow. Frames that are not `valid` hold nothing of meaning.

    `modulation`: what `modulate_solver` gave for these options; computed here if not given.
    """
    if modulation is None:
        modulation = modulate_solver(params, config, options, dtype=dtype)
    if conditioning.null is not None and not options.guided:
        conditioning = conditioning.replace(null=None)

    def field(x, modulation):
        return velocity(
            params,
            config,
            x,
            modulation,
            conditioning,
            valid=valid,
            positions=positions,
            guidance_scale=options.guidance_scale,
            dtype=dtype,
        )

    return integrate(field, noise, options, modulation)


def sample_full(
    params: dict,
    config: DiTConfig,
    codes: Int[Array, "B C"],
    speaker: Float[Array, "B S"],
    ref_mel: Float[Array, "B R M"],
    *,
    noise: Float[Array, "B T M"] | None = None,
    key: jax.Array | None = None,
    lengths: Int[Array, " B"] | None = None,
    options: FlowOptions = DEFAULT_OPTIONS,
    dtype: Any = jnp.float32,
) -> Float[Array, "B T M"]:
    """Log mel of whole utterances in one flow, T = 2·C: what the published model computes.

    Args:
        noise: state at t = 0; drawn from `key` if not given.
        lengths: true mel frames of each row (2 per code); the others come out as zero.
    """
    frames = codes.shape[1] * config.repeats
    if frames > config.max_position_embeddings:
        raise CapacityError(
            f"{codes.shape[1]} speech codes make {frames} mel frames; the model's limit is "
            f"{config.max_position_embeddings}. Decode in blocks, or split the utterance."
        )
    if noise is None:
        if key is None:
            raise ValueError("sample_full needs `noise` or a random `key` to draw it from")
        noise = jax.random.normal(key, (codes.shape[0], frames, config.mel_dim))
    voice = make_voice(params, config, speaker, ref_mel, dtype=dtype)
    conditioning = condition(params, config, codes, voice, guided=options.guided, dtype=dtype)
    valid = frame_mask(lengths, frames)
    mel = solve(params, config, noise, conditioning, options, valid=valid, dtype=dtype)
    return jnp.where(valid[..., None], mel, 0)
