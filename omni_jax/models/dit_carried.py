"""The other block decoder: past blocks are remembered, not solved again. Measured beside `dit_block`, not the default.

Block b is solved beside block b+1, its look-ahead. Where a layer looks back from b, it finds the keys and values that
block b-1 had at the same evaluation of its own solution:

    solved      b │ b+1                               two blocks, not four: half the compute
    looked at   keys and values of b-1                2 of 22 layers, 36 evaluations, 2 branches: 28 MB a row

The past is exact to any depth, but the mel of block b then depends on all codes before it, and blocks of one utterance
can only be computed one after the other. Measured (`benchmarks/block_decoder.py`, random weights): it lies as near to
the whole utterance as `dit_block`, or two to four times nearer where weights have a high gain. `dit_block` is the
default for other reasons: it has no state, starts anywhere, and its windows run in one batch.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from omni_jax.config import DiTConfig
from omni_jax.models import dit
from omni_jax.models.dit_block import block_codes, context_blocks, window_mask, window_noise
from omni_jax.models.dit_layers import Past
from omni_jax.models.flow import FlowOptions, evaluation_times, guide, integrate


@flax.struct.dataclass
class CarriedState:
    """Between two blocks: the index of the next, and the past of the layers that look back, for every evaluation."""

    index: Int[Array, " B"]
    past: Past  # leaves [intervals, stages, layers that look back, B · branches, 24, N, H]


def carried_blocks(config: DiTConfig) -> int:
    """Blocks that are solved together: 2."""
    return 1 + context_blocks(config)[1]


def initial_state(config: DiTConfig, options: FlowOptions, batch: int, *, dtype: Any = jnp.float32) -> CarriedState:
    """Before block 0; its past is never seen."""
    rows = batch * (2 if options.guided else 1)
    shape = (
        len(set(config.look_backward_layers)),
        rows,
        config.block_size,
        config.num_attention_heads,
        config.head_dim,
    )
    zeros = jnp.zeros((*evaluation_times(options).shape, *shape), dtype)
    return CarriedState(jnp.zeros(batch, jnp.int32), Past(zeros, zeros))


def step(
    params: dict,
    config: DiTConfig,
    modulation: dit.Modulation,
    state: CarriedState,
    codes: Int[Array, "B C"],
    frames: Int[Array, " B"],
    voice: dit.Voice,
    seeds: Int[Array, " B"],
    options: FlowOptions,
    *,
    dtype: Any = jnp.float32,
) -> tuple[CarriedState, Float[Array, "B F M"]]:
    """Log mel [B, 24, M] of each row's next block, zero after the end of the utterance.

    Args:
        params: holds "dit".
        modulation: `dit.modulate_solver` of the same options.
        codes: of the next block and its look-ahead, 24 of them; any valid code where there is none.
        frames: where the utterance ends, in frames from the start of the next block; 48 or more where it goes on.
        voice: one row each.
    """
    size, blocks = config.block_size, carried_blocks(config)
    if codes.shape[1] != blocks * block_codes(config):
        raise ValueError(f"A step takes {blocks * block_codes(config)} codes, not {codes.shape[1]}")
    looking_back = jnp.asarray(sorted(set(config.look_backward_layers)))
    # The block before is the window's block 0, which is there unless the next one is the first of all.
    valid = window_mask(state.index, frames + size, 1, 1 + blocks, size)
    positions = jnp.arange((1 + blocks) * size)[None]
    conditioning = dit.condition(params, config, codes, voice, guided=options.guided, dtype=dtype)
    network, layers = dit.DiT(config, dtype=dtype), config.num_hidden_layers

    def field(x, prepared):
        modulation, past = prepared

        def spread(a):  # to all layers; those that do not look back see nothing of it
            return jnp.zeros((layers, *a.shape[1:]), a.dtype).at[looking_back].set(a)

        every = Past(spread(past.key), spread(past.value))
        branches, record = network.apply(
            {"params": params["dit"]}, x, modulation, conditioning, valid, positions, every
        )
        record = Past(record.key[looking_back], record.value[looking_back])
        slope = guide(branches[:, 0], branches[:, 1], options.guidance_scale) if options.guided else branches[:, 0]
        return slope, record

    noise = window_noise(seeds, state.index, blocks, config)
    mel, past = integrate(field, noise, options, (modulation, state.past), recording=True)
    own = jnp.where(valid[:, size : 2 * size, None], mel[:, :size], 0)
    return CarriedState(state.index + 1, past), own
