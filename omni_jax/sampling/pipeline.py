"""One pipeline for both tracks: text and speech of the same answers, made side by side.

    device   prompt │ 1 step │ 11 │ 12 │ sound 1 │ 12 │ sound 2 │ 12 │ sound 3 │ 12 │ 12 │ sound 4 │ 12 │ ...
    host                   text      text        ▲   text        ▲    text       ▲   text      ▲

A step is a token of text and a code of speech. All work stands in one queue, in the order in which the device does it,
and the host reads results in that order too. A block of steps is always under way behind the one that it waits for,
except at the beginning: nothing stands between the first three sounds of a row and the codes that they need.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from omni_jax.sampling import programs
from omni_jax.sampling import speech_programs as sp
from omni_jax.sampling.guards import is_looping
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.rows import Event, TextFollower, check_finite, stop_table, warper_options
from omni_jax.sampling.sound import SoundStreams
from omni_jax.sampling.speech_options import AudioChunk, CodeEvent, End, SpeechOptions
from omni_jax.sampling.voices import choose_speaker
from omni_jax.sampling.watch import Watch

if TYPE_CHECKING:
    from omni_jax.sampling.prompting import Listener, Prompted
    from omni_jax.sampling.speech import Speech


FIRST_STEPS = 4  # of an answer in text only, before the host looks
SOUNDS_AT_ONCE = 3  # pieces of a row's sound that are made as soon as their codes are there: 40 ms and two of 240 ms


class CodeFollower:
    """Turns one row's codes into events, up to its end, wherever blocks begin and end."""

    def __init__(self, row: int, stops: Sequence[int], loop_guard: int | None, limit: int = 1):
        """`limit`: most codes of the row; with none at all it says nothing for that reason."""
        self.row, self.codes, self.reason = row, [], None
        self._stops, self._guard, self._limit = stops, loop_guard, limit

    def take(self, codes: np.ndarray, done: bool) -> CodeEvent | None:
        """What a block brought; nothing after the end."""
        if self.reason is not None:
            return None
        before, own = len(self.codes), [int(code) for code in codes if code >= 0]
        for code in own:
            if code in self._stops:
                self.reason = "stop"
                break
            self.codes.append(code)
            if self._guard is not None and is_looping(self.codes, self._guard):
                self.reason = "loop"
                break
        if done and self.reason is None:
            self.reason = "silent" if not self.codes and self._limit > 0 else "length"
        return CodeEvent(self.row, tuple(self.codes[before:]), self.reason)


def take_codes(followers: Sequence[CodeFollower], codes: np.ndarray, done: np.ndarray) -> list[CodeEvent]:
    """What a block brought for the rows that had not ended."""
    events = [one.take(codes[one.row], bool(done[one.row])) for one in followers]
    return [event for event in events if event is not None]


def halt_loops(state: sp.TalkerState, events: Sequence[CodeEvent]) -> sp.TalkerState:
    """The Talker's state without those rows that have just been found to go round in circles."""
    looping = [event.row for event in events if event.finish_reason == "loop"]
    if not looping:
        return state
    return sp.halt(state, jnp.asarray(np.isin(np.arange(state.done.shape[0]), looping)))


@dataclass
class Work:
    """Something that the device was asked to do, and where its results will be."""

    kind: str  # "steps" or "sound"
    results: Any
    steps: int = 0


class Answering:
    """One batch of answers in the making: `events` runs it to its end.

    `thinker.cache` and `talker.cache` may be kept when it is over, or when nobody wants to hear the rest.
    """

    def __init__(
        self,
        model: "Speech | Listener",
        prompted: "Prompted",
        options: Sequence[SamplingOptions],
        limit: Int[np.ndarray, "B"],
        speech: Sequence[SpeechOptions] = (),
        code_limit: Int[np.ndarray, "B"] | None = None,
        *,
        watch: Watch | None = None,
    ):
        """Asks the device for each row's first steps.

        Args:
            prompted: prompts in the caches; used up. Without a Talker's cache the answers are text only.
            options: one each for the first rows; further rows are padding.
            limit: most tokens of each row, which fit the cache; 0 for padding.
            speech, code_limit: likewise for speech, where there is any.
            watch: is told of all work.
        """
        self.model, self.options = model, list(speech)
        self._watch, self._block = watch, model.block
        self.text = [TextFollower(row, model.sampler.tokenizer, model.sampler.stop_ids) for row in range(len(options))]
        self.talker = self.reply = self._streams = None
        self.samples_per_code = 0
        self._heard = [0] * len(options)  # samples that were handed out
        self._open = set(range(len(options)))  # rows without their last event
        self._queue: deque[Work] = deque()
        self._steps_asked = 0
        self._sounds = [0] * len(options)  # pieces that were asked for
        if prompted.talker is None:
            self.speech: list[CodeFollower] = []
            self._begin_text(prompted, options, limit)
        else:
            limits = [int(most) for most in code_limit]
            self.speech = [CodeFollower(row, model.stops, o.loop_guard, limits[row]) for row, o in enumerate(speech)]
            self._begin_both(prompted, options, limit, code_limit)

    def _first_token(self, prompted, options, limit):
        sampler, batch = self.model.sampler, len(prompted.lengths)
        thinker, first, *flags = programs.first_token(
            sampler.params["thinker"],
            prompted.thinker.last_hidden,
            prompted.thinker.seen,
            jnp.asarray(prompted.lengths),
            jnp.asarray(prompted.next_position),
            warper_options(options, batch),
            jnp.asarray(limit),
            stop_table(sampler.stop_ids, batch),
            **self.model.static("thinker"),
        )
        return thinker.replace(cache=prompted.thinker.cache), first, *flags

    def _begin_text(self, prompted, options, limit) -> None:
        self.thinker, first, done, broken = self._first_token(prompted, options, limit)
        # as if after most of a block: a short one follows, and the first words come soon
        self._ask(dict(tokens=first[:, None], text_done=done, text_broken=broken), max(self._block - FIRST_STEPS, 0))

    def _begin_both(self, prompted, options, limit, code_limit) -> None:
        """First token, second token, first code: from here on every step makes one of each."""
        model, thinker_params = self.model, self.model.sampler.params["thinker"]
        self.speakers = [choose_speaker(model.speakers, option.voice) for option in self.options]
        seeds, flows = [option.codes.seed for option in self.options], [option.flow for option in self.options]
        self._streams = SoundStreams(model.token2wav, self.speakers, seeds, flows)
        self.samples_per_code = model.token2wav.samples_per_code
        thinker, first, *_ = self._first_token(prompted, options, limit)
        self.thinker, second, vector, silent, done, broken = sp.second_token(
            thinker_params, thinker, **model.static("thinker")
        )
        results = dict(tokens=jnp.stack([first, second], axis=1), text_done=done, text_broken=broken)
        self.talker, self.reply, code, done, broken = self.model.begin(
            prompted, vector, silent, self.options, code_limit, complete=done
        )
        results |= dict(codes=code[:, None], done=done, broken=broken)
        self._ask(results, steps=1)

    @property
    def speaks(self) -> bool:
        return self.talker is not None

    def heard(self, row: int) -> int:
        """Samples of a row that were handed out."""
        return self._heard[row]

    def events(self) -> Iterator[Event | AudioChunk | End]:
        """Everything that happens, as it becomes known. Ends after every row's `End`."""
        while self._open:
            self._keep_busy()
            work = self._queue.popleft()
            yield from self._take_steps(work) if work.kind == "steps" else self._take_sound(work)
            yield from self._ends()

    def _keep_busy(self) -> None:
        """Two blocks of steps in the queue, while there is anything to say."""
        block = self._block
        while True:
            text, speech = any(not one.ended for one in self.text), any(one.reason is None for one in self.speech)
            waiting = sum(work.kind == "steps" for work in self._queue)
            # nothing shall stand between the first sounds of a row and their codes
            enough = 1 if self._steps_asked >= 2 * block and any(map(self._is_beginning, self.speech)) else 2
            if waiting >= enough or not (text or speech):
                return
            steps = block - self._steps_asked % block
            self._ask(self._run(text, speech, steps), steps)

    def _is_beginning(self, speech: CodeFollower) -> bool:
        """Whether a row still waits for sound that it can be heard by."""
        streamed = self.options[speech.row].decoder == "block"
        return streamed and speech.reason is None and self._sounds[speech.row] < SOUNDS_AT_ONCE

    def _ask(self, results: dict[str, jax.Array], steps: int) -> None:
        self._steps_asked += steps
        self._queue.append(Work("steps", results, steps))
        if self._watch is not None:
            kinds = {"tokens": "text", "codes": "codes"}
            seen = [name for name in kinds if name in results]
            counts = [results[name] for name in seen]
            stages = tuple(kinds[name] for name in seen)
            self._watch.expect(stages, counts, lambda: tuple(int((np.asarray(ids) >= 0).sum()) for ids in counts))

    def _run(self, text: bool, speech: bool, steps: int) -> dict[str, jax.Array]:
        """The program for what is still to be said."""
        model, thinker_params, steps = self.model, self.model.sampler.params["thinker"], jnp.int32(steps)
        common = dict(dtype=model.sampler.dtype, unrolled=model.sampler.unrolled, block=self._block)
        configs = dict(thinker_config=model.thinker_config, talker_config=model.talker_config)
        if text and speech:
            self.thinker, self.talker, self.reply, results = sp.converse(
                thinker_params, model.params, self.thinker, self.talker, self.reply, steps, **configs, **common
            )
            return results
        if text:
            self.thinker, tokens, done, broken = programs.decode(
                thinker_params, self.thinker, steps, config=model.thinker_config, **common
            )
            return dict(tokens=tokens, text_done=done, text_broken=broken)
        self.talker, codes, done, broken = sp.talk(
            model.params, self.talker, self.reply, steps, config=model.talker_config, **common
        )
        return dict(codes=codes, done=done, broken=broken)

    def _take_steps(self, work: Work) -> Iterator[Event | AudioChunk]:
        results = {name: np.asarray(value) for name, value in work.results.items()}
        if "tokens" in results:
            check_finite(results["text_broken"], "text")
            for one in self.text:
                yield from one.take(results["tokens"][one.row], bool(results["text_done"][one.row]))
        if "codes" in results:
            check_finite(results["broken"], "speech")
            # the loop ends early where a row runs out of text: keep the next blocks in step with those of the DiT
            self._steps_asked -= work.steps - int((results["codes"] >= 0).sum(axis=1).max(initial=0))
            yield from self._take_codes(results["codes"], results["done"])

    def _take_codes(self, codes: np.ndarray, done: np.ndarray) -> Iterator[AudioChunk]:
        events = take_codes(self.speech, codes, done)
        self.talker = halt_loops(self.talker, events)
        for event in events:
            if self.options[event.row].decoder == "block":
                self._streams.push(event.row, event.codes, last=event.finish_reason is not None)
        for sound in self._streams.dispatch():
            self._sounds[sound.row] += 1
            self._queue.append(Work("sound", sound))
            if self._watch is not None and sound.mel is not None:
                self._watch.expect(("dit",), sound.mel, lambda sound=sound: (sound.mel_frames,))
                self._watch.expect(("bigvgan",), sound.samples, lambda sound=sound: (sound.count,))
        for event in events:
            row, option = event.row, self.options[event.row]
            if option.decoder == "full" and event.finish_reason is not None:
                seconds: dict[str, float] = {}
                codes = self.speech[row].codes
                waveform = self.model.token2wav.full(
                    codes, self.speakers[row], seed=option.codes.seed, options=option.flow, seconds=seconds
                )
                if self._watch is not None:
                    self._watch.took({"dit": 2 * len(codes), "bigvgan": len(waveform)}, seconds)
                yield from self._hand_out(row, waveform, 0)

    def _take_sound(self, work: Work) -> Iterator[AudioChunk]:
        yield from self._hand_out(work.results.row, work.results.wait(), work.results.start)

    def _hand_out(self, row: int, waveform: np.ndarray, start: int) -> Iterator[AudioChunk]:
        self._heard[row] += len(waveform)
        if len(waveform):
            yield AudioChunk(row, waveform, start)

    def _ends(self) -> Iterator[End]:
        """Rows of which all text and all sound has been handed out."""
        for row in sorted(self._open):
            text, reason, codes = self.text[row], "none", []
            if self.speech:
                reason, codes = self.speech[row].reason, self.speech[row].codes
            if text.ended and reason and self._heard[row] == len(codes) * self.samples_per_code:
                self._open.discard(row)
                yield End(row, text.reason, reason, tuple(text.token_ids), tuple(codes))
