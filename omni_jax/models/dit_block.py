"""The block decoder: log mel of one block of codes from a fixed window of blocks around it.

One velocity of block b depends on the blocks that the attention layers reach together: 2 back and 1 ahead as
published. The solver's 36 velocities carry influence across the whole utterance, so a decoder that streams must cut
somewhere. Here the flow of block b is solved on exactly that window, from start to end, and only block b is kept:

    codes   b-2 │ b-1 │  b  │ b+1      12 codes each
    noise   of the same four blocks, each from (seed, its own index)
    mel            │  b  │             24 frames

So the mel of block b is a pure function of four blocks of codes, the voice, the seed and b. Streamed equals offline,
whatever the arrival and the neighbours, and cost per second of speech is constant. Blocks that do not exist are masked;
those before block 0 may be left out, which halves the work that the first sound waits for.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omni_jax.config import DiTConfig
from omni_jax.models import dit
from omni_jax.models.flow import FlowOptions, block_noise


def context_blocks(config: DiTConfig) -> tuple[int, int]:
    """(back, ahead): the blocks that one velocity sees. Each layer that looks further adds one; published (2, 1)."""
    return len(set(config.look_backward_layers)), len(set(config.look_ahead_layers))


def window_blocks(config: DiTConfig) -> int:
    """Blocks that are solved together: 4."""
    back, ahead = context_blocks(config)
    return back + 1 + ahead


def block_codes(config: DiTConfig) -> int:
    """Codes of a block: 12."""
    return config.block_size // config.repeats


def window_noise(seeds: Int[Array, " W"], first: Int[Array, " W"], blocks: int, config: DiTConfig) -> Array:
    """Noise [W, blocks · 24, M] of blocks first, first + 1, …; that of block 0 for any before it."""

    def row(seed, first):
        index = jnp.maximum(first + jnp.arange(blocks), 0)
        shape = (config.block_size, config.mel_dim)
        return jax.vmap(lambda i: block_noise(seed, i, shape))(index).reshape(-1, config.mel_dim)

    return jax.vmap(row)(seeds, first)


def window_mask(
    index: Int[Array, " W"], frames: Int[Array, " W"], back: int, blocks: int, block_size: int
) -> Bool[Array, "W T"]:
    """True for the frames of a window of `blocks` that exist; block `index` is its number `back`."""
    at = jnp.arange(blocks * block_size)
    return (at >= (back - index)[:, None] * block_size) & (at < frames[:, None])


def solve_windows(
    params: dict,
    config: DiTConfig,
    modulation: dit.Modulation,
    codes: Int[Array, "W C"],
    index: Int[Array, " W"],
    frames: Int[Array, " W"],
    voice: dit.Voice,
    seeds: Int[Array, " W"],
    options: FlowOptions,
    *,
    back: int | None = None,
    dtype: Any = jnp.float32,
) -> Float[Array, "W F M"]:
    """Log mel of one block of each of W windows; the rows know nothing of each other.

    Args:
        params: holds "dit".
        modulation: `dit.modulate_solver` of the same options.
        codes: of blocks index - 2 … index + 1, 48 of them; any valid code where there is none.
        index: which block of its utterance is computed, from 0.
        frames: where the utterance ends, in frames from the start of the window; 96 or more where it goes on.
        voice: one row per window.
        back: blocks before `index` that the windows hold, 2 if not given. 0 will do for block 0, and gives the same.

    Returns:
        F = 24 frames; zero after the end of the utterance.
    """
    back = context_blocks(config)[0] if back is None else back
    blocks, size = codes.shape[1] // block_codes(config), config.block_size
    noise = window_noise(seeds, index - back, blocks, config)
    valid = window_mask(index, frames, back, blocks, size)
    conditioning = dit.condition(params, config, codes, voice, guided=options.guided, dtype=dtype)
    mel = dit.solve(params, config, noise, conditioning, options, valid=valid, modulation=modulation, dtype=dtype)
    own = slice(back * size, (back + 1) * size)
    return jnp.where(valid[:, own, None], mel[:, own], 0)
