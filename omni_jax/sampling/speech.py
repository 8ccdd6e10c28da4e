"""Speech for finished answers: the Talker's codes, then the waveform ("two-pass" order).

requests, replies ─► Thinker again, for its states ─► Talker's prompt ─► codes, a block at a time ─► waveform

The Thinker need not have kept anything: its states are computed from the tokens, chunk by chunk, and each chunk goes on
to the Talker at once. So the states of a long prompt are never all in memory.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.packing import BUCKETS, OmniInputs, bucket, pack_batch
from input_pipeline.request import Request
from omni_jax.errors import CapacityError, CheckpointError, PromptError
from omni_jax.layers.decoder import unroll_params
from omni_jax.models.dit import DEFAULT_OPTIONS
from omni_jax.models.flow import FlowOptions
from omni_jax.sampling import programs
from omni_jax.sampling import speech_programs as sp
from omni_jax.sampling.generate import Sampler, warper_options
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.token2wav import Token2Wav
from omni_jax.sampling.voices import Speaker, choose_speaker, load_speakers

SPEECH_COMPONENTS = ("talker", "speaker_encoder", "dit", "bigvgan")
# The published settings of the Talker; 4096 codes are 82 s.
CODE_SAMPLING = SamplingOptions(max_new_tokens=4096, temperature=0.9, top_k=40, top_p=0.8, repetition_penalty=1.05)


@dataclass(frozen=True)
class SpeechOptions:
    """What a caller may choose about the speech of one request.

    voice: a name; None for the checkpoint's default.
    codes: how codes are drawn; its max_new_tokens is the limit on codes, its seed that of the noise too.
    flow: how the DiT's flow is solved.
    """

    voice: str | None = None
    codes: SamplingOptions = CODE_SAMPLING
    flow: FlowOptions = DEFAULT_OPTIONS


SPEECH = SpeechOptions()


@dataclass(frozen=True)
class CodeEvent:
    """New codes of one request, or the end of its speech."""

    row: int
    codes: tuple[int, ...] = ()
    finish_reason: str | None = None  # at the end: "stop", "length", or "silent" for a reply without words


@dataclass
class Utterance:
    """Speech of one reply. `waveform`: float32 [480 · codes] in [-1, 1] at 24 kHz, empty for a silent reply."""

    codes: list[int]
    finish_reason: str
    waveform: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)


class Speech:
    """The speaking half of a model, beside the `Sampler` that answers in text. Keeps no state between calls."""

    def __init__(
        self,
        sampler: Sampler,
        params: Mapping[str, Any],
        speakers: Mapping[str, Speaker],
        *,
        block: int = 12,
    ):
        """Prepares parameters for speech.

        Args:
            sampler: holds the Thinker and the encoders; the Talker runs in its dtype.
            params: talker, speaker_encoder, dit and bigvgan; the last three are used in float32.
            speakers: voices by name.
            block: codes that the device generates before the host looks.

        Raises:
            CheckpointError: the model has no Talker.
        """
        if not sampler.config.speaks:
            raise CheckpointError("This checkpoint has no Talker, so it cannot speak. Use one with audio output.")
        self.sampler, self.speakers, self.block = sampler, dict(speakers), block
        talker = params["talker"]
        self.params = unroll_params(talker) if sampler.unrolled else talker
        self.token2wav = Token2Wav(params, sampler.config.token2wav_config)

    @classmethod
    def from_checkpoint(cls, folder: str | Path, sampler: Sampler, *, block: int = 12) -> "Speech":
        """Restores the speaking parts of the imported checkpoint that `sampler` came from.

        Raises:
            CheckpointError: the checkpoint has no Talker or no voices, or does not fit its configuration.
        """
        from omni_jax.interop.restore import restore_params

        speakers = load_speakers(folder, sampler.config)
        talker = restore_params(folder, sampler.config, dtype=sampler.dtype, components=("talker",))
        sound = restore_params(folder, sampler.config, dtype=jnp.float32, components=SPEECH_COMPONENTS[1:])
        return cls(sampler, talker | sound, speakers, block=block)

    def speak(
        self,
        requests: Sequence[Request],
        replies: Sequence[Sequence[int]],
        options: SpeechOptions | Sequence[SpeechOptions] = SPEECH,
        *,
        noise: Sequence[np.ndarray] | None = None,
    ) -> list[Utterance]:
        """Codes and waveforms of a batch of finished answers. Arguments as for `stream_codes` and `synthesise`."""
        each, seconds = _one_each(options, len(requests)), {}
        codes: list[list[int]] = [[] for _ in requests]
        reasons = [""] * len(requests)
        for event in self.stream_codes(requests, replies, each, seconds=seconds):
            codes[event.row] += event.codes
            reasons[event.row] = event.finish_reason or reasons[event.row]
        waveforms = self.synthesise(codes, each, noise=noise, seconds=seconds)
        return [Utterance(*parts, seconds) for parts in zip(codes, reasons, waveforms)]

    def stream_codes(
        self,
        requests: Sequence[Request],
        replies: Sequence[Sequence[int]],
        options: SpeechOptions | Sequence[SpeechOptions] = SPEECH,
        *,
        seconds: dict[str, float] | None = None,
    ) -> Iterator[CodeEvent]:
        """Codes as they come, while the device goes on with the next block.

        Args:
            requests: one batch; each row's codes do not depend on its neighbours.
            replies: the answers' tokens, stop token included where there is one. As in the published model the last
                token is not spoken: it is the stop token, or was never fed to the Thinker. An answer of one token that
                is no stop token is spoken; one that holds a stop token only, or nothing, is silent.
            options: one for all, or one each.
            seconds: filled with the time of each stage.

        Raises:
            PromptError: an unknown voice, a token id out of range, or not one reply for each request.
            CapacityError: a prompt and reply that no bucket holds.
        """
        if not requests:
            return
        each, seconds = _one_each(options, len(requests)), {} if seconds is None else seconds
        for option in each:
            choose_speaker(self.speakers, option.voice)
        words = self._words(requests, replies)
        if not any(len(own) for own in words):
            yield from (CodeEvent(row, (), "silent") for row in range(len(requests)))
            return
        started = time.perf_counter()
        state, reply, code, done = self.start(requests, words, each)
        seconds["talker_prefill"] = time.perf_counter() - started

        started, steps = time.perf_counter(), 1
        pending, ended = deque([(code[:, None], done)]), [False] * len(requests)
        while not all(ended):
            # keep one block in flight beyond the one that the host reads
            if len(pending) < 2:
                state, codes, done = sp.talk(self.params, state, reply, block=self.block, **self._static("talker"))
                pending.append((codes, done))
            codes, done = (np.asarray(part) for part in pending.popleft())
            steps += codes.shape[1]
            for row in range(len(requests)):
                if not ended[row]:
                    event = self._event(row, codes[row], bool(done[row]), len(words[row]) > 0)
                    ended[row] = event.finish_reason is not None
                    yield event
        seconds["talker_decode"] = time.perf_counter() - started
        seconds["talker_steps"] = steps

    def synthesise(
        self,
        codes: Sequence[Sequence[int]],
        options: SpeechOptions | Sequence[SpeechOptions] = SPEECH,
        *,
        noise: Sequence[np.ndarray] | None = None,
        seconds: dict[str, float] | None = None,
    ) -> list[np.ndarray]:
        """Waveforms of whole utterances, each decoded alone, as `Token2Wav.full` does: float32 [480 · codes], 24 kHz.

        Args:
            codes: one list for each utterance; an empty one gives an empty waveform.
            noise: float32 [2 · codes, mel bins] for each, where the flow starts; drawn from the seed by default.

        Raises:
            OmniError: an unknown voice, a code that the DiT has no row for, or too many codes.
        """
        each = _one_each(options, len(codes))
        voices = [choose_speaker(self.speakers, option.voice) for option in each]
        starts = [None] * len(codes) if noise is None else noise
        return [
            self.token2wav.full(own, voice, seed=option.codes.seed, options=option.flow, noise=start, seconds=seconds)
            for own, voice, option, start in zip(codes, voices, each, starts, strict=True)
        ]

    def _words(self, requests, replies) -> list[np.ndarray]:
        """Of each reply, the tokens that are spoken; checked."""
        if len(replies) != len(requests):
            raise PromptError(f"{len(replies)} replies were given for {len(requests)} requests.")
        rows = self.sampler.config.thinker_config.text_config.vocab_size
        words = []
        for index, reply in enumerate(replies):
            reply = np.asarray(reply, np.int64).reshape(-1)
            bad = reply[(reply < 0) | (reply >= rows)]
            if len(bad):
                raise PromptError(f"Reply {index} holds token {bad[0]}, outside 0 … {rows - 1}.")
            silent = not len(reply) or reply[0] in self.sampler.stop_ids
            words.append(reply[: 0 if silent else max(len(reply) - 1, 1)])
        return words

    def start(
        self, requests: Sequence[Request], words: Sequence[np.ndarray], options: Sequence[SpeechOptions]
    ) -> tuple[sp.TalkerState, sp.Reply, jax.Array, jax.Array]:
        """Runs Thinker and Talker up to the first code.

        Args:
            words: of each reply, the tokens that are spoken; a row without any stays silent.

        Returns:
            The state for `speech_programs.talk`, the text track to run it on, and each row's first code (-1 for a
            silent row) and whether it is done.
        """
        inputs = pack_batch(requests, self.sampler.config, chunk=self.sampler.chunk)
        config = self.sampler.config.talker_config
        batch = len(inputs.lengths)
        lengths = jnp.asarray(inputs.lengths)
        wanted = [option.codes.max_new_tokens for option in options]
        length = _slots(inputs, wanted)
        limit = np.zeros(batch, np.int32)  # rows of padding and silent rows say nothing
        limit[: len(words)] = [most if len(own) else 0 for own, most in zip(words, wanted)]
        limit = np.minimum(limit, np.maximum(length - inputs.lengths - 2, 0))
        cache = self._new_cache(config, batch, length)

        # ids of the places after the prompt: two more, then the codes'; films may reach beyond the last text's id
        last = inputs.position_ids[0, np.arange(batch), np.maximum(inputs.lengths - 1, 0)]
        first = np.maximum(inputs.next_position, last + 3)
        cache, vectors, counts = self._think(inputs, words, cache)

        bos = np.zeros(batch, np.int32)
        bos[: len(options)] = [choose_speaker(self.speakers, option.voice).token_id for option in options]
        rows = np.concatenate([bos, [config.tts_text_end_token_id, config.tts_text_pad_token_id]]).astype(np.int32)
        rows = self._embed(rows[:, None])[:, 0]
        text = jnp.stack([rows[:batch], vectors[:, 0]], axis=1)
        codes = jnp.asarray([[config.tts_codec_pad_token_id, config.tts_codec_start_token_id]] * batch, jnp.int32)
        position_ids = jnp.asarray(np.broadcast_to((last[:, None] + [1, 2]).astype(np.int32), (3, batch, 2)))
        talker = self._static("talker")
        cache, hidden = sp.hear(self.params, cache, text, codes, position_ids, lengths, **talker)
        state, code, done = sp.first_code(
            self.params,
            hidden,
            lengths + 2,
            jnp.asarray(first),
            warper_options([option.codes for option in options], batch),
            jnp.asarray(limit),
            jnp.asarray(self._stops(), jnp.int32),
            jnp.asarray(self._suppressed()),
            **talker,
        )
        # the first of the reply's vectors has just been heard
        count = jnp.asarray(np.maximum(counts - 1, 0))
        reply = sp.Reply(vectors[:, 1:], count, jnp.ones(batch, bool), rows[batch], rows[batch + 1])
        return state.replace(cache=cache), reply, code, done

    def _think(self, inputs: OmniInputs, words, talker_cache):
        """The Thinker over prompts and replies; the Talker over the prompts, a chunk behind it.

        Returns:
            The Talker's cache; reply vectors [B, R + 1, E]; how many of them are real, [B].
        """
        sampler, batch, chunk = self.sampler, len(inputs.lengths), self.sampler.chunk
        counts = np.zeros(batch, np.int32)
        counts[: len(words)] = [len(own) for own in words]
        # a power of two of chunks, so that the loop over codes has few shapes
        reply_chunks = 1 << (max(-(-int(counts.max()) // chunk), 1) - 1).bit_length()
        total = inputs.token_ids.shape[1] // chunk
        needed = max(inputs.token_ids.shape[1], int(inputs.lengths.max()) + reply_chunks * chunk)
        length = bucket(needed, BUCKETS.cache, "prompt and answer tokens")
        cache = self._new_cache(sampler.config.thinker_config.text_config, batch, length)
        thinker, talker = self._static("thinker"), self._static("talker")

        media = sampler.encode(inputs)
        sources = {"audio": inputs.audio_source, "vision": inputs.vision_source}
        silent = jnp.full((batch, chunk), -1, jnp.int32)
        for index in range(total):
            here = slice(index * chunk, (index + 1) * chunk)
            embeddings = self._embed(inputs.token_ids[:, here])
            for kind, rows in media.items():
                if (sources[kind][:, here] >= 0).any():
                    embeddings = programs.place(embeddings, rows, jnp.asarray(sources[kind][:, here]))
            masked = (inputs.audio_source[:, here] >= 0) | (inputs.vision_source[:, here] >= 0)
            position_ids = jnp.asarray(inputs.position_ids[:, :, here])
            start = jnp.full(batch, here.start, jnp.int32)
            cache, vectors = sp.think(
                sampler.params["thinker"], cache, embeddings, jnp.asarray(masked), position_ids, start, **thinker
            )
            talker_cache, _ = sp.hear(self.params, talker_cache, vectors, silent, position_ids, start, **talker)

        tokens = np.zeros((batch, reply_chunks * chunk), np.int32)
        for row, own in enumerate(words):
            tokens[row, : len(own)] = own
        parts, unmasked = [], jnp.zeros((batch, chunk), bool)
        for index in range(reply_chunks):
            offset = index * chunk + np.arange(chunk)
            position_ids = np.broadcast_to(inputs.next_position[:, None] + offset, (3, batch, chunk)).astype(np.int32)
            cache, vectors = sp.think(
                sampler.params["thinker"],
                cache,
                self._embed(tokens[:, index * chunk : (index + 1) * chunk]),
                unmasked,
                jnp.asarray(position_ids),
                jnp.asarray(inputs.lengths + index * chunk),
                **thinker,
            )
            parts.append(vectors)
        return talker_cache, jnp.concatenate(parts, axis=1), counts

    def _event(self, row: int, codes: np.ndarray, done: bool, speaks: bool) -> CodeEvent:
        """What a block brought for one row."""
        if not speaks:
            return CodeEvent(row, (), "silent")
        stops = self._stops()
        own = tuple(int(code) for code in codes if code >= 0)
        spoken = tuple(code for code in own if code not in stops)
        reason = ("stop" if len(spoken) < len(own) else "length") if done else None
        return CodeEvent(row, spoken, reason)

    def _embed(self, token_ids: np.ndarray) -> jax.Array:
        config = self.sampler.config.thinker_config.text_config
        return programs.embed(
            self.sampler.params["thinker"], jnp.asarray(token_ids), config=config, dtype=self.sampler.dtype
        )

    def _new_cache(self, config, batch: int, length: int):
        kinds = dict(dtype=self.sampler.dtype, unrolled=self.sampler.unrolled)
        cache = sp.new_cache(config=config, batch=batch, length=length, **kinds)
        # committed to its device like the parameters: otherwise the first chunk would compile a program of its own
        return jax.device_put(cache, jax.devices()[0])

    def _static(self, part: str) -> dict[str, Any]:
        config = self.sampler.config
        chosen = config.talker_config if part == "talker" else config.thinker_config.text_config
        return dict(config=chosen, dtype=self.sampler.dtype, unrolled=self.sampler.unrolled)

    def _stops(self) -> tuple[int, int]:
        config = self.sampler.config.talker_config
        return config.tts_codec_pad_token_id, config.tts_codec_end_token_id

    def _suppressed(self) -> np.ndarray:
        """Ids that are never drawn: the start id, as published, and those that stand for no sound and no end.

        The published model draws the latter too, and fails on them in the DiT.
        """
        config = self.sampler.config
        ids = np.arange(config.talker_config.vocab_size)
        soundless = (ids > config.token2wav_config.dit_config.num_embeds) & ~np.isin(ids, self._stops())
        return soundless | (ids == config.talker_config.tts_codec_start_token_id)


def _one_each(options, count: int) -> list[SpeechOptions]:
    each = [options] * count if isinstance(options, SpeechOptions) else list(options)
    if len(each) != count:
        raise PromptError(f"{len(each)} sets of options were given for {count} requests.")
    return each


def _slots(inputs: OmniInputs, wanted: Sequence[int]) -> int:
    """Cache slots of the Talker: prompts, two places, and the codes as far as the largest bucket goes."""
    largest = BUCKETS.cache[-1]
    longest = int(inputs.lengths.max())
    if longest + 3 > largest:
        raise CapacityError(
            f"The prompt has {longest} tokens; with it the Talker's cache of {largest} has no room for speech. "
            "Shorten the media or split the conversation."
        )
    most = max(int(n) + 2 + limit for n, limit in zip(inputs.lengths, wanted))
    return bucket(max(inputs.token_ids.shape[1], min(most, largest)), BUCKETS.cache, "slots of the Talker's cache")
