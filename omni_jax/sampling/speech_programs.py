"""The jitted programs of speech: the Thinker's states, the Talker's prompt, its codes.

                       p = h + e, e = 0 at media          r = h + e
    Thinker, chunks ─► prompt vectors ─► Talker prefill   reply vectors ─► Talker, a code a step

h is the Thinker's hidden state after the final norm, e its input embedding. As in `programs.py` caches and decoding
state are donated, and programs are keyed by shapes and static arguments.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from omni_jax.config import TalkerConfig, TextConfig
from omni_jax.layers.kv_cache import KVCache
from omni_jax.models.talker import Talker, talker_cache
from omni_jax.models.thinker import Thinker, thinker_cache
from omni_jax.sampling.warpers import WarperOptions, draw, warp

Params = Any


@struct.dataclass
class Reply:
    """The text track after the prompt: what the Talker hears with each code that it is fed. R places, E wide.

    Code n comes with vectors[n - 1] while there are any, then with `end` once, then with `padding`. A row that is not
    yet `complete` has more text to come: beyond `count` its Talker waits.
    """

    vectors: Float[Array, "B R E"]
    count: Int[Array, "B"]
    complete: Bool[Array, "B"]
    end: Float[Array, "E"]
    padding: Float[Array, "E"]

    def waits(self, step: Int[Array, "B"]) -> Bool[Array, "B"]:
        """Whether the vector that comes with code `step` is not known yet."""
        return ~self.complete & (step - 1 >= self.count)

    def vector(self, step: Int[Array, "B"]) -> Float[Array, "B E"]:
        """The vector that comes with code `step`, counted from 1."""
        index = step - 1
        known = self.vectors[jnp.arange(index.shape[0]), jnp.clip(index, 0, self.vectors.shape[1] - 1)]
        rest = jnp.where((index == self.count)[:, None], self.end, self.padding)
        return jnp.where((index < self.count)[:, None], known, rest)


@struct.dataclass
class TalkerState:
    """All that the Talker's loop carries from one code to the next. B rows, S cache slots, V codes."""

    cache: KVCache
    slot: Int[Array, "B"]  # where the next key and value go
    position: Int[Array, "B"]  # id of the next position, all three axes
    step: Int[Array, "B"]  # codes so far
    code: Int[Array, "B"]  # the last one
    done: Bool[Array, "B"]
    seen: Bool[Array, "B V"]  # ids of the prompt and the codes, for the repetition penalty
    options: WarperOptions
    limit: Int[Array, "B"]  # most codes to generate
    stops: Int[Array, "E"]
    suppressed: Bool[Array, "V"]  # codes that are never drawn


@partial(jax.jit, static_argnames=("config", "batch", "length", "dtype", "unrolled"))
def new_cache(*, config: TextConfig | TalkerConfig, batch: int, length: int, dtype, unrolled: bool) -> KVCache:
    """An empty cache of the Thinker or the Talker, with `length` slots for `batch` rows."""
    make = talker_cache if isinstance(config, TalkerConfig) else thinker_cache
    return make(config, batch=batch, length=length, dtype=dtype, unrolled=unrolled)


@partial(jax.jit, static_argnames=("config", "dtype", "unrolled"), donate_argnames="cache")
def think(
    params: Params,
    cache: KVCache,
    embeddings: Float[Array, "B C E"],
    media: Bool[Array, "B C"],
    position_ids: Int[Array, "3 B C"],
    start: Int[Array, "B"],
    *,
    config: TextConfig,
    dtype,
    unrolled: bool,
) -> tuple[KVCache, Float[Array, "B C E"]]:
    """One chunk of prompt or reply through the Thinker: the vectors that the Talker hears in its place.

    Args:
        media: places of audio, image and video tokens, whose own embedding the Talker does not hear.
    """
    thinker = Thinker(config, dtype=dtype, unrolled=unrolled)
    out = thinker.apply({"params": params}, embeddings, position_ids, cache, start, method="decode")
    return out.cache, out.hidden_states + jnp.where(media[..., None], 0, embeddings)


@partial(jax.jit, static_argnames=("config", "dtype", "unrolled"), donate_argnames="cache")
def hear(
    params: Params,
    cache: KVCache,
    text: Float[Array, "B C E"],
    codes: Int[Array, "B C"],
    position_ids: Int[Array, "3 B C"],
    start: Int[Array, "B"],
    *,
    config: TalkerConfig,
    dtype,
    unrolled: bool,
) -> tuple[KVCache, Float[Array, "B D"]]:
    """One chunk of the Talker's prompt; codes are -1 where there are none. Returns the last place's hidden state."""
    talker = Talker(config, dtype=dtype, unrolled=unrolled)
    out = talker.apply({"params": params}, text, codes, position_ids, cache, start, method="decode")
    return out.cache, out.hidden_states[:, -1]


@partial(jax.jit, static_argnames=("config", "dtype", "unrolled"))
def first_code(
    params: Params,
    hidden: Float[Array, "B D"],
    slots: Int[Array, "B"],
    positions: Int[Array, "B"],
    options: WarperOptions,
    limit: Int[Array, "B"],
    stops: Int[Array, "E"],
    suppressed: Bool[Array, "V"],
    *,
    config: TalkerConfig,
    dtype,
    unrolled: bool,
) -> tuple[TalkerState, Int[Array, "B"], Bool[Array, "B"]]:
    """Draws each row's first code. A row with limit 0 says nothing.

    Args:
        slots, positions: where the first code will be fed.

    Returns:
        The state without its cache, which the caller puts in; code (-1 for a silent row) and done once more, which
        outlive the donation of the state.
    """
    # the penalty counts the ids that stand for the prompt, as the published model does: even a stop id is among them
    prompt = [config.tts_codec_mask_token_id, config.tts_codec_pad_token_id, config.tts_codec_start_token_id]
    seen = jnp.zeros((hidden.shape[0], config.vocab_size), bool).at[:, jnp.array(prompt)].set(True)
    talker = Talker(config, dtype=dtype, unrolled=unrolled)
    logits = talker.apply({"params": params}, hidden, method="logits")
    zeros = jnp.zeros_like(slots)
    code = draw(warp(logits, seen, options, suppressed), options, zeros)
    done = (limit <= 1) | jnp.any(code[:, None] == stops, axis=1)
    seen = seen.at[jnp.arange(code.shape[0]), code].set(True)
    state = TalkerState(None, slots, positions, zeros + 1, code, done, seen, options, limit, stops, suppressed)
    return state, jnp.where(limit > 0, code, -1), done


@partial(jax.jit, static_argnames=("config", "dtype", "unrolled", "block"), donate_argnames="state")
def talk(
    params: Params, state: TalkerState, reply: Reply, *, config: TalkerConfig, dtype, unrolled: bool, block: int
) -> tuple[TalkerState, Int[Array, "B K"], Bool[Array, "B"]]:
    """Up to `block` codes for each row, in a loop on the device that ends when all rows are done or wait for text.

    Returns:
        The new state; codes [B, block], a row's own ones first and -1 after them, a stop id included; done.
    """
    talker = Talker(config, dtype=dtype, unrolled=unrolled)
    rows = jnp.arange(state.code.shape[0])

    def speaking(state):
        return ~state.done & ~reply.waits(state.step)

    def going(carry):
        index, state, _ = carry
        return (index < block) & jnp.any(speaking(state))

    def advance(carry):
        index, state, codes = carry
        live = speaking(state)
        text = reply.vector(state.step)[:, None]
        position_ids = jnp.broadcast_to(state.position[None, :, None], (3, rows.shape[0], 1))
        variables = {"params": params}
        out = talker.apply(variables, text, state.code[:, None], position_ids, state.cache, state.slot, method="decode")
        logits = talker.apply(variables, out.hidden_states[:, 0], method="logits")
        code = draw(warp(logits, state.seen, state.options, state.suppressed), state.options, state.step)
        ends = (state.step + 1 >= state.limit) | jnp.any(code[:, None] == state.stops, axis=1)
        # a row that is done or waits goes on in place, unheard: its slot is written again when it speaks
        one = live.astype(jnp.int32)
        state = state.replace(
            cache=out.cache,
            slot=state.slot + one,
            position=state.position + one,
            step=state.step + one,
            code=jnp.where(live, code, state.code),
            done=state.done | (live & ends),
            seen=state.seen.at[rows, code].max(live),
        )
        return index + 1, state, codes.at[:, index].set(jnp.where(live, code, -1))

    codes = jnp.full((rows.shape[0], block), -1, jnp.int32)
    _, state, codes = jax.lax.while_loop(going, advance, (jnp.int32(0), state, codes))
    return state, codes, state.done


PROGRAMS = (new_cache, think, hear, first_code, talk)
