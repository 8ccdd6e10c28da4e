"""Prompts into the caches of Thinker and Talker, chunk by chunk.

Each chunk of the Thinker's states goes on to the Talker at once, so those of a long prompt are never all in memory.
More may be added later: further turns of a conversation, or an answer that is already known.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from input_pipeline.packing import OmniInputs
from omni_jax.errors import CapacityError
from omni_jax.layers.kv_cache import KVCache
from omni_jax.sampling import programs
from omni_jax.sampling import speech_programs as sp
from omni_jax.sharding.rules import SAMPLING
from omni_jax.sharding.scope import on_mesh

if TYPE_CHECKING:
    from omni_jax.sampling.generate import Sampler


class Listener:
    """A model that reads prompts: the Thinker and, in `Speech`, the Talker beside it."""

    def __init__(self, sampler: "Sampler"):
        self.sampler = sampler
        self.thinker_config = sampler.config.thinker_config.text_config
        self.talker_config = sampler.config.talker_config
        self.params: Any = None  # of the Talker, if there is one
        self.stops: tuple[int, ...] = ()  # codes that end speech
        self.block = sampler.block  # most steps that the device makes before the host looks

    def embed(self, token_ids: Int[np.ndarray, "B T"]) -> Float[Array, "B T E"]:
        """The Thinker's embeddings."""
        params, ids = self.sampler.params["thinker"], jnp.asarray(token_ids)
        return programs.embed(params, ids, config=self.thinker_config, dtype=self.sampler.dtype)

    def static(self, part: str) -> dict[str, Any]:
        """The arguments by which programs of the "thinker" or the "talker" are keyed."""
        config = self.talker_config if part == "talker" else self.thinker_config
        return dict(config=config, dtype=self.sampler.dtype, unrolled=self.sampler.unrolled)


@dataclass(frozen=True)
class Prompted:
    """What both models know of a batch of prompts. Extending or answering it uses it up: its caches are donated.

    talker: None where nobody is to speak.
    lengths: slots in use, of both caches.
    next_position: id of the next token; last_position: id of the last token, which the Talker counts on from.
    """

    thinker: programs.PrefillState
    talker: KVCache | None
    lengths: Int[np.ndarray, "B"]
    next_position: Int[np.ndarray, "B"]
    last_position: Int[np.ndarray, "B"]


def nothing_yet(model: Listener, batch: int, thinker_length: int, talker_length: int | None = None) -> Prompted:
    """Empty caches; with None for its length none for the Talker."""
    sampler, zeros = model.sampler, np.zeros(batch, np.int32)
    kinds = dict(batch=batch, dtype=sampler.dtype, unrolled=sampler.unrolled)
    talker = None
    with on_mesh(sampler.mesh, SAMPLING):  # each device gets its own part of the caches, and never more
        state = programs.new_prefill(config=model.thinker_config, length=thinker_length, **kinds)
        if talker_length is not None:
            talker = sp.new_cache(config=model.talker_config, length=talker_length, **kinds)
    if sampler.mesh is None:
        # committed to their device like the parameters: otherwise the first chunk would compile a program of its own
        state, talker = jax.device_put((state, talker), sampler.home)
    return Prompted(state, talker, zeros, zeros, zeros - 1)


def extend(
    model: Listener,
    prompted: Prompted,
    inputs: OmniInputs,
    *,
    chunk: int | None = None,
    report: Callable[[str, int, int], None] = lambda stage, done, total: None,
    seconds: dict[str, float] | None = None,
) -> Prompted:
    """Adds a batch of (further) prompts: their media are encoded, and all of it goes into both caches.

    Args:
        inputs: position ids are those of the whole conversation.
        chunk: tokens that one call takes; the sampler's by default. Widths of `inputs` are multiples of it.
        report: called with "prefill", chunks done and chunks in all.
        seconds: the time of each stage is added; for that the call waits for the device, and otherwise not.

    Raises:
        CapacityError: the caches have no room for it; nothing was done.
    """
    sampler, chunk, width = model.sampler, chunk or model.sampler.chunk, inputs.token_ids.shape[1]
    check_room(prompted, width)
    media = sampler.encode(inputs, seconds)
    started = time.perf_counter()
    sources = {"audio": inputs.audio_source, "vision": inputs.vision_source}
    state, talker, lengths = prompted.thinker, prompted.talker, prompted.lengths + inputs.lengths
    for index in range(width // chunk):
        report("prefill", index, width // chunk)
        here = slice(index * chunk, (index + 1) * chunk)
        embeddings = model.embed(inputs.token_ids[:, here])
        for kind, rows in media.items():
            if (sources[kind][:, here] >= 0).any():
                embeddings = programs.place(embeddings, rows, jnp.asarray(sources[kind][:, here]))
        position_ids = jnp.asarray(inputs.position_ids[:, :, here])
        start = jnp.asarray(prompted.lengths + here.start, jnp.int32)
        token_ids, ends = jnp.asarray(inputs.token_ids[:, here]), jnp.asarray(lengths, jnp.int32)
        chunk_of = (sampler.params["thinker"], state, embeddings, token_ids, position_ids, start, ends)
        if talker is None:
            state = programs.prefill(*chunk_of, **model.static("thinker"))
            continue
        masked = (inputs.audio_source[:, here] >= 0) | (inputs.vision_source[:, here] >= 0)
        state, vectors = sp.think(*chunk_of, jnp.asarray(masked), **model.static("thinker"))
        silent = jnp.full(masked.shape, -1, jnp.int32)
        talker, _ = sp.hear(model.params, talker, vectors, silent, position_ids, start, **model.static("talker"))
    rows = np.arange(len(lengths))
    last = inputs.position_ids[0, rows, np.maximum(inputs.lengths - 1, 0)]
    report("prefill", width // chunk, width // chunk)
    if seconds is not None:
        jax.block_until_ready(state.last_hidden)
        seconds["prefill"] = seconds.get("prefill", 0.0) + time.perf_counter() - started
    grown = inputs.lengths > 0
    return Prompted(
        state,
        talker,
        lengths.astype(np.int32),
        np.where(grown, inputs.next_position, prompted.next_position).astype(np.int32),
        np.where(grown, last, prompted.last_position).astype(np.int32),
    )


def read_reply(
    model: Listener, prompted: Prompted, words: list[np.ndarray], chunks: int
) -> tuple[Prompted, Float[Array, "B R E"]]:
    """Runs known answers through the Thinker.

    Args:
        words: tokens of each row's answer; `chunks` of the sampler's chunks hold the longest.

    Returns:
        The prompts, with the Talker's cache untouched; reply vectors, of which a row's own come first.
    """
    sampler, batch, chunk = model.sampler, len(prompted.lengths), model.sampler.chunk
    check_room(replace(prompted, talker=None), chunks * chunk)
    tokens = np.zeros((batch, chunks * chunk), np.int32)
    for row, own in enumerate(words):
        tokens[row, : len(own)] = own
    state, parts, unmasked = prompted.thinker, [], jnp.zeros((batch, chunk), bool)
    for index in range(chunks):
        offset = index * chunk + np.arange(chunk)
        position_ids = np.broadcast_to(prompted.next_position[:, None] + offset, (3, batch, chunk)).astype(np.int32)
        own = tokens[:, index * chunk : (index + 1) * chunk]
        state, vectors = sp.think(
            sampler.params["thinker"],
            state,
            model.embed(own),
            jnp.asarray(own),
            jnp.asarray(position_ids),
            jnp.asarray(prompted.lengths + index * chunk, jnp.int32),
            jnp.asarray(prompted.lengths, jnp.int32),
            unmasked,
            **model.static("thinker"),
        )
        parts.append(vectors)
    return replace(prompted, thinker=state), jnp.concatenate(parts, axis=1)


def check_room(prompted: Prompted, width: int) -> None:
    """Raises CapacityError unless both caches have `width` slots left for every row."""
    length = prompted.thinker.cache.length
    if prompted.talker is not None:
        length = min(length, prompted.talker.length)
    most = int(prompted.lengths.max())
    if most + width > length:
        raise CapacityError(
            f"The conversation has {most} tokens, and {width} more are to come; its caches hold {length}. "
            "Begin a new conversation, or one with larger caches."
        )


def silent_rows(words: list[np.ndarray], batch: int) -> Bool[Array, "B"]:
    """Rows of a batch without anything to say, those of padding among them."""
    speaks = np.zeros(batch, bool)
    speaks[: len(words)] = [len(own) > 0 for own in words]
    return jnp.asarray(~speaks)
