"""Live sessions: sound and pictures arrive while the person still talks, and the answer is heard while it is made.

    session = LiveSession(speech)
    for samples in microphone:            # pieces of any length: each complete block of 2 s is read at once
        session.audio(samples)
    for event in session.respond():       # only what came after the last block is still to be read
        ...                               # text, sound, end; `session.interrupt()` here stops it
    session.audio(...)                    # the next turn; the caches remember all that was said

A turn in pieces is the turn as a whole, but for one thing: features of sound are clamped below the loudest point so
far, not of the whole clip, which nobody knows yet; see `input_pipeline/live_mel.py`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from input_pipeline.live_turn import LiveOptions, LiveTurn
from input_pipeline.media import ImageSource
from input_pipeline.packing import BUCKETS, bucket, pack_batch
from input_pipeline.request import Request
from omni_jax.errors import CapacityError, PromptError
from omni_jax.sampling.generate import Sampler
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.pipeline import Answering
from omni_jax.sampling.programs import PrefillState
from omni_jax.sampling.prompting import Listener, extend, nothing_yet
from omni_jax.sampling.rows import Event
from omni_jax.sampling.speech import Speech
from omni_jax.sampling.speech_options import CODES_PER_SECOND, SPEECH, AudioChunk, End, SpeechOptions
from omni_jax.sampling.voices import choose_speaker

_CODES_PER_TOKEN = 13  # of ordinary speech, about 4 tokens a second; until the session has heard its own
_LISTENING = LiveOptions()
_GREEDY = SamplingOptions()


class LiveSession:
    """A conversation with one person. Turns are made of `text`, `image`, `audio` and `frame`, and end with `respond`.

    Anything that is wrong with a piece is an error before it is heard, and the session goes on. A conversation that
    outgrows its caches or the model's positions ends with a CapacityError. All calls come from one thread.
    """

    def __init__(
        self,
        model: Speech | Sampler,
        live: LiveOptions = _LISTENING,
        sampling: SamplingOptions = _GREEDY,
        speech: SpeechOptions = SPEECH,
        *,
        slots: int = 8192,
        chunk: int = 64,
    ):
        """Makes empty caches and reads the system prompt.

        Args:
            model: a `Sampler` answers in text only.
            live: what may arrive, and how.
            sampling, speech: how answers are made.
            slots: tokens that the conversation may have; a bucket of the caches holds them.
            chunk: prompt tokens that one call takes; 64 hold the 50 tokens of a block.

        Raises:
            PromptError: an unknown voice.
            CapacityError: more slots than the largest bucket.
        """
        speaks = isinstance(model, Speech)
        if speaks:
            choose_speaker(model.speakers, speech.voice)
        self._model = model if speaks else Listener(model)
        self._live, self._sampling, self._speech, self._chunk = live, sampling, speech, chunk
        slots = bucket(slots, BUCKETS.cache, "slots of the session's cache")
        codes = None
        if speaks:  # the codes of one turn come after all that was said; the next turn writes over them
            codes = bucket(min(slots + 2 + speech.codes.max_new_tokens, BUCKETS.cache[-1]), BUCKETS.cache, "slots")
        self._prompted = nothing_yet(self._model, 1, slots, codes)
        self._turn: LiveTurn | None = self._new_turn()
        self._answering: Answering | None = None
        self._events: Iterator | None = None
        self._before: tuple | None = None  # prompt and ids seen, as they were before the answer
        self._codes_per_token: float = _CODES_PER_TOKEN
        self._closed = False
        # of a turn that follows an answer: what it begins with, beside the answer's words
        self._opening = sum(len(piece.token_ids) for piece in self._new_turn([]).begin())
        self._read(self._turn.begin)

    @property
    def tokens(self) -> int:
        """Tokens of the conversation that are in the caches."""
        self._check_open()
        return int(self._prompted.lengths[0])

    @property
    def mel_deviation(self) -> float:
        """Bound on the difference between features of this turn's sound and offline ones; 0 where they are equal."""
        return self._listening().mel_deviation

    def text(self, text: str) -> None:
        """Typed text; it follows the sound or the frames of this turn. Errors as for `LiveTurn.text`."""
        self._listening().text(text)

    def image(self, source: ImageSource) -> None:
        """A still picture, before the sound of this turn. Errors as for `LiveTurn.image`."""
        turn = self._listening()
        self._read(lambda: turn.image(source))

    def audio(self, samples: np.ndarray, rate: int | float | None = None) -> None:
        """A piece of sound, float32 [W] of any length; `rate` (Hz), if given, is checked against the session's.

        Raises:
            MediaError: NaN or infinity, another type, shape or rate, or too much sound for one turn.
            PromptError: not listening, or not for sound.
            CapacityError: the caches are full; the session has ended.
        """
        turn = self._listening()
        self._read(lambda: turn.push_audio(samples, rate))

    def frame(self, pixels: np.ndarray, time: float) -> None:
        """A frame, uint8 [H, W, 3], `time` seconds after the start of the turn. Errors as for `audio`."""
        turn = self._listening()
        self._read(lambda: turn.push_frame(pixels, time))

    def respond(self) -> Iterator[Event | AudioChunk | End]:
        """Ends the turn and answers, in events as those of `Speech.stream`. The next turn begins after the last event.

        An answer ends where the caches do, with the reason "length"; a session without room for the next turn ends too.

        Raises:
            MediaError: the turn's sound is too short for a single token; it can go on.
            PromptError: an answer is under way.
            CapacityError: the caches have no room left; the session has ended.
            NumericsError, while events come: the model gave NaN or infinity; the session has ended.
        """
        self._read(self._listening().finish)
        prompted = self._prompted
        length, room = int(prompted.lengths[0]), prompted.thinker.cache.length
        # the next turn begins with the answer's words, in whole chunks
        limit = min(self._sampling.max_new_tokens, (room - length) // self._chunk * self._chunk - self._opening)
        if limit < 1:
            self.close()
            raise CapacityError(
                f"The conversation has {length} tokens; its caches of {room} have no room for an answer. "
                "Begin a new session, with more slots."
            )
        codes = 0
        if prompted.talker is not None:
            codes = max(min(self._model.most_codes(self._speech), prompted.talker.length - length - 2), 0)
        # the answer uses up what it is made from, and the next turn needs it
        self._before, self._turn = (prompted, jnp.copy(prompted.thinker.seen)), None
        limit, codes = np.array([limit], np.int32), np.array([codes], np.int32)
        try:
            self._answering = Answering(self._model, prompted, [self._sampling], limit, [self._speech], codes)
        except BaseException:  # the caches may be gone
            self.close()
            raise
        self._events = self._follow(self._answering)
        return self._events

    def interrupt(self, played: float | None = None) -> End:
        """The person starts to talk: stops the answer, keeps what was said of it, and listens again.

        What was said is estimated, since the Talker tells no alignment: tokens of the answer in proportion to the codes
        that were heard, at the pace of the session's earlier answers. An answer in text is kept as far as it was handed
        out.

        Args:
            played: seconds of sound that the person has heard, 0 or more; all that was handed out by default.

        Returns:
            The end of the answer; its token_ids are those that the conversation keeps.

        Raises:
            PromptError: there is no answer to interrupt, or `played` is no such number.
        """
        self._check_open()
        if played is not None and not (math.isfinite(played) and played >= 0):
            raise PromptError(f"played = {played!r} is out of range. Give seconds, 0 or more.")
        if self._answering is None:
            raise PromptError("There is no answer to interrupt. Call it while the events of `respond` come.")
        text, codes = self._answering.text[0], []
        handed_out = self._answering.heard(0) // max(self._answering.samples_per_code, 1)
        heard = handed_out if played is None else min(handed_out, int(played * CODES_PER_SECOND + 1e-6))
        kept = self._spoken(text.token_ids)
        for speech in self._answering.speech:
            codes, whole = speech.codes[:heard], speech.reason and heard >= len(speech.codes)
            kept = kept if whole else kept[: math.ceil(heard / self._codes_per_token)]
        end = End(0, text.reason or "interrupted", "interrupted", tuple(kept), tuple(codes))
        self._events.close()
        self._settle(kept)
        return end

    def close(self) -> None:
        """Frees the caches; the session cannot be used again, and an answer under way has no more events."""
        events, self._events = self._events, None
        if events is not None and not events.gi_running:
            events.close()
        self._closed, self._turn, self._answering, self._prompted, self._before = True, None, None, None, None

    def __enter__(self) -> "LiveSession":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _follow(self, answering: Answering) -> Iterator[Event | AudioChunk | End]:
        try:
            for event in answering.events():
                if isinstance(event, End):
                    words = self._spoken(event.token_ids)
                    if answering.speaks and event.speech_reason == "stop" and words and event.codes:
                        self._codes_per_token = len(event.codes) / len(words)
                    self._settle(words)
                yield event
        except Exception:
            self.close()
            raise

    def _spoken(self, token_ids: Sequence[int]) -> list[int]:
        return [token for token in token_ids if token not in self._model.sampler.stop_ids]

    def _settle(self, words: list[int]) -> None:
        """Goes back to where the answer began. The next turn starts with its words, as part of the prompt now."""
        prompted, seen = self._before
        thinker, talker = self._answering.thinker, self._answering.talker
        state = PrefillState(thinker.cache, prompted.thinker.last_hidden, seen)
        cache = None if talker is None else talker.cache
        self._prompted = replace(prompted, thinker=state, talker=cache)
        self._answering = self._before = None
        self._turn = self._new_turn(words, int(prompted.next_position[0]))
        with suppress(CapacityError):  # the session has ended then, but its last answer has not failed
            self._read(self._turn.begin)

    def _new_turn(self, answer: Sequence[int] | None = None, position: int = 0) -> LiveTurn:
        sampler = self._model.sampler
        return LiveTurn(
            sampler.tokenizer, sampler.config, sampler.processor, self._live, answer_rest=answer, position=position
        )

    def _read(self, ask: Callable[[], Sequence[Request]]) -> None:
        """What the turn gives goes into the caches. The host does not wait for it."""
        try:
            pieces = ask()
        except CapacityError:
            self.close()
            raise
        for piece in pieces:
            if not len(piece.token_ids):
                continue
            inputs = pack_batch([piece], self._model.sampler.config, chunk=self._chunk)
            try:
                self._prompted = extend(self._model, self._prompted, inputs, chunk=self._chunk)
            except BaseException:  # what was read before is whole, but the turn is not
                self.close()
                raise

    def _listening(self) -> LiveTurn:
        self._check_open()
        if self._turn is None:
            raise PromptError("The session is answering. Hear its events to the end, or call `interrupt` first.")
        return self._turn

    def _check_open(self) -> None:
        if self._closed:
            raise PromptError("This session has ended. Begin a new one.")
