"""The streams of sound: codes to mel by the block decoder, mel to waveform by windows of the vocoder.

For speech the whole is the block decoder over the whole utterance: one flow over all of it would let every code change
all of the mel, and nothing could be heard before the last. The vocoder's whole is BigVGAN on the whole mel.
"""

from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from omni_jax.config import BigVGANConfig, DiTConfig
from omni_jax.models import dit
from omni_jax.models.bigvgan import BigVGAN, WindowPlan, receptive_field_frames, samples_per_frame, vocode_windows
from omni_jax.models.dit_block import block_codes, context_blocks, solve_windows, window_blocks
from omni_jax.models.flow import FlowOptions
from omni_jax.models.streams import Stream


@struct.dataclass
class SoundState:
    """The last blocks of input, [B, steps, …], and how many have come. They stand at the end of `recent`."""

    recent: Array
    blocks: Int[Array, ""]


def dit_stream(
    config: DiTConfig, voice: dit.Voice, seeds: Int[Array, " B"], options: FlowOptions, *, dtype: Any = jnp.float32
) -> Stream:
    """Codes [B, C] to log mel [B, 2 · C, M], in blocks of 12 codes, one block behind.

    Args:
        voice: a row for each row of the codes.
    """
    size, blocks = block_codes(config), window_blocks(config)
    back, ahead = context_blocks(config)

    def solve(params: Any, modulation: dit.Modulation, codes: Array, index: Array, frames: Array, rows: Array) -> Array:
        """Windows of which number n belongs to row `rows[n]`."""
        own = dit.Voice(voice.conditional[rows], jnp.broadcast_to(voice.null, voice.conditional.shape)[rows])
        return solve_windows(params, config, modulation, codes, index, frames, own, seeds[rows], options, dtype=dtype)

    def whole(params: Any, codes: Int[Array, "B C"]) -> Float[Array, "B T M"]:
        batch, count = codes.shape[0], codes.shape[1] // size
        around = jnp.pad(codes, ((0, 0), (back * size, ahead * size)))
        windows = jnp.stack([around[:, i * size : (i + blocks) * size] for i in range(count)], axis=1)
        index = jnp.tile(jnp.arange(count), batch)
        frames = (count - index + back) * config.block_size
        modulation = dit.modulate_solver(params, config, options, dtype=dtype)
        rows = jnp.repeat(jnp.arange(batch), count)
        mel = solve(params, modulation, windows.reshape(batch * count, -1), index, frames, rows)
        return mel.reshape(batch, count * config.block_size, -1)

    def initial_state(batch: int) -> SoundState:
        return SoundState(jnp.zeros((batch, (blocks - 1) * size), jnp.int32), jnp.int32(0))

    def at(params: Any, codes: Array, index: Array, known: int) -> Array:
        """Mel of block `index` of every row, of whose window the first `known` blocks are in the utterance."""
        rows = jnp.arange(codes.shape[0])
        frames = jnp.full(rows.shape, known * config.block_size)
        modulation = dit.modulate_solver(params, config, options, dtype=dtype)
        return solve(params, modulation, codes, jnp.full(rows.shape, index), frames, rows)

    def step(params: Any, state: SoundState, block: Int[Array, "B C"]) -> tuple[SoundState, Float[Array, "B T M"]]:
        codes = jnp.concatenate([state.recent, block], axis=1)
        mel = at(params, codes, state.blocks - ahead, blocks)
        return SoundState(codes[:, size:], state.blocks + 1), mel

    def finish(params: Any, state: SoundState) -> Float[Array, "B T M"]:
        codes = jnp.pad(state.recent, ((0, 0), (0, ahead * size)))
        windows = [codes[:, i * size : (i + blocks) * size] for i in range(ahead)]
        mels = [at(params, window, state.blocks - ahead + i, blocks - 1 - i) for i, window in enumerate(windows)]
        return jnp.concatenate(mels, axis=1)

    delay = ahead * config.block_size
    return Stream(size, back, whole, initial_state, step, look_ahead=ahead, delay=delay, finish=finish)


def bigvgan_stream(config: BigVGANConfig, *, block: int = 24, context: int | None = None) -> Stream:
    """Log mel [B, T, M] to waveform [B, 240 · T], in blocks of mel frames, `context` frames behind.

    Args:
        context: None for the vocoder's receptive field, which makes steps equal to the whole by construction.
    """
    field, hop = receptive_field_frames(config), samples_per_frame(config)
    plan = WindowPlan(block, field if context is None else context)
    reach = -(-field // block)
    held = (plan.blocks - 1) * block  # at least twice the context, which is what `finish` needs

    def whole(params: Any, mel: Float[Array, "B T M"]) -> Float[Array, "B W"]:
        return BigVGAN(config).apply({"params": params}, mel)

    def initial_state(batch: int) -> SoundState:
        return SoundState(jnp.zeros((batch, held, config.mel_dim)), jnp.int32(0))

    def speak(params: Any, mel: Array, known: Array, held_back: int, frames: int) -> Array:
        """`frames` frames, from `held_back` before the end of `mel` on; only the last `known` of it are real."""
        # A window begins at the start of the utterance, not with the nothing before it.
        mel = jnp.roll(mel, known - mel.shape[1], axis=1)
        lengths = jnp.full(mel.shape[0], known)
        return vocode_windows(params, config, mel, lengths, lengths - held_back, frames=frames)

    def step(params: Any, state: SoundState, mel: Float[Array, "B T M"]) -> tuple[SoundState, Float[Array, "B W"]]:
        window = jnp.concatenate([state.recent, mel], axis=1)
        known = jnp.minimum((state.blocks + 1) * block, held + block)
        sound = speak(params, window, known, block + plan.context, block)
        return SoundState(window[:, block:], state.blocks + 1), sound

    def finish(params: Any, state: SoundState) -> Float[Array, "B W"]:
        known = jnp.minimum(state.blocks * block, held)
        return speak(params, state.recent, known, plan.context, plan.context)

    delay = plan.context * hop
    return Stream(block, reach, whole, initial_state, step, look_ahead=reach, delay=delay, finish=finish)
