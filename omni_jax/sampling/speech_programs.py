"""The jitted programs of speech: the Thinker's states, the Talker's prompt, its codes, and both loops side by side.

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
from omni_jax.layers.partitioning import everywhere
from omni_jax.models.talker import Talker, talker_cache
from omni_jax.models.thinker import Thinker
from omni_jax.sampling.programs import DecodeState, PrefillState, decode_step, prefill_chunk
from omni_jax.sampling.warpers import WarperOptions, draw, warp
from omni_jax.sharding.scope import program

Params = Any
SLACK = 100  # codes (2 s) that an answer may have beyond its share per text token


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
    broken: Bool[Array, "B"]  # no logit was finite; the row is done, and its last code means nothing
    seen: Bool[Array, "B V"]  # ids of the prompt and the codes, for the repetition penalty
    options: WarperOptions
    limit: Int[Array, "B"]  # most codes to generate
    pace: Int[Array, "B"]  # most codes for each text token, once all text is known
    stops: Int[Array, "E"]
    suppressed: Bool[Array, "V"]  # codes that are never drawn

    def most(self, reply: Reply) -> Int[Array, "B"]:
        """The most codes of each row, as far as its text is known. One text token was heard before the first code."""
        share = SLACK + self.pace * jnp.minimum(reply.count + 1, 1 << 15)
        return jnp.where(reply.complete & (self.pace > 0), jnp.minimum(self.limit, share), self.limit)


@partial(jax.jit, static_argnames=("config", "batch", "length", "dtype", "unrolled"))
def new_cache(*, config: TalkerConfig, batch: int, length: int, dtype, unrolled: bool) -> KVCache:
    """An empty cache of the Talker, with `length` slots for `batch` rows."""
    return talker_cache(config, batch=batch, length=length, dtype=dtype, unrolled=unrolled).on_mesh()


@program(static_argnames=("config", "dtype", "unrolled"), donate_argnames="state")
def think(
    params: Params,
    state: PrefillState,
    embeddings: Float[Array, "B C E"],
    token_ids: Int[Array, "B C"],
    position_ids: Int[Array, "3 B C"],
    start: Int[Array, "B"],
    lengths: Int[Array, "B"],
    media: Bool[Array, "B C"],
    *,
    config: TextConfig,
    dtype,
    unrolled: bool,
) -> tuple[PrefillState, Float[Array, "B C E"]]:
    """`programs.prefill` that also returns the vectors that the Talker hears in the places of the chunk.

    Args:
        media: places of audio, image and video tokens, whose own embedding the Talker does not hear.
    """
    state, hidden = prefill_chunk(
        params,
        state,
        embeddings,
        token_ids,
        position_ids,
        start,
        lengths,
        config=config,
        dtype=dtype,
        unrolled=unrolled,
    )
    return state, hidden + jnp.where(media[..., None], 0, embeddings)


@program(static_argnames=("config", "dtype", "unrolled"), donate_argnames="state")
def second_token(
    params: Params, state: DecodeState, *, config: TextConfig, dtype, unrolled: bool
) -> tuple[DecodeState, Int[Array, "B"], Float[Array, "B E"], Bool[Array, "B"], Bool[Array, "B"], Bool[Array, "B"]]:
    """Feeds the first token, so that the Talker can begin.

    Returns:
        The new state; the second token, -1 where the answer has one only; the first reply vector; which rows are
        silent, because their answer is a stop token alone; done and broken once more.
    """
    silent = (state.limit < 1) | state.broken | jnp.any(state.token[:, None] == state.stops, axis=1)
    state, token, vector = decode_step(Thinker(config, dtype=dtype, unrolled=unrolled), params, state)
    return state, token, vector, silent, state.done, state.broken


@program(static_argnames=("config", "dtype", "unrolled"), donate_argnames="cache")
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


@program(static_argnames=("config", "dtype", "unrolled"))
def first_code(
    params: Params,
    hidden: Float[Array, "B D"],
    slots: Int[Array, "B"],
    positions: Int[Array, "B"],
    options: WarperOptions,
    limit: Int[Array, "B"],
    pace: Int[Array, "B"],
    silent: Bool[Array, "B"],
    stops: Int[Array, "E"],
    suppressed: Bool[Array, "V"],
    *,
    config: TalkerConfig,
    dtype,
    unrolled: bool,
) -> tuple[TalkerState, Int[Array, "B"], Bool[Array, "B"], Bool[Array, "B"]]:
    """Draws each row's first code. A row that is silent, or whose limit is 0, says nothing.

    Args:
        slots, positions: where the first code will be fed.

    Returns:
        The state without its cache, which the caller puts in; and code (-1 for a silent row), done and broken once
        more, which outlive the donation of the state.
    """
    # the penalty counts the ids that stand for the prompt, as the published model does: even a stop id is among them
    prompt = [config.tts_codec_mask_token_id, config.tts_codec_pad_token_id, config.tts_codec_start_token_id]
    seen = jnp.zeros((hidden.shape[0], config.vocab_size), bool).at[:, jnp.array(prompt)].set(True)
    talker = Talker(config, dtype=dtype, unrolled=unrolled)
    zeros, limit = jnp.zeros_like(slots), jnp.where(silent, 0, limit)
    logits = talker.apply({"params": params}, hidden, method="logits")
    logits = warp(logits, seen, options, suppressed)
    code, broken = draw(logits, options, zeros), (limit > 0) & ~jnp.isfinite(jnp.max(logits, axis=-1))
    done = broken | (limit <= 1) | jnp.any(code[:, None] == stops, axis=1)
    seen = seen.at[jnp.arange(code.shape[0]), code].set(True)
    kept = (options, limit, pace, stops, suppressed)
    state = TalkerState(None, slots, positions, zeros + 1, code, done, broken, seen, *kept)
    return state, *everywhere((jnp.where(limit > 0, code, -1), done, broken))


def talker_step(
    talker: Talker, params: Params, state: TalkerState, text: Float[Array, "B E"], live: Bool[Array, "B"], most: Array
) -> tuple[TalkerState, Int[Array, "B"]]:
    """Feeds each row's last code together with `text` and draws the next.

    A row that is not live goes on in place, unheard: its slot is written again when it speaks.

    Returns:
        The new state; code [B], -1 for rows that are not live.
    """
    rows, variables = jnp.arange(state.code.shape[0]), {"params": params}
    position_ids = jnp.broadcast_to(state.position[None, :, None], (3, rows.shape[0], 1))
    fed = text[:, None], state.code[:, None]
    out = talker.apply(variables, *fed, position_ids, state.cache, state.slot, method="decode")
    logits = talker.apply(variables, out.hidden_states[:, 0], method="logits")
    logits = warp(logits, state.seen, state.options, state.suppressed)
    code = draw(logits, state.options, state.step)
    broken = state.broken | (live & ~jnp.isfinite(jnp.max(logits, axis=-1)))
    ends = broken | (state.step + 1 >= most) | jnp.any(code[:, None] == state.stops, axis=1)
    one = live.astype(jnp.int32)
    new = state.replace(
        cache=out.cache,
        slot=state.slot + one,
        position=state.position + one,
        step=state.step + one,
        code=jnp.where(live, code, state.code),
        done=state.done | (live & ends),
        broken=broken,
        seen=state.seen.at[rows, code].max(live),
    )
    return new, jnp.where(live, code, -1)


@program(static_argnames=("config", "dtype", "unrolled", "block"), donate_argnames="state")
def talk(
    params: Params,
    state: TalkerState,
    reply: Reply,
    steps: Int[Array, ""],
    *,
    config: TalkerConfig,
    dtype,
    unrolled: bool,
    block: int,
) -> tuple[TalkerState, Int[Array, "B K"], Bool[Array, "B"], Bool[Array, "B"]]:
    """Up to `steps` (at most `block`) codes for each row, until all rows are done or wait for text.

    Returns:
        The new state; codes [B, block], a row's own ones first and -1 after them, a stop id included; done; broken.
    """
    talker = Talker(config, dtype=dtype, unrolled=unrolled)

    def speaking(state):
        return ~state.done & ~reply.waits(state.step)

    def going(carry):
        index, state, _ = carry
        return (index < steps) & jnp.any(speaking(state))

    def advance(carry):
        index, state, codes = carry
        text, live = reply.vector(state.step), speaking(state)
        state, code = talker_step(talker, params, state, text, live, state.most(reply))
        return index + 1, state, codes.at[:, index].set(code)

    codes = jnp.full((state.code.shape[0], block), -1, jnp.int32)
    _, state, codes = jax.lax.while_loop(going, advance, (jnp.int32(0), state, codes))
    return state, *everywhere((codes, state.done, state.broken))


@program(
    static_argnames=("thinker_config", "talker_config", "dtype", "unrolled", "block"),
    donate_argnames=("thinker", "talker"),
)
def converse(
    thinker_params: Params,
    talker_params: Params,
    thinker: DecodeState,
    talker: TalkerState,
    reply: Reply,
    steps: Int[Array, ""],
    *,
    thinker_config: TextConfig,
    talker_config: TalkerConfig,
    dtype,
    unrolled: bool,
    block: int,
) -> tuple[DecodeState, TalkerState, Reply, dict[str, Array]]:
    """Both loops side by side: a text token, and a code that hears the token before it, in each of up to `steps` steps.

    The two tracks of a row keep step from their beginning, so a step's reply vector is used at once and never kept:
    `reply.vectors` is a place holder. Ends when every row has all its text; `talk` goes on from there.

    Returns:
        The states; the reply; "tokens" and "codes" [B, block], -1 where there is none, and flags [B] "text_done",
        "text_broken", "done", "broken".
    """
    thinker_model = Thinker(thinker_config, dtype=dtype, unrolled=unrolled)
    talker_model = Talker(talker_config, dtype=dtype, unrolled=unrolled)
    empty = jnp.full((talker.code.shape[0], block), -1, jnp.int32)

    def going(carry):
        index, thinker, *_ = carry
        return (index < steps) & ~jnp.all(thinker.done)

    def advance(carry):
        index, thinker, talker, reply, tokens, codes = carry
        fresh = ~thinker.done
        thinker, token, vector = decode_step(thinker_model, thinker_params, thinker)
        text = jnp.where(fresh[:, None], vector, reply.vector(talker.step))
        reply = reply.replace(count=reply.count + fresh, complete=thinker.done)
        most, live = talker.most(reply), ~talker.done
        talker, code = talker_step(talker_model, talker_params, talker, text, live, most)
        return index + 1, thinker, talker, reply, tokens.at[:, index].set(token), codes.at[:, index].set(code)

    carry = (jnp.int32(0), thinker, talker, reply, empty, empty)
    _, thinker, talker, reply, tokens, codes = jax.lax.while_loop(going, advance, carry)
    flags = dict(text_done=thinker.done, text_broken=thinker.broken, done=talker.done, broken=talker.broken)
    return thinker, talker, reply, everywhere({"tokens": tokens, "codes": codes} | flags)


@program(donate_argnums=0)
def halt(state: Any, rows: Bool[Array, "B"]) -> Any:
    """A decoding state of either track in which `rows` have come to their end."""
    return state.replace(done=state.done | rows)


PROGRAMS = (new_cache, think, second_token, hear, first_code, talk, converse, halt)
