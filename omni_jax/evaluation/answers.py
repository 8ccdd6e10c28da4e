"""Answers of a model to the lines of a task, batch by batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from input_pipeline.request import Request
from omni_jax.errors import CapacityError, DataError, MediaError, PromptError
from omni_jax.evaluation.ablation import without
from omni_jax.evaluation.data import Item, TaskData
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.speech_options import SPEECH, SpeechOptions

_VOICE_RATE = 16_000  # of recordings that a voice is taken from


class Model(Protocol):
    """What answers: `prepare` makes a request of messages; weights are loaded when one of the others is looked at."""

    config: Any
    processor: Any
    tokenizer: Any
    sampler: Any
    speech: Any

    def prepare(self, messages: Sequence[Any]) -> Request: ...


@dataclass
class Answered:
    """One answer. seen: (width, height) of its first picture as the model saw it. waveform: float32 [W], 24 kHz."""

    item: Item
    text: str
    finish_reason: str
    prompt_tokens: int
    seen: tuple[int, int] | None = None
    waveform: np.ndarray | None = None
    codes: int | None = None
    speech_reason: str | None = None


@dataclass(frozen=True, eq=False)
class Asker:
    """Asks a model the lines of a task.

    speech: options of spoken answers; the voice is that of the line. From its seed, as from that of the task's options,
        each line gets one of its own.
    """

    model: Model
    data: TaskData
    batch: int = 8
    speech: SpeechOptions = field(default_factory=lambda: SPEECH)

    def answers(self, items: Sequence[Item]) -> Iterator[list[Answered]]:
        """Batches of answers, in order; they do not depend on how lines are batched.

        Raises:
            DataError: the media of a line cannot be read, or its prompt is too long; the line is named.
        """
        for start in range(0, len(items), self.batch):
            group = items[start : start + self.batch]
            yield self._answered(group, [self._request(item) for item in group])

    def _request(self, item: Item) -> Request:
        try:
            request = self.model.prepare(item.messages)
        except (CapacityError, MediaError, PromptError) as error:
            raise DataError(f"{item.where}: {error}") from error
        ablation = self.data.task.ablate
        return request if ablation is None else without(request, ablation, seed=item.index)

    def _answered(self, items: Sequence[Item], requests: Sequence[Request]) -> list[Answered]:
        try:
            return self._asked(items, requests)
        except CapacityError as error:
            if len(items) == 1:
                raise DataError(f"{items[0].where}: {error}") from error
        half = len(items) // 2  # together they are too many for the largest bucket
        return [*self._answered(items[:half], requests[:half]), *self._answered(items[half:], requests[half:])]

    def _asked(self, items: Sequence[Item], requests: Sequence[Request]) -> list[Answered]:
        if self.data.task.speak is None:
            written = self.model.sampler.generate(requests, self._options(items))
            found = [
                Answered(item, answer.text, answer.finish_reason, answer.prompt_tokens)
                for item, answer in zip(items, written)
            ]
        else:
            found = self._spoken(items, requests)
        side = self.model.processor.patch_size
        for answer, request in zip(found, requests):
            if request.vision:
                _, rows, columns = request.vision[0].grid
                answer.seen = (columns * side, rows * side)
        return found

    def _spoken(self, items: Sequence[Item], requests: Sequence[Request]) -> list[Answered]:
        task, speech, cloned = self.data.task, self.model.speech, []
        options = []
        for item in items:
            voice = task.voice(item.line)
            if task.clone is not None:
                voice = self._cloned(item, voice)
                cloned.append(voice)
            options.append(replace(self.speech, voice=voice, codes=of_line(self.speech.codes, item)))
        try:
            if task.speak == "answer":
                return [
                    Answered(
                        item,
                        answer.text,
                        answer.finish_reason,
                        answer.prompt_tokens,
                        waveform=answer.waveform,
                        codes=len(answer.codes),
                        speech_reason=answer.speech_reason,
                    )
                    for item, answer in zip(items, speech.generate(requests, self._options(items), options))
                ]
            texts = [str(task.text_to_speak(item.line)) for item in items]
            end = self.model.tokenizer.token_id("<|im_end|>")
            replies = [[*self.model.tokenizer.encode(text), end] for text in texts]
            return [
                Answered(
                    item,
                    text,
                    "given",
                    len(request.token_ids),
                    waveform=said.waveform,
                    codes=len(said.codes),
                    speech_reason=said.finish_reason,
                )
                for item, text, request, said in zip(items, texts, requests, speech.speak(requests, replies, options))
            ]
        finally:
            for name in cloned:
                speech.speakers.pop(name, None)

    def _options(self, items: Sequence[Item]) -> list[SamplingOptions]:
        return [of_line(self.data.task.options, item) for item in items]

    def _cloned(self, item: Item, voice: str | None) -> str:
        """Adds a voice with the timbre of a recording, and names it."""
        from input_pipeline.media import load_audio
        from omni_jax.sampling.voices import choose_speaker, voice_from_recording

        path, speech = self.data.path(item.line[self.data.task.clone]), self.model.speech
        try:
            base, sound = choose_speaker(speech.speakers, voice), load_audio(path, sampling_rate=_VOICE_RATE)
            name = f"as in {item.where}"
            speech.speakers[name] = voice_from_recording(base, sound, name=path)
        except (MediaError, PromptError) as error:
            raise DataError(f"{item.where}: {error}") from error
        return name


def of_line(options: SamplingOptions, item: Item) -> SamplingOptions:
    """Options with a seed of the line's own, made of theirs and its number.

    With one seed for all, lines would share their noise step by step, and intervals over lines would be too narrow. It
    does not matter which lines are asked beside it, so a stopped run goes on as it was, and two runs are paired.
    """
    own = np.random.SeedSequence([options.seed, item.index]).generate_state(1)[0]
    return replace(options, seed=int(own) >> 1)  # seeds are below 2^31
