"""Several spoken answers to each text: read, drawn, guarded, and judged by what a recogniser hears."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.example_context import ExampleContext
from input_pipeline.examples import Sample
from input_pipeline.jsonl import JsonLines
from input_pipeline.request import Request
from input_pipeline.training_batch import Example, RowShape
from omni_jax.cli.prefer_scorers import RATE, Scorer
from omni_jax.errors import DataError
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.speech_options import SpeechOptions
from omni_jax.training.pauses import pause_error
from omni_jax.training.preferences import SpokenSample, guard_samples
from omni_jax.training.reference import UNLIMITED
from omni_jax.training.transcripts import Language, language_of, normal_words, word_error_rate

# How the errors of kept answers were counted. Whoever counts otherwise must not go on with them: give it another text.
WORD_ERRORS = "each digit is a word"


@dataclass(frozen=True, eq=False)
class Prompt:
    """A conversation whose last message, of an assistant, is to be said.

    voice: who says it. example: with a stand-in for the speech. answered: False while the words are a stand-in too.
    """

    index: int
    name: str
    messages: list[dict[str, Any]]
    text: str
    language: Language
    voice: str
    example: Example
    answered: bool = True

    @property
    def request(self) -> Request:
        """All before the words, as training sees it."""
        example, stop = self.example, self.example.reply[0]
        positions = example.position_ids[:, :stop]
        return Request(
            token_ids=example.token_ids[:stop],
            position_ids=positions,
            next_position=int(positions.max()) + 1,
            audio=example.audio,
            vision=example.vision,
            seconds_per_grid=(None,) * len(example.vision),
            audio_row=example.audio_row[:stop],
            vision_row=example.vision_row[:stop],
        )

    @property
    def reply(self) -> np.ndarray:
        """The words' tokens, and the one that ends the turn."""
        start, stop = self.example.reply
        return self.example.token_ids[start : stop + 1]


class Prompts:
    """The conversations of a file, read one at a time."""

    def __init__(self, file: Path, context: ExampleContext, voice: str, language: Language | None, max_tokens: int):
        """
        Args:
            voice: who speaks where a line names nobody.

        Raises:
            DataError: the file is missing or empty, or a line names a voice that the checkpoint does not have.
        """
        self._lines, self._context, self._language = JsonLines(file), context, language
        self.digest = self._lines.digest
        self._voices = [self._voice(index, voice) for index in range(len(self))]
        self._limit = RowShape(max_tokens, UNLIMITED, UNLIMITED, UNLIMITED, UNLIMITED)

    def __len__(self) -> int:
        return len(self._lines)

    def name(self, index: int) -> str:
        return self._lines.where(index)

    def _voice(self, index: int, default: str) -> str:
        try:
            line = self._lines.value(index)
        except DataError:  # `read` says so in its turn
            return default
        voice = line.get("voice") if isinstance(line, Mapping) else None
        if voice is None:
            return default
        if not isinstance(voice, str) or voice not in self._context.voices:
            raise DataError(
                f"{self.name(index)}: there is no voice {voice!r}. Voices of this checkpoint: "
                f"{', '.join(self._context.voices)}. Name one of them, or leave the key out for that of --voice."
            )
        return voice

    def read(self, index: int) -> list[dict[str, Any]]:
        """The messages, system turn included.

        Raises:
            DataError: malformed.
        """
        try:
            conversation = self._lines.read(index)
        except DataError as error:
            raise DataError(f"{self.name(index)}: {error}", error.kind) from error
        if "messages" not in conversation:
            raise DataError(f"{self.name(index)}: a plain text is nobody's answer. Write 'messages'.")
        messages = conversation["messages"]
        if messages[0]["role"] != "system" and self._context.default_system is not None:
            # written out, so that training sees the same whatever its own default is
            messages = [{"role": "system", "content": self._context.default_system}, *messages]
        return messages

    def prompt(self, index: int, messages: Sequence[Mapping[str, Any]]) -> Prompt:
        """The conversation with what is to be said, or with a word that stands in for it.

        Raises:
            DataError: it cannot be learned from: malformed, too long, media that cannot be read, or no words.
        """
        name, voice = self.name(index), self._voices[index]
        answered = messages[-1]["role"] == "assistant"
        *before, last = messages if answered else [*messages, {"role": "assistant", "content": "word"}]
        content = last["content"]
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        items = [item for item in items if item.get("type") != "speech"]
        text = "".join(item.get("text") or "" for item in items)
        language = self._language or language_of(text)
        if not normal_words(text, language):
            raise DataError(f"{name}: the answer has no words that could be said.", "empty mask")
        spoken = [*before, {**last, "content": items}]
        stand_in = {"type": "speech", "voice": voice, "codes": [0]}
        sample = Sample({"messages": with_speech(spoken, stand_in)}, self._context, name=name)
        pieces, refused = sample.pieces(self._limit)
        if refused or len(pieces) != 1:
            reason = refused[0].reason if refused else f"takes more than {self._limit.tokens} tokens (--max-tokens)."
            raise DataError(f"{name}: {reason}", refused[0].kind if refused else "too long")
        return Prompt(index, name, spoken, text, language, voice, sample.example(0, len(sample)), answered)


def with_speech(messages: Sequence[Mapping[str, Any]], item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Messages whose last, a list of items, has one more."""
    *before, last = messages
    return [*before, {**last, "content": [*last["content"], item]}]


@dataclass(frozen=True, eq=False)
class Drawer:
    """Draws and judges answers.

    speech: a `Speech`. samples: answers to each text. batch: rows at a time. seed: other numbers give other answers.
    options: of codes and sound; each answer has a seed of its own, and its prompt's voice.
    """

    speech: Any
    scorer: Scorer
    samples: int
    batch: int
    seed: int
    options: SpeechOptions
    text_options: SamplingOptions
    num_codes: int

    def replies(self, prompts: Sequence[Prompt]) -> list[str]:
        """Greedy answers of the Thinker to conversations; what stands there as their last message is not looked at."""
        answers = []
        for group in _groups(prompts, self.batch):
            answers += self.speech.sampler.generate([each.request for each in group], self.text_options)
        return [answer.text.strip() for answer in answers]

    def answers(self, prompts: Sequence[Prompt]) -> list[list[SpokenSample]]:
        """`samples` answers to each, judged. They do not depend on which prompts are drawn together."""
        work = [(prompt, _seed(self.seed, prompt.index, k)) for prompt in prompts for k in range(self.samples)]
        drawn = [sample for group in _groups(work, self.batch) for sample in self._drawn(group)]
        by_prompt = list(_groups(drawn, self.samples))
        guarded = [
            guard_samples(samples, len(prompt.reply) - 1, self.num_codes)
            for prompt, samples in zip(prompts, by_prompt, strict=True)
        ]
        judged = []
        for group in _groups([each for samples in guarded for each in samples], self.batch):
            at = len(judged)
            owners = [prompts[(at + i) // self.samples] for i in range(len(group))]
            judged += self._judged(owners, group)
        return list(_groups(judged, self.samples))

    def _drawn(self, work: Sequence[tuple[Prompt, int]]) -> list[SpokenSample]:
        codes: list[list[int]] = [[] for _ in work]
        reasons = [""] * len(work)
        requests, replies = [prompt.request for prompt, _ in work], [prompt.reply for prompt, _ in work]
        options = [self._options(prompt, seed) for prompt, seed in work]
        for event in self.speech.stream_codes(requests, replies, options):
            codes[event.row] += event.codes
            reasons[event.row] = event.finish_reason or reasons[event.row]
        return [
            SpokenSample(seed, tuple(own), reason) for (_, seed), own, reason in zip(work, codes, reasons, strict=True)
        ]

    def _judged(self, prompts: Sequence[Prompt], samples: Sequence[SpokenSample]) -> list[SpokenSample]:
        """What a guard stopped is not even made to sound."""
        free = [i for i, sample in enumerate(samples) if sample.guard is None]
        options = [self._options(prompts[i], samples[i].seed) for i in free]
        waveforms = self.speech.synthesise([samples[i].codes for i in free], options)
        heard = self.scorer(waveforms, [prompts[i].language for i in free]) if free else []
        judged = list(samples)
        for i, waveform, own in zip(free, waveforms, heard, strict=True):
            prompt = prompts[i]
            judged[i] = replace(
                samples[i],
                transcript=own.text,
                wer=word_error_rate(prompt.text, own.text, prompt.language, digits_apart=True),
                pause=pause_error(prompt.text, waveform, RATE, own.words),
            )
        return judged

    def _options(self, prompt: Prompt, seed: int) -> SpeechOptions:
        return replace(self.options, voice=prompt.voice, codes=replace(self.options.codes, seed=seed))


def _seed(seed: int, index: int, number: int) -> int:
    """Of answer `number` to text `index`: whoever draws it, and whenever."""
    digest = hashlib.sha256(f"{seed} {index} {number}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def _groups(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))
