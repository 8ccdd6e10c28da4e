"""Whole and step are one thing: what a part that streams offers, and the streams of encoders, Thinker and Talker.

Those of the DiT and BigVGAN are in `streams_sound.py`.

The contract is proved for every stream by `tests/contracts/test_whole_and_step.py`: steps equal the whole, later input
never changes earlier output, and an output depends on exactly the blocks that the stream declares.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from omni_jax.config import AudioEncoderConfig, SpeechTokenizerConfig, TalkerConfig, TextConfig
from omni_jax.layers.kv_cache import KVCache
from omni_jax.models import speech_tokenizer
from omni_jax.models.audio_encoder import AudioEncoder
from omni_jax.models.talker import Talker, talker_cache
from omni_jax.models.thinker import Thinker, thinker_cache


@dataclass(frozen=True)
class Stream:
    """One part, whole and by blocks. Input is [B, T, …]; T a multiple of `block_size`.

    Args:
        block_size: input steps of a block; output comes a block at a time.
        look_back: how many earlier blocks an output depends on; None for all.
        whole: (params, input) -> output.
        initial_state: (batch) -> state.
        step: (params, state, block) -> (state, as many outputs as the block makes, but `delay` outputs behind it).
            What would lie before the first output means nothing and is to be dropped.
        look_ahead: how many later blocks an output depends on.
        delay: outputs held back, because they wait for later blocks.
        finish: (params, state) -> the `delay` outputs still held back, after the last block. None without delay.
    """

    block_size: int
    look_back: int | None
    whole: Callable[[Any, Array], Array]
    initial_state: Callable[[int], Any]
    step: Callable[[Any, Any, Array], tuple[Any, Array]]
    look_ahead: int = 0
    delay: int = 0
    finish: Callable[[Any, Any], Array] | None = None


@struct.dataclass
class Nothing:
    """The state of a part whose blocks do not know each other."""


def audio_encoder_stream(config: AudioEncoderConfig, dtype: Any = jnp.float32) -> Stream:
    """Mel frames [B, T, M] to audio tokens [B, T / 4, D], in blocks of 2 s that never see each other."""
    encoder, frames = AudioEncoder(config, dtype=dtype), config.block_frames

    def whole(params: Any, mel: Float[Array, "B T M"]) -> Float[Array, "B Q D"]:
        batch = mel.shape[0]
        blocks = mel.reshape(-1, frames, mel.shape[-1])
        tokens, _ = encoder.apply({"params": params}, blocks, jnp.full(len(blocks), frames, jnp.int32))
        return tokens.reshape(batch, -1, tokens.shape[-1])

    def step(params: Any, state: Nothing, block: Float[Array, "B F M"]) -> tuple[Nothing, Float[Array, "B Q D"]]:
        return state, whole(params, block)

    return Stream(frames, 0, whole, lambda batch: Nothing(), step)


def speech_tokenizer_stream(config: SpeechTokenizerConfig, dtype: Any = jnp.float32) -> Stream:
    """Mel frames [B, T, M] to codes [B, T / 2], in blocks of 2 s that never see each other."""
    frames = config.encoder.block_frames

    def whole(params: Any, mel: Float[Array, "B T M"]) -> Int[Array, "B C"]:
        blocks = mel.reshape(len(mel), -1, frames, mel.shape[-1])
        full = jnp.full(blocks.shape[:2], frames, jnp.int32)
        return speech_tokenizer.codes(params, config, blocks, full, dtype=dtype)

    def step(params: Any, state: Nothing, block: Float[Array, "B F M"]) -> tuple[Nothing, Int[Array, "B C"]]:
        return state, whole(params, block)

    return Stream(frames, 0, whole, lambda batch: Nothing(), step)


@struct.dataclass
class DecoderState:
    cache: KVCache
    next_slot: Int[Array, "B"]


def _decoder_stream(decode: Callable[..., Any], new_cache: Callable[[int], KVCache], chunk: int) -> Stream:
    """`decode(params, x, position_ids[, cache, start])` of a decoder, at plain positions 0, 1, 2, …"""

    def positions(first: Int[Array, "B"], count: int) -> Int[Array, "3 B T"]:
        ids = first[:, None] + jnp.arange(count)
        return jnp.broadcast_to(ids, (3, *ids.shape))

    def whole(params: Any, x: Float[Array, "B T D"]) -> Float[Array, "B T H"]:
        return decode(params, x, positions(jnp.zeros(x.shape[0], jnp.int32), x.shape[1])).hidden_states

    def initial_state(batch: int) -> DecoderState:
        return DecoderState(new_cache(batch), jnp.zeros(batch, jnp.int32))

    def step(params: Any, state: DecoderState, block: Float[Array, "B C D"]) -> tuple[DecoderState, Array]:
        ids = positions(state.next_slot, block.shape[1])
        out = decode(params, block, ids, state.cache, state.next_slot)
        return DecoderState(out.cache, state.next_slot + block.shape[1]), out.hidden_states

    return Stream(chunk, None, whole, initial_state, step)


def thinker_stream(config: TextConfig, *, chunk: int, length: int, dtype: Any = jnp.float32) -> Stream:
    """Input embeddings [B, T, D] to hidden states [B, T, D], chunk by chunk."""
    thinker = Thinker(config, dtype=dtype)

    def decode(params, *arguments):
        return thinker.apply({"params": params}, *arguments, method="decode")

    return _decoder_stream(decode, lambda batch: thinker_cache(config, batch=batch, length=length, dtype=dtype), chunk)


def talker_stream(config: TalkerConfig, *, chunk: int, length: int, dtype: Any = jnp.float32) -> Stream:
    """The text track [B, T, E], beside a track without codes, to hidden states [B, T, D], chunk by chunk."""
    talker = Talker(config, dtype=dtype)

    def decode(params, text, *arguments):
        codes = jnp.full(text.shape[:2], -1, jnp.int32)
        return talker.apply({"params": params}, text, codes, *arguments, method="decode")

    return _decoder_stream(decode, lambda batch: talker_cache(config, batch=batch, length=length, dtype=dtype), chunk)
