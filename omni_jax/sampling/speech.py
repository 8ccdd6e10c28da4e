"""The speaking half of a model: answers in text and speech as they are made, and speech for finished answers.

    prompt ─► Thinker ─► Talker          a token and a code a step ─► text, sound        `stream`, `generate`
    prompt and answer ─► Thinker, for its states ─► Talker, codes ─► sound               `speak` ("two-pass")

Both give the same codes. The second speaks any text that is given; the first is there before the text is finished.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from input_pipeline.packing import BUCKETS, OmniInputs, bucket, pack_batch
from input_pipeline.request import Request
from omni_jax.errors import CapacityError, CheckpointError, PromptError
from omni_jax.layers.decoder import unroll_params
from omni_jax.models.logical_axes import logical_axes
from omni_jax.sampling import speech_programs as sp
from omni_jax.sampling.generate import Sampler, cache_length
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.pipeline import Answering, CodeFollower, halt_loops, take_codes
from omni_jax.sampling.prompting import Listener, Prompted, extend, nothing_yet, read_reply, silent_rows
from omni_jax.sampling.rows import Event, check_finite, one_each, padded, warper_options
from omni_jax.sampling.speech_options import (
    SPEECH,
    AudioChunk,
    CodeEvent,
    End,
    Span,
    SpeechOptions,
    SpokenAnswer,
    Utterance,
)
from omni_jax.sampling.token2wav import Token2Wav
from omni_jax.sampling.voices import Speaker, choose_speaker, load_speakers
from omni_jax.sampling.watch import Watch
from omni_jax.sharding.rules import SAMPLING, shardings

SPEECH_COMPONENTS = ("talker", "speaker_encoder", "dit", "bigvgan")
_GREEDY = SamplingOptions()


class Speech(Listener):
    """The speaking half of a model, beside the `Sampler` that answers in text. Keeps no state between calls."""

    def __init__(
        self,
        sampler: Sampler,
        params: Mapping[str, Any],
        speakers: Mapping[str, Speaker],
    ):
        """Prepares parameters for speech.

        Args:
            sampler: holds the Thinker and the encoders; the Talker runs in its dtype.
            params: talker, speaker_encoder, dit and bigvgan; the last three are used in float32.
            speakers: voices by name.

        Raises:
            CheckpointError: the model has no Talker.
        """
        if not sampler.config.speaks:
            raise CheckpointError("This checkpoint has no Talker, so it cannot speak. Use one with audio output.")
        super().__init__(sampler)
        self.speakers = dict(speakers)
        self.stops = self.talker_config.tts_codec_pad_token_id, self.talker_config.tts_codec_end_token_id
        talker = params["talker"]
        self.params = unroll_params(talker) if sampler.unrolled else talker
        self.token2wav = Token2Wav(params, sampler.config.token2wav_config)
        self.block = self.token2wav.codes_per_block  # steps that bring one block of the DiT

    @classmethod
    def from_checkpoint(
        cls, folder: str | Path, sampler: Sampler, speakers: Mapping[str, Speaker] | None = None
    ) -> "Speech":
        """Restores the speaking parts of the imported checkpoint that `sampler` came from.

        `speakers` takes the place of the checkpoint's own voices.

        On a mesh the Talker is split as the Thinker is; the decoders of sound are whole on every device.

        Raises:
            CheckpointError: the checkpoint has no Talker or no voices, or does not fit its configuration.
            ShardingError: a parameter does not divide over the sampler's mesh.
        """
        from omni_jax.sampling.load import load_params

        config, (talker, *sound) = sampler.config, SPEECH_COMPONENTS
        speakers, split, whole = speakers or load_speakers(folder, config), None, None
        if sampler.mesh is not None:
            split = shardings(*logical_axes(config, (talker,)), sampler.mesh, SAMPLING)
            whole = jax.tree.map(lambda _: sampler.home, logical_axes(config, sound)[1])
        params = load_params(folder, config, (talker,), dtype=sampler.dtype, placement=split, weights=sampler.weights)
        params |= load_params(folder, config, tuple(sound), dtype=jnp.float32, placement=whole, weights=None)
        return cls(sampler, params, speakers)

    def stream(
        self,
        requests: Sequence[Request],
        options: SamplingOptions | Sequence[SamplingOptions] = _GREEDY,
        speech: SpeechOptions | Sequence[SpeechOptions] = SPEECH,
        *,
        progress: Callable[[str, int, int], None] | None = None,
        seconds: dict[str, float] | None = None,
        timeline: list[Span] | None = None,
    ) -> Iterator[Event | AudioChunk | End]:
        """Text and sound of a batch of answers as they are made; see `omni_jax/sampling/pipeline.py` for the order.

        Args:
            requests: one batch; each row's answer does not depend on its neighbours.
            options, speech: one for all, or one each.
            progress: called with a stage's name, steps done and steps in all, until the prompts are read.
            seconds: gets the time of each stage, and of the first sound, when the answers are complete.
            timeline: gets what each stage was seen to do, when the answers are complete.

        Raises:
            PromptError: an unknown voice, or not one set of options for each request.
            CapacityError: a prompt that no bucket holds.
            NumericsError: the model gave NaN or infinity for a row.
        """
        each, spoken = one_each(options, len(requests)), one_each(speech, len(requests))
        for option in spoken:
            choose_speaker(self.speakers, option.voice)
        if not requests:
            return
        started, taken = time.perf_counter(), {}
        inputs = pack_batch(requests, self.sampler.config, chunk=self.sampler.chunk)
        batch, wanted = len(inputs.lengths), [self.most_codes(option) for option in spoken]
        thinker_length = cache_length(inputs, [option.max_new_tokens for option in each])
        talker_length = _slots(inputs, wanted)
        report = progress or (lambda stage, done, total: None)
        prompted = nothing_yet(self, batch, thinker_length, talker_length)
        prompted = extend(self, prompted, inputs, report=report, seconds=taken)
        limit = padded([option.max_new_tokens for option in each], batch)
        spans: list[Span] = []
        with Watch(started, spans) as watch:
            answering = Answering(
                self,
                prompted,
                each,
                np.minimum(limit, thinker_length - inputs.lengths),
                spoken,
                np.minimum(padded(wanted, batch), np.maximum(talker_length - inputs.lengths - 2, 0)),
                watch=watch,
            )
            for event in answering.events():
                if isinstance(event, AudioChunk):
                    taken.setdefault("first_sound", time.perf_counter() - started)
                elif isinstance(event, Event):
                    taken.setdefault("first_text", time.perf_counter() - started)
                yield event
        for stage, name in (("codes", "decode"), ("dit", "dit"), ("bigvgan", "bigvgan")):
            taken[name] = sum(span.end - span.start for span in spans if span.stage == stage)
        taken["answer"] = time.perf_counter() - started
        if seconds is not None:
            seconds.update(taken)
        if timeline is not None:
            timeline.extend(spans)

    def generate(
        self,
        requests: Sequence[Request],
        options: SamplingOptions | Sequence[SamplingOptions] = _GREEDY,
        speech: SpeechOptions | Sequence[SpeechOptions] = SPEECH,
        *,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[SpokenAnswer]:
        """Whole answers of a batch of unlike requests, in their order. Arguments and errors as for `stream`."""
        seconds: dict[str, float] = {}
        timeline: list[Span] = []
        texts, sounds = [""] * len(requests), [[] for _ in requests]
        ends: dict[int, End] = {}
        for event in self.stream(requests, options, speech, progress=progress, seconds=seconds, timeline=timeline):
            match event:
                case Event():
                    texts[event.row] += event.text
                case AudioChunk():
                    sounds[event.row].append(event.waveform)
                case End():
                    ends[event.row] = event
        return [
            SpokenAnswer(
                text=texts[row],
                token_ids=list(ends[row].token_ids),
                finish_reason=ends[row].finish_reason,
                prompt_tokens=len(request.token_ids),
                codes=list(ends[row].codes),
                speech_reason=ends[row].speech_reason,
                waveform=np.concatenate([np.zeros(0, np.float32), *sounds[row]]),
                seconds=seconds,
                timeline=timeline,
            )
            for row, request in enumerate(requests)
        ]

    def speak(
        self,
        requests: Sequence[Request],
        replies: Sequence[Sequence[int]],
        options: SpeechOptions | Sequence[SpeechOptions] = SPEECH,
        *,
        noise: Sequence[np.ndarray] | None = None,
    ) -> list[Utterance]:
        """Codes and waveforms of a batch of finished answers. Arguments as for `stream_codes` and `synthesise`."""
        each, seconds = one_each(options, len(requests)), {}
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
        each, seconds = one_each(options, len(requests)), {} if seconds is None else seconds
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
        pending = deque([(code[:, None], done, jnp.zeros_like(done))])
        followers = [CodeFollower(row, self.stops, option.loop_guard) for row, option in enumerate(each)]
        while any(one.reason is None for one in followers):
            # keep one block in flight beyond the one that the host reads
            if len(pending) < 2:
                state, *results = sp.talk(
                    self.params, state, reply, jnp.int32(self.block), block=self.block, **self.static("talker")
                )
                pending.append(results)
            codes, done, broken = (np.asarray(part) for part in pending.popleft())
            check_finite(broken, "speech")
            steps += codes.shape[1]
            events = take_codes(followers, codes, done)
            state = halt_loops(state, events)
            yield from events
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
        """Waveforms of whole utterances: float32 [480 · codes], 24 kHz.

        Args:
            codes: one list for each utterance; an empty one gives an empty waveform.
            noise: float32 [2 · codes, mel bins] for each, where the flow starts; drawn from the seed by default. Only
                for the decoder "full": that of "block" depends on the seed alone.

        Raises:
            OmniError: an unknown voice, a code that the DiT has no row for, or too many codes.
        """
        each = one_each(options, len(codes))
        voices = [choose_speaker(self.speakers, option.voice) for option in each]
        if noise is not None and any(option.decoder != "full" for option in each):
            raise PromptError('Noise can be given to the decoder "full" only; "block" draws its own from the seed.')
        starts = [None] * len(codes) if noise is None else noise
        waveforms = []
        for own, voice, option, start in zip(codes, voices, each, starts, strict=True):
            common = dict(seed=option.codes.seed, options=option.flow, seconds=seconds)
            if option.decoder == "full":
                waveforms.append(self.token2wav.full(own, voice, noise=start, **common))
            else:
                waveforms.append(self.token2wav.block(own, voice, **common))
        return waveforms

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
    ) -> tuple[sp.TalkerState, sp.Reply, Int[Array, "B"], Bool[Array, "B"]]:
        """Runs Thinker and Talker over prompts and known answers, up to the first code.

        Args:
            words: of each reply, the tokens that are spoken; a row without any stays silent.

        Returns:
            The state for `speech_programs.talk`, the text track to run it on, and each row's first code (-1 for a
            silent row) and whether it is done.
        """
        inputs = pack_batch(requests, self.sampler.config, chunk=self.sampler.chunk)
        batch, chunk = len(inputs.lengths), self.sampler.chunk
        wanted = [self.most_codes(option) for option in options]
        length = _slots(inputs, wanted)
        counts = padded([len(own) for own in words], batch)
        # a power of two of chunks, so that the loop over codes has few shapes
        chunks = 1 << (max(-(-int(counts.max()) // chunk), 1) - 1).bit_length()
        needed = max(inputs.token_ids.shape[1], int(inputs.lengths.max()) + chunks * chunk)
        prompted = nothing_yet(self, batch, bucket(needed, BUCKETS.cache, "prompt and answer tokens"), length)
        prompted = extend(self, prompted, inputs)
        prompted, vectors = read_reply(self, prompted, list(words), chunks)
        limit = np.minimum(padded(wanted, batch), np.maximum(length - inputs.lengths - 2, 0))
        complete = jnp.ones(batch, bool)
        state, reply, code, done, broken = self.begin(
            prompted, vectors[:, 0], silent_rows(list(words), batch), options, limit, complete
        )
        check_finite(np.asarray(broken), "speech")
        # the first of the reply's vectors has just been heard
        reply = reply.replace(vectors=vectors[:, 1:], count=jnp.asarray(np.maximum(counts - 1, 0)))
        return state, jax.device_put(reply, self.sampler.home), code, done

    def begin(
        self,
        prompted: Prompted,
        vector: Float[Array, "B E"],
        silent: Bool[Array, "B"],
        options: Sequence[SpeechOptions],
        limit: Int[np.ndarray, "B"],
        complete: Bool[Array, "B"],
    ) -> tuple[sp.TalkerState, sp.Reply, Int[Array, "B"], Bool[Array, "B"], Bool[Array, "B"]]:
        """The first code of each row, from its first reply vector.

        Args:
            prompted: its Talker's cache is used up.
            silent: rows that say nothing.
            limit: most codes of each row.
            complete: rows whose text ends here.

        Returns:
            The Talker's state; a text track that has nothing further yet; code (-1 for a silent row); done; broken.
        """
        config, batch = self.talker_config, len(prompted.lengths)
        bos = padded([choose_speaker(self.speakers, option.voice).token_id for option in options], batch)
        rows = np.concatenate([bos, [config.tts_text_end_token_id, config.tts_text_pad_token_id]]).astype(np.int32)
        rows = self.embed(rows[:, None])[:, 0]
        text = jnp.stack([rows[:batch], vector], axis=1)
        codes = jnp.asarray([[config.tts_codec_pad_token_id, config.tts_codec_start_token_id]] * batch, jnp.int32)
        lengths, last = jnp.asarray(prompted.lengths), prompted.last_position
        position_ids = jnp.asarray(np.broadcast_to((last[:, None] + [1, 2]).astype(np.int32), (3, batch, 2)))
        cache, hidden = sp.hear(
            self.params, prompted.talker, text, codes, position_ids, lengths, **self.static("talker")
        )
        # ids of the places after those two; films may reach beyond the last text's id
        first = np.maximum(prompted.next_position, last + 3).astype(np.int32)
        state, code, done, broken = sp.first_code(
            self.params,
            hidden,
            lengths + 2,
            jnp.asarray(first),
            warper_options([option.codes for option in options], batch),
            jnp.asarray(limit, jnp.int32),
            jnp.asarray(padded([option.codes_per_token or 0 for option in options], batch)),
            silent,
            jnp.asarray(self.stops, jnp.int32),
            jnp.asarray(self._suppressed()),
            **self.static("talker"),
        )
        empty = jnp.zeros_like(vector[:, None])
        reply = sp.Reply(empty, jnp.zeros(batch, jnp.int32), complete, rows[batch], rows[batch + 1])
        # committed like what the loops return, or their second call would compile anew
        return state.replace(cache=cache), jax.device_put(reply, self.sampler.home), code, done, broken

    def most_codes(self, options: SpeechOptions) -> int:
        """The limit on codes; the published decoder has positions for 5.5 minutes only."""
        wanted = options.codes.max_new_tokens
        return min(wanted, self.token2wav.most_codes) if options.decoder == "full" else wanted

    def _suppressed(self) -> np.ndarray:
        """Ids that are never drawn: the start id, as published, and those that stand for no sound and no end.

        The published model draws the latter too, and fails on them in the DiT.
        """
        ids = np.arange(self.talker_config.vocab_size)
        soundless = (ids > self.token2wav.config.dit_config.num_embeds) & ~np.isin(ids, self.stops)
        return soundless | (ids == self.talker_config.tts_codec_start_token_id)


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
