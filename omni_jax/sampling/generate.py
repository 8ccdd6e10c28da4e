"""Answers in text: media encoders, chunked prefill, and a decoding loop on the device that the host follows.

requests ─► pack into buckets ─► encode audio, vision ─► prefill chunk by chunk ─► decode, a block at a time
                                                                                    └─► text, while it goes on
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from input_pipeline.packing import BUCKETS, OmniInputs, VisionBatch, bucket, pack_batch
from input_pipeline.request import Request, prepare
from input_pipeline.tokenizer import Tokenizer
from input_pipeline.vision_pieces import vision_pieces
from omni_jax.config import OmniConfig, ProcessorConfig
from omni_jax.errors import CapacityError, PromptError
from omni_jax.layers.decoder import unroll_params
from omni_jax.models.vision_encoder import VisionLayout
from omni_jax.sampling import programs
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.pipeline import Answering
from omni_jax.sampling.prompting import Listener, extend, nothing_yet
from omni_jax.sampling.rows import MAX_STOPS, Event, one_each, padded

_GREEDY = SamplingOptions()
# Patches that the vision encoder takes at once: a film of a minute has ten times as many, and they would need 5 GB.
VISION_PIECE = 16384


@dataclass
class Generation:
    """A finished answer. `token_ids` ends with the stop token when `finish_reason` is "stop"."""

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    seconds: dict[str, float] = field(default_factory=dict)


class Sampler:
    """Parameters on the device, and the programs that run them. It keeps no state between requests."""

    def __init__(
        self,
        params: Mapping[str, Any],
        config: OmniConfig,
        tokenizer: Tokenizer,
        processor: ProcessorConfig | None = None,
        *,
        dtype: Any = None,
        chunk: int = 256,
        block: int = 32,
        stop_ids: Sequence[int] | None = None,
        unrolled: bool | None = None,
        mesh: Mesh | None = None,
        weights: str | None = None,
    ):
        """Prepares parameters for sampling.

        Args:
            params: one entry a component: audio_encoder, vision_encoder, thinker.
            dtype: compute dtype; default float32 on CPU (where bfloat16 products are slow), bfloat16 elsewhere.
            chunk: prompt tokens a prefill call takes.
            block: most tokens that the device generates before the host looks.
            stop_ids: tokens that end an answer; default `<|im_end|>` and `<|endoftext|>` of the tokenizer.
            unrolled: run decoder layers with parameters apart, see `omni_jax/layers/decoder.py`; default on one CPU.
            mesh: the devices that `params` are split over; None for one device.
            weights: the form in which `params` are stored, which a Talker beside them shares; see `load_sampler`.
        """
        on_cpu = jax.default_backend() == "cpu"
        self.config, self.tokenizer, self.processor = config, tokenizer, processor or ProcessorConfig()
        self.dtype = jnp.dtype(dtype or (jnp.float32 if on_cpu else jnp.bfloat16))
        self.chunk, self.block = chunk, block
        self.unrolled = (on_cpu and mesh is None) if unrolled is None else unrolled
        self.mesh, self.weights = mesh, weights
        self.home = jax.devices()[0] if mesh is None else NamedSharding(mesh, PartitionSpec())
        self.params = dict(params)
        if self.unrolled:
            self.params["thinker"] = unroll_params(self.params["thinker"])
        if stop_ids is None:
            stop_ids = [tokenizer.token_id("<|im_end|>"), tokenizer.token_id("<|endoftext|>")]
        if len(stop_ids) > MAX_STOPS:
            raise PromptError(f"{len(stop_ids)} stop ids were given; at most {MAX_STOPS} are supported.")
        self.stop_ids = tuple(stop_ids)

    @classmethod
    def from_checkpoint(cls, folder: str | Path, **options: Any) -> "Sampler":
        """Restores an imported checkpoint; see `omni_jax.interop.restore`, and the constructor for the options."""
        from omni_jax.sampling.load import load_sampler

        return load_sampler(folder, **options)

    def prepare(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Request:
        """Loads media and builds tokens and positions of one conversation; see `input_pipeline.request.prepare`."""
        return prepare(messages, self.tokenizer, self.config, self.processor, **options)

    def generate(
        self,
        requests: Sequence[Request],
        options: SamplingOptions | Sequence[SamplingOptions] = _GREEDY,
        *,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[Generation]:
        """Whole answers of a batch of unlike requests, in their order. Arguments as for `stream`."""
        seconds: dict[str, float] = {}
        answers = [Generation("", [], "length", len(request.token_ids), seconds) for request in requests]
        for event in self.stream(requests, options, progress=progress, seconds=seconds):
            answer = answers[event.row]
            answer.text += event.text
            answer.token_ids.extend(event.token_ids)
            answer.finish_reason = event.finish_reason or answer.finish_reason
        return answers

    def stream(
        self,
        requests: Sequence[Request],
        options: SamplingOptions | Sequence[SamplingOptions] = _GREEDY,
        *,
        progress: Callable[[str, int, int], None] | None = None,
        seconds: dict[str, float] | None = None,
    ) -> Iterator[Event]:
        """Text as it comes, while the device goes on with the next block.

        Args:
            requests: one batch; each row's answer does not depend on its neighbours.
            options: one for all, or one each.
            progress: called with a stage's name, steps done and steps in all.
            seconds: gets the time of each stage when the answers are complete.

        Raises:
            CapacityError: a prompt that no bucket holds.
            NumericsError: the model gave NaN or infinity for a row.
        """
        if not requests:
            return
        each = one_each(options, len(requests))
        taken: dict[str, float] = {}
        report = progress or (lambda stage, done, total: None)
        inputs = pack_batch(requests, self.config, chunk=self.chunk)
        length = cache_length(inputs, [option.max_new_tokens for option in each])

        model, limits = Listener(self), [option.max_new_tokens for option in each]
        prompted = nothing_yet(model, len(inputs.lengths), length)
        prompted = extend(model, prompted, inputs, report=report, seconds=taken)
        started = time.perf_counter()
        limit = np.minimum(padded(limits, len(inputs.lengths)), length - inputs.lengths)
        answering = Answering(model, prompted, each, limit)
        yield from (event for event in answering.events() if isinstance(event, Event))
        taken["decode"] = time.perf_counter() - started
        taken["decode_steps"] = max(follower.count for follower in answering.text)
        if seconds is not None:
            seconds.update(taken)

    def encode(self, inputs: OmniInputs, seconds: dict[str, float] | None = None) -> dict[str, jax.Array]:
        """Rows of audio and vision tokens of a batch, for those kinds that it has.

        Args:
            seconds: filled with the time of each encoder; for that the call waits for the device.
        """
        thinker, out = self.config.thinker_config, {}

        def run(kind: str, encode: Callable[[], jax.Array]) -> None:
            started = time.perf_counter()
            out[kind] = encode()
            if seconds is not None:
                out[kind].block_until_ready()
                seconds[f"encode_{kind}"] = seconds.get(f"encode_{kind}", 0.0) + time.perf_counter() - started

        if inputs.audio is not None:
            mel, frames = jnp.asarray(inputs.audio.mel), jnp.asarray(inputs.audio.frames)
            config = dict(config=thinker.audio_config, dtype=self.dtype)
            run("audio", lambda: programs.encode_audio(self.params["audio_encoder"], mel, frames, **config))
        if inputs.vision is not None:
            run("vision", lambda: self._encode_vision(inputs.vision))
        return out

    def _encode_vision(self, batch: VisionBatch) -> jax.Array:
        """Tokens of all pictures and films, encoded a piece at a time; rows after the real ones mean nothing."""
        static = dict(config=self.config.thinker_config.vision_config, dtype=self.dtype)
        pieces, rows, done = vision_pieces(batch, VISION_PIECE), None, 0
        per_token = self.config.thinker_config.vision_config.spatial_merge_size**2
        for piece, real in pieces:
            patches, layout = jnp.asarray(piece.patches), vision_layout(piece)
            tokens = programs.encode_vision(self.params["vision_encoder"], patches, layout, **static)
            if len(pieces) == 1:
                return tokens
            if rows is None:  # room for the padding of the last piece
                rows = jnp.zeros(((len(batch.valid) + 2 * VISION_PIECE) // per_token, tokens.shape[1]), tokens.dtype)
                rows = jax.device_put(rows, self.home)
            # each piece's padding is written over by the next
            rows = programs.collect(rows, tokens, jnp.int32(done))
            done += real // per_token
        return rows

    def prefill(self, inputs: OmniInputs, length: int) -> programs.PrefillState:
        """Encodes the media of a batch and runs its prompts, chunk by chunk, into a new cache of `length` slots."""
        model = Listener(self)
        state = extend(model, nothing_yet(model, len(inputs.lengths), length), inputs).thinker
        return jax.block_until_ready(state)


def cache_length(inputs: OmniInputs, max_new_tokens: Sequence[int]) -> int:
    """The cache bucket that holds every prompt and, where one is large enough, every answer.

    Raises:
        CapacityError: a prompt leaves no room for an answer in the largest bucket.
    """
    longest, largest = int(inputs.lengths.max()), BUCKETS.cache[-1]
    if longest >= largest:
        raise CapacityError(
            f"The prompt has {longest} tokens; the largest cache holds {largest}, answer included. "
            "Shorten the media, lower --fps or the pixel bounds, or split the conversation."
        )
    wanted = max(int(n) + limit for n, limit in zip(inputs.lengths, max_new_tokens))
    # an answer that would outgrow the largest bucket ends there, with finish_reason "length"
    return bucket(max(inputs.token_ids.shape[1], min(wanted, largest)), BUCKETS.cache, "prompt and answer tokens")


def vision_layout(vision: Any) -> VisionLayout:
    """The device part of a packed `VisionBatch`."""
    names = ("coordinates", "window_slots", "window_home", "frame_slots", "frame_home")
    return VisionLayout(**{name: jax.tree.map(jnp.asarray, getattr(vision, name)) for name in names})
