"""The jitted programs of text sampling. Each is one function of (parameters, state); nothing is hidden in them.

Programs are keyed by shapes and by the static arguments named here, so the number of compilations is bounded by the
buckets of `input_pipeline/packing.py`; `sampling/compiled.py` counts them.

Decoding state is donated: the cache is updated in place, and a caller must not use a state that it has passed in.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from omni_jax.config import AudioEncoderConfig, TextConfig, VisionEncoderConfig
from omni_jax.layers.kv_cache import KVCache
from omni_jax.layers.partitioning import everywhere
from omni_jax.models.audio_encoder import AudioEncoder
from omni_jax.models.thinker import Thinker, place_media, thinker_cache
from omni_jax.models.vision_encoder import VisionEncoder, VisionLayout
from omni_jax.sampling.warpers import WarperOptions, draw, warp
from omni_jax.sharding.scope import program

Params = Any


@struct.dataclass
class DecodeState:
    """All that a decoding loop carries from one token to the next. B rows, S cache slots."""

    cache: KVCache
    slot: Int[Array, "B"]  # where the next key and value go
    position: Int[Array, "B"]  # TMRoPE id of the next position (all three axes)
    step: Int[Array, "B"]  # tokens generated so far
    token: Int[Array, "B"]  # the last generated token
    done: Bool[Array, "B"]
    broken: Bool[Array, "B"]  # no logit was finite; the row is done, and its last token means nothing
    seen: Bool[Array, "B V"]  # tokens of the prompt and the answer, for the repetition penalty
    options: WarperOptions
    limit: Int[Array, "B"]  # most tokens to generate
    stops: Int[Array, "B E"]  # stop ids, padded with -1


@struct.dataclass
class PrefillState:
    cache: KVCache
    last_hidden: Float[Array, "B D"]  # of each row's last prompt token, once it has passed
    seen: Bool[Array, "B V"]


@program(static_argnames=("config", "dtype"))
def encode_audio(
    params: Params, mel: Array, frames: Array, *, config: AudioEncoderConfig, dtype
) -> Float[Array, "R D"]:
    """Audio blocks to rows of tokens (blocks end to end, padding rows included)."""
    tokens, _ = AudioEncoder(config, dtype=dtype).apply({"params": params}, mel, frames)
    return tokens.reshape(-1, tokens.shape[-1])


@program(static_argnames=("config", "dtype"))
def encode_vision(
    params: Params, patches: Array, layout: VisionLayout, *, config: VisionEncoderConfig, dtype
) -> Float[Array, "R D"]:
    """Packed patches to rows of tokens in window order."""
    tokens, _ = VisionEncoder(config, dtype=dtype).apply({"params": params}, patches, layout)
    return tokens


@program(donate_argnums=0)
def collect(rows: Float[Array, "R D"], tokens: Float[Array, "Q D"], first: Int[Array, ""]) -> Float[Array, "R D"]:
    """The rows with `tokens` at `first` and after it."""
    return jax.lax.dynamic_update_slice(rows, tokens, (first, 0))


@program(static_argnames=("config", "dtype"))
def embed(params: Params, token_ids: Int[Array, "B T"], *, config: TextConfig, dtype) -> Float[Array, "B T D"]:
    return Thinker(config, dtype=dtype).apply({"params": params}, token_ids, method="embed")


@program(donate_argnums=0)
def place(embeddings: Float[Array, "B T D"], media: Float[Array, "R D"], source: Int[Array, "B T"]) -> Array:
    return place_media(embeddings, media, source)


@partial(jax.jit, static_argnames=("config", "batch", "length", "dtype", "unrolled"))
def new_prefill(*, config: TextConfig, batch: int, length: int, dtype, unrolled: bool) -> PrefillState:
    """An empty cache of `length` slots for `batch` rows."""
    cache = thinker_cache(config, batch=batch, length=length, dtype=dtype, unrolled=unrolled).on_mesh()
    hidden = jnp.zeros((batch, config.hidden_size), dtype)
    return PrefillState(cache, *everywhere((hidden, jnp.zeros((batch, config.vocab_size), bool))))


def prefill_chunk(
    params: Params,
    state: PrefillState,
    embeddings: Float[Array, "B C D"],
    token_ids: Int[Array, "B C"],
    position_ids: Int[Array, "3 B C"],
    start: Int[Array, "B"],
    lengths: Int[Array, "B"],
    *,
    config: TextConfig,
    dtype,
    unrolled: bool,
) -> tuple[PrefillState, Float[Array, "B C D"]]:
    """One chunk of the prompt: slots start…start+C of each row, of which those below `lengths` are real.

    Returns the hidden states of the chunk as well.
    """
    thinker = Thinker(config, dtype=dtype, unrolled=unrolled)
    out = thinker.apply({"params": params}, embeddings, position_ids, state.cache, start, method="decode")
    rows, chunk = jnp.arange(token_ids.shape[0]), token_ids.shape[1]
    index = lengths - 1 - start  # of the row's last token within this chunk
    here = (index >= 0) & (index < chunk)
    ends = out.hidden_states[rows, jnp.clip(index, 0, chunk - 1)]
    last = jnp.where(here[:, None], ends, state.last_hidden)
    real = start[:, None] + jnp.arange(chunk) < lengths[:, None]
    seen = state.seen.at[rows[:, None], token_ids].max(real)
    return PrefillState(out.cache, last, seen), out.hidden_states


@program(static_argnames=("config", "dtype", "unrolled"), donate_argnums=1)
def prefill(params: Params, state: PrefillState, *chunk: Array, config: TextConfig, dtype, unrolled: bool):
    """`prefill_chunk` where only the state is wanted."""
    return prefill_chunk(params, state, *chunk, config=config, dtype=dtype, unrolled=unrolled)[0]


@program(static_argnames=("config", "dtype", "unrolled"), donate_argnames="seen")
def first_token(
    params: Params,
    hidden: Float[Array, "B D"],
    seen: Bool[Array, "B V"],
    lengths: Int[Array, "B"],
    positions: Int[Array, "B"],
    options: WarperOptions,
    limit: Int[Array, "B"],
    stops: Int[Array, "B E"],
    *,
    config: TextConfig,
    dtype,
    unrolled: bool,
) -> tuple[DecodeState, Int[Array, "B"], Bool[Array, "B"], Bool[Array, "B"]]:
    """Samples each row's first token from its last prompt position. Padding rows (length 0) start out done.

    Returns:
        The state, with `cache` left for the caller to fill in (so that this program does not depend on its length);
        and token, done and broken once more, which outlive the donation of the state.
    """
    zeros = jnp.zeros_like(lengths)
    logits = Thinker(config, dtype=dtype, unrolled=unrolled).apply({"params": params}, hidden, method="logits")
    logits = warp(logits, seen, options)
    token, broken = draw(logits, options, zeros), (lengths > 0) & ~jnp.isfinite(jnp.max(logits, axis=-1))
    seen = seen.at[jnp.arange(token.shape[0]), token].set(True)
    done = broken | (lengths == 0) | (limit <= 1) | jnp.any(token[:, None] == stops, axis=1)
    state = DecodeState(None, lengths, positions, zeros + 1, token, done, broken, seen, options, limit, stops)
    return state, *everywhere((token, done, broken))


def decode_step(thinker: Thinker, params: Params, state: DecodeState) -> tuple[DecodeState, Array, Array]:
    """Feeds each row's last token and draws the next.

    A finished row goes on in place, unheard: its slot, position and step stand still.

    Returns:
        The new state; token [B], -1 where the row had already ended; and hidden state plus embedding [B, D] of the
        token that was fed, which is what a Talker hears in its place.
    """
    rows = jnp.arange(state.token.shape[0])
    embeddings = thinker.apply({"params": params}, state.token[:, None], method="embed")
    position_ids = jnp.broadcast_to(state.position[None, :, None], (3, rows.shape[0], 1))
    out = thinker.apply({"params": params}, embeddings, position_ids, state.cache, state.slot, method="decode")
    hidden = out.hidden_states[:, 0]
    logits = thinker.apply({"params": params}, hidden, method="logits")
    logits = warp(logits, state.seen, state.options)
    token = draw(logits, state.options, state.step)
    broken = state.broken | (~state.done & ~jnp.isfinite(jnp.max(logits, axis=-1)))
    step = state.step + 1
    done = state.done | broken | (step >= state.limit) | jnp.any(token[:, None] == state.stops, axis=1)
    live = (~state.done).astype(jnp.int32)
    new = state.replace(
        cache=out.cache,
        slot=state.slot + live,
        position=state.position + live,
        step=state.step + live,
        token=jnp.where(state.done, state.token, token),
        done=done,
        broken=broken,
        seen=state.seen.at[rows, token].max(~state.done),
    )
    return new, jnp.where(state.done, -1, token), hidden + embeddings[:, 0]


@program(static_argnames=("config", "dtype", "unrolled", "block"), donate_argnums=1)
def decode(
    params: Params, state: DecodeState, steps: Int[Array, ""], *, config: TextConfig, dtype, unrolled: bool, block: int
) -> tuple[DecodeState, Int[Array, "B K"], Bool[Array, "B"], Bool[Array, "B"]]:
    """Up to `steps` (at most `block`) tokens for each row, in a loop on the device that ends when all rows are done.

    Returns:
        The new state; tokens [B, block], -1 where a row had already ended; done; broken.
    """
    thinker = Thinker(config, dtype=dtype, unrolled=unrolled)

    def going(carry):
        index, state, _ = carry
        return (index < steps) & ~jnp.all(state.done)

    def advance(carry):
        index, state, tokens = carry
        state, token, _ = decode_step(thinker, params, state)
        return index + 1, state, tokens.at[:, index].set(token)

    tokens = jnp.full((state.token.shape[0], block), -1, jnp.int32)
    _, state, tokens = jax.lax.while_loop(going, advance, (jnp.int32(0), state, tokens))
    return state, *everywhere((tokens, state.done, state.broken))


PROGRAMS = (encode_audio, encode_vision, collect, embed, place, new_prefill, prefill, first_token, decode)
