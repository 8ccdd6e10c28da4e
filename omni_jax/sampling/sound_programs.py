"""The jitted programs of sound by blocks. W windows share a call; seeds, places, ends and voices are data."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from omni_jax.config import BigVGANConfig, DiTConfig
from omni_jax.models import bigvgan, dit, dit_block
from omni_jax.models.flow import FlowOptions
from omni_jax.sharding.scope import program

Params = Any


@program(static_argnames="config")
def make_voice(
    params: Params, vector: Float[Array, "B S"], ref_mel: Float[Array, "B R M"], *, config: DiTConfig
) -> dit.Voice:
    """`dit.make_voice`; `params` holds speaker_encoder and dit."""
    return dit.make_voice(params, config, vector, ref_mel)


@program(static_argnames=("config", "options"))
def solver_modulation(params: Params, *, config: DiTConfig, options: FlowOptions) -> dit.Modulation:
    """`dit.modulate_solver`; `params` holds dit."""
    return dit.modulate_solver(params, config, options)


@program(static_argnames=("config", "options", "back"))
def mel_windows(
    params: Params,
    modulation: dit.Modulation,
    codes: Int[Array, "W C"],
    index: Int[Array, "W"],
    frames: Int[Array, "W"],
    voices: tuple[dit.Voice, ...],
    seeds: Int[Array, "W"],
    *,
    config: DiTConfig,
    options: FlowOptions,
    back: int,
) -> tuple[Float[Array, "F M"], ...]:
    """Log mel of one block of each window, W arrays of it; see `dit_block.solve_windows`. One voice a window."""
    voice = dit.stack_voices(voices)
    mel = dit_block.solve_windows(params, config, modulation, codes, index, frames, voice, seeds, options, back=back)
    return tuple(mel)


@program(static_argnames=("config", "frames"))
def vocode_windows(
    params: Params,
    blocks: tuple[tuple[Float[Array, "F M"], ...], ...],
    lengths: Int[Array, "W"],
    offsets: Int[Array, "W"],
    *,
    config: BigVGANConfig,
    frames: int,
) -> Float[Array, "W S"]:
    """Waveform of W windows, each of a few blocks of mel; see `bigvgan.vocode_windows`."""
    mel = jnp.stack([jnp.concatenate(window) for window in blocks])
    return bigvgan.vocode_windows(params, config, mel, lengths, offsets, frames=frames)


PROGRAMS = (make_voice, solver_modulation, mel_windows, vocode_windows)
