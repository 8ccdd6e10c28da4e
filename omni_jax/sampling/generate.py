"""Answers in text: media encoders, chunked prefill, and a decoding loop on the device that the host follows.

requests ─► pack into buckets ─► encode audio, vision ─► prefill chunk by chunk ─► decode, a block at a time
                                                                                    └─► text, while it goes on
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from input_pipeline.packing import BUCKETS, OmniInputs, bucket, pack_batch
from input_pipeline.request import Request, prepare
from input_pipeline.tokenizer import StreamDecoder, Tokenizer
from omni_jax.config import OmniConfig, ProcessorConfig
from omni_jax.errors import CapacityError, NumericsError, PromptError
from omni_jax.layers.decoder import unroll_params
from omni_jax.models.vision_encoder import VisionLayout
from omni_jax.sampling import programs
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.warpers import WarperOptions

_MAX_STOPS = 8  # stop ids a request may have; part of a program's shape
_GREEDY = SamplingOptions()


@dataclass(frozen=True)
class Event:
    """One thing that happened to one request: a piece of text, or the end of its answer."""

    row: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None  # "stop" or "length" at the end


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
        """
        on_cpu = jax.default_backend() == "cpu"
        self.config, self.tokenizer, self.processor = config, tokenizer, processor or ProcessorConfig()
        self.dtype = jnp.dtype(dtype or (jnp.float32 if on_cpu else jnp.bfloat16))
        self.chunk, self.block = chunk, block
        self.unrolled = (on_cpu and mesh is None) if unrolled is None else unrolled
        self.mesh = mesh
        self.home = jax.devices()[0] if mesh is None else NamedSharding(mesh, PartitionSpec())
        self.params = dict(params)
        if self.unrolled:
            self.params["thinker"] = unroll_params(self.params["thinker"])
        if stop_ids is None:
            stop_ids = [tokenizer.token_id("<|im_end|>"), tokenizer.token_id("<|endoftext|>")]
        if len(stop_ids) > _MAX_STOPS:
            raise PromptError(f"{len(stop_ids)} stop ids were given; at most {_MAX_STOPS} are supported.")
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

        prefilled = self.prefill(inputs, length, report=report, seconds=taken)
        batch = inputs.token_ids.shape[0]
        limit = np.minimum(padded([option.max_new_tokens for option in each], batch), length - inputs.lengths)

        started = time.perf_counter()
        thinker = dict(config=self.config.thinker_config.text_config, dtype=self.dtype, unrolled=self.unrolled)
        state, first, *flags = programs.first_token(
            self.params["thinker"],
            prefilled.last_hidden,
            prefilled.seen,
            jnp.asarray(inputs.lengths),
            jnp.asarray(inputs.next_position),
            warper_options(each, batch),
            jnp.asarray(limit),
            stop_table(self.stop_ids, batch),
            **thinker,
        )
        state = state.replace(cache=prefilled.cache)
        followers = [TextFollower(row, self.tokenizer, self.stop_ids) for row in range(len(requests))]
        pending = deque([(first[:, None], *flags)])
        steps = 4  # a short first block: the first words come soon
        while pending:
            # keep one block in flight beyond the one that the host reads
            if len(pending) < 2 and not all(follower.ended for follower in followers):
                state, tokens, *flags = programs.decode(
                    self.params["thinker"],
                    state,
                    jnp.int32(min(steps, self.block)),
                    block=self.block,
                    **thinker,
                )
                pending.append((tokens, *flags))
                steps = self.block
            tokens, done, broken = (np.asarray(part) for part in pending.popleft())
            check_finite(broken, "text")
            for follower in followers:
                yield from follower.take(tokens[follower.row], bool(done[follower.row]))
            if all(follower.ended for follower in followers):
                break
        taken["decode"] = time.perf_counter() - started
        taken["decode_steps"] = max(follower.count for follower in followers)
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
            patches, layout = jnp.asarray(inputs.vision.patches), vision_layout(inputs.vision)
            config = dict(config=thinker.vision_config, dtype=self.dtype)
            run("vision", lambda: programs.encode_vision(self.params["vision_encoder"], patches, layout, **config))
        return out

    def prefill(
        self,
        inputs: OmniInputs,
        length: int,
        *,
        report: Callable[[str, int, int], None] = lambda stage, done, total: None,
        seconds: dict[str, float] | None = None,
    ) -> programs.PrefillState:
        """Encodes the media of a batch and runs its prompts, chunk by chunk, into a new cache of `length` slots."""
        seconds = {} if seconds is None else seconds
        config, batch = self.config.thinker_config.text_config, inputs.token_ids.shape[0]
        media = self.encode(inputs, seconds)
        sources = {"audio": inputs.audio_source, "vision": inputs.vision_source}
        started = time.perf_counter()
        common = dict(config=config, dtype=self.dtype, unrolled=self.unrolled)
        # committed to its device like the parameters: otherwise the first chunk would compile a program of its own
        state = jax.device_put(programs.new_prefill(batch=batch, length=length, **common), self.home)
        lengths = jnp.asarray(inputs.lengths)
        total = inputs.token_ids.shape[1] // self.chunk
        for index in range(total):
            report("prefill", index, total)
            here = slice(index * self.chunk, (index + 1) * self.chunk)
            token_ids = jnp.asarray(inputs.token_ids[:, here])
            embeddings = programs.embed(self.params["thinker"], token_ids, config=config, dtype=self.dtype)
            for kind, tokens in media.items():
                if (sources[kind][:, here] >= 0).any():
                    embeddings = programs.place(embeddings, tokens, jnp.asarray(sources[kind][:, here]))
            state = programs.prefill(
                self.params["thinker"],
                state,
                embeddings,
                token_ids,
                jnp.asarray(inputs.position_ids[:, :, here]),
                jnp.full(batch, here.start, jnp.int32),
                lengths,
                **common,
            )
        jax.block_until_ready(state.last_hidden)
        report("prefill", total, total)
        seconds["prefill"] = time.perf_counter() - started
        return state


class TextFollower:
    """Turns one row's tokens into events, up to its end."""

    def __init__(self, row: int, tokenizer: Tokenizer, stop_ids: tuple[int, ...]):
        self.row, self.stop_ids, self.reason = row, stop_ids, None
        self.token_ids: list[int] = []
        self._decoder = StreamDecoder(tokenizer)

    @property
    def ended(self) -> bool:
        return self.reason is not None

    @property
    def count(self) -> int:
        return len(self.token_ids)

    def take(self, tokens: np.ndarray, done: bool) -> Iterator[Event]:
        """What a block brought; nothing after the end."""
        if self.ended:
            return
        ids = tuple(int(token) for token in tokens if token >= 0)
        self.token_ids += ids
        text = "".join(self._decoder.push(token) for token in ids if token not in self.stop_ids)
        if not done:
            if ids:
                yield Event(self.row, text, ids)
            return
        self.reason = "stop" if self.token_ids and self.token_ids[-1] in self.stop_ids else "length"
        yield Event(self.row, text + self._decoder.flush(), ids, self.reason)


def one_each(options: Any, count: int) -> list:
    """Options for each request: as given, or the one set for all.

    Raises:
        PromptError: not one set for each.
    """
    each = list(options) if isinstance(options, Sequence) else [options] * count
    if len(each) != count:
        raise PromptError(f"{len(each)} sets of options were given for {count} requests.")
    return each


def padded(values: Sequence[int], batch: int) -> Int[np.ndarray, "B"]:
    """int32 values of the real rows, 0 for the rest."""
    return np.asarray([*values, *[0] * (batch - len(values))], np.int32)


def check_finite(broken: np.ndarray, track: str) -> None:
    """Raises NumericsError if the logits of any row were not finite."""
    if broken.any():
        raise NumericsError(
            f"Request {int(broken.argmax())}: the model's logits are not finite ({track}). Check the weights with "
            "`omni-jax parity --checkpoint`, use --dtype float32, or choose a repetition penalty nearer to 1."
        )


def stop_table(stop_ids: Sequence[int], batch: int) -> jax.Array:
    """Stop ids for every row of a batch, padded with -1 to one width."""
    stops = np.full((batch, _MAX_STOPS), -1, np.int32)
    stops[:, : len(stop_ids)] = stop_ids
    return jnp.asarray(stops)


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


def warper_options(options: Sequence[SamplingOptions], batch: int) -> WarperOptions:
    """One value a row; padding rows are greedy."""
    padded = list(options) + [SamplingOptions()] * (batch - len(options))
    kinds = {"temperature": np.float32, "top_k": np.int32, "top_p": np.float32, "repetition_penalty": np.float32}
    kinds["seed"] = np.int32
    return WarperOptions(
        **{name: jnp.asarray([getattr(option, name) for option in padded], kind) for name, kind in kinds.items()}
    )
