"""What is never learnt, as test lines: a prompt, the true answer, and the words of it that decide.

{"task": "sees_digit", "messages": [...], "reference": "The number is four.", "answer": "four", ...}

`messages` ends with the user. In sets of hearing "reference" is the transcript. Other keys tell lines apart: "speaker",
"kind" of question, "voice" that should answer, digits "seen" and "heard" in a film; "recording" is the reference, said
by the voice that answers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from examples.omni_tiny import chats, media, packages
from examples.omni_tiny.chance import generator, pick
from examples.omni_tiny.media import HEARING_RATE, TALKER_RATE, Medium, said
from examples.omni_tiny.pictures import STYLES
from examples.omni_tiny.questions import answer, question
from examples.omni_tiny.sentences import DIGITS, digit_string, hard_text, normal, reading_text, texts
from examples.omni_tiny.speech import speech_path
from examples.omni_tiny.voices import HELD_OUT, TALKER

Line = dict[str, Any]
_ANSWERS = next(iter(TALKER))  # the voice of an answer, where none is asked for


@dataclass
class HeldOut:
    """All test sets of one seed. The media that they need are what the properties name first."""

    seed: int
    labels: np.ndarray
    prompts: bool = True
    """Whether Asterisk's recordings are there."""

    @cached_property
    def unseen(self) -> list[Medium]:
        """Forty clips of each of six speakers, clean: half are digits, four to six of them."""
        found = []
        for name in HELD_OUT:
            digits = texts(lambda r: digit_string(r, 4, 6), self.seed, f"unseen digits {name}", test=True)
            others = texts(reading_text, self.seed, f"unseen texts {name}", test=True)
            for number in range(40):
                found.append(self._spoken(name, next(digits if number % 2 else others)))
        return found

    @cached_property
    def questions(self) -> dict[str, list[Medium]]:
        """Each wording of each question, asked by two of the six speakers."""
        found = {}
        for number, text in enumerate(media.all_questions()):
            names = (HELD_OUT[number % 6], HELD_OUT[(number + 1 + number // 6 % 5) % 6])
            found[text] = [self._spoken(name, text) for name in names]
        return found

    @cached_property
    def digits(self) -> list[Medium]:
        """Ten digits of each of the six speakers."""
        return [self._spoken(name, f"{word.capitalize()}.", heard=word) for name in HELD_OUT for word in DIGITS]

    @cached_property
    def human_digits(self) -> list[Medium]:
        """The official test takes, one digit each."""
        return self._human_takes(packages.TEST_TAKES)

    @cached_property
    def human_everything(self) -> list[Medium]:
        """All takes: none was heard by a model that leaves the person out."""
        return self._human_takes(packages.TAKES)

    @cached_property
    def human_strings(self) -> list[Medium]:
        """Twenty-five strings of four digits of each person, from the test takes."""
        found = []
        for who in packages.FSDD_SPEAKERS:
            for index in range(25):
                rng = generator(self.seed, f"human test {who}", index)
                takes = [pick(rng, packages.TEST_TAKES) for _ in range(4)]
                found.append(media.human_string([int(rng.integers(10)) for _ in range(4)], who, takes, rng))
        return found

    @cached_property
    def asterisk_digits(self) -> list[Medium]:
        """Sixty strings of four digits by Asterisk's speaker."""
        found = []
        for index in range(60 if self.prompts else 0):
            rng = generator(self.seed, "asterisk digits", index)
            digits = [int(rng.integers(10)) for _ in range(4)]
            recipe = {"prompts": [f"digits/{d}" for d in digits], "gaps": [0.1] * 3, "rate": HEARING_RATE}
            found.append(said(recipe, text=" ".join(DIGITS[d] for d in digits), speaker="allison"))
        return found

    @cached_property
    def single_digits(self) -> list[Medium]:
        """Each of the thousand held-out handwritten digits."""
        rngs = (generator(self.seed, "single digits", place) for place in range(media.HELD_OUT_DIGITS))
        return [media.written(rng, [place], self.labels) for place, rng in enumerate(rngs)]

    @cached_property
    def digit_strings(self) -> list[Medium]:
        return [self._picture(index, length=2 + index % 3) for index in range(300)]

    @cached_property
    def shapes(self) -> list[Medium]:
        """In the style that is held out."""
        return [media.held_out_shape(self.seed, index) for index in range(300)]

    @cached_property
    def known_shapes(self) -> list[Medium]:
        """New pictures in the styles of training."""
        return [media.shape_picture(self.seed, i, styles=STYLES, group="known shapes") for i in range(100)]

    @cached_property
    def films(self) -> list[Medium]:
        """New digits move; half of what is said is said by the six speakers, half by people."""
        digits = [*self.digits, *self.human_digits[::3]]
        places = range(media.HELD_OUT_DIGITS)
        return [
            media.film(self.seed, index, self.labels, places=places, digits=digits, group="test films")
            for index in range(300)
        ]

    @cached_property
    def readings(self) -> list[tuple[str, str]]:
        """200 unseen sentences, each for one of the four voices."""
        return self._for_voices(200, texts(reading_text, self.seed, "test readings", test=True))

    @cached_property
    def hard_readings(self) -> list[tuple[str, str]]:
        return self._for_voices(300, texts(hard_text, self.seed, "hard test", test=True))

    def media(self) -> Iterator[Medium]:
        """All that is made for the tests; sounds before the films that use them."""
        yield from self.unseen
        for clips in self.questions.values():
            yield from clips
        for each in (self.digits, self.human_everything, self.human_strings, self.asterisk_digits):
            yield from each
        spoken = [(line["reference"], _ANSWERS) for lines in self._conversations.values() for line in lines]
        yield from (_recording(*each) for each in dict.fromkeys((*self.readings, *self.hard_readings, *spoken)))
        for pictures in (self.single_digits, self.digit_strings, self.shapes, self.known_shapes):
            yield from pictures
        for film in self.films:
            yield from (film, media.without(film, "mute"), media.without(film, "blank"))

    def sets(self) -> dict[str, list[Line]]:
        """Lines by the name of the set."""
        found = {
            "hears_unseen_speakers": [self._hears("hears_unseen_speakers", clip) for clip in self.unseen],
            "hears_human": [self._hears("hears_human", clip) for clip in self.human_digits],
            "hears_left_out": [self._hears("hears_left_out", clip) for clip in self.human_everything],
            "hears_human_strings": [self._hears("hears_human_strings", clip) for clip in self.human_strings],
            "hears_asterisk_digits": [self._hears("hears_asterisk_digits", clip) for clip in self.asterisk_digits],
            "sees_digit": [self._asks("sees_digit", p, "digits") for p in self.single_digits],
            "sees_string": [self._asks("sees_string", p, "digits") for p in self.digit_strings],
        }
        kinds = ("colour", "shape", "count")
        found["sees_shapes"] = [self._asks("sees_shapes", p, kinds[i % 3]) for i, p in enumerate(self.shapes)]
        found["sees_shapes_known_style"] = [
            self._asks("sees_shapes_known_style", p, kinds[i % 3]) for i, p in enumerate(self.known_shapes)
        ]
        found |= self._films()
        found["speaks"] = [self._reads("speaks", *reading) for reading in self.readings]
        found["speaks_hard"] = [self._reads("speaks_hard", *reading) for reading in self.hard_readings]
        for name, lines in self._conversations.items():
            found[name] = [line | {"recording": _recording(line["reference"], _ANSWERS).path} for line in lines]
        return {name: lines for name, lines in found.items() if lines}

    @cached_property
    def _conversations(self) -> dict[str, list[Line]]:
        """Questions whose answers are spoken, but for the recordings of those."""
        return {
            "converses_picture": self._spoken_questions(),
            "converses_digit": [self._asks("converses_digit", clip, "repeat") for clip in self.human_digits],
            "converses_same": self._same(),
        }

    def _films(self) -> dict[str, list[Line]]:
        """Questions on films, and the same ones with a track taken away."""
        found: dict[str, list[Line]] = {"watches": [], "watches_first": []}
        for index, film in enumerate(self.films):
            kinds = [kind for kind in chats.film_questions(film.facts) if kind not in ("describe", "first")]
            told = {key: film.facts[key] for key in ("seen", "heard") if key in film.facts}
            found["watches"].append(self._asks("watches", film, kinds[index % len(kinds)]) | told)
            if "first" in film.facts:
                found["watches_first"].append(self._asks("watches_first", film, "first") | told)
        for name in ("watches", "watches_first"):
            for track, what in (("no_sound", "mute"), ("no_picture", "blank")):
                found[f"{name}_{track}"] = [self._ablated(line, f"{name}_{track}", what) for line in found[name]]
        return found

    def _ablated(self, line: Line, task: str, what: str) -> Line:
        other = {film.path: media.without(film, what).path for film in self.films}
        (message,) = line["messages"]
        items = [{**i, "video": other[i["video"]]} if i["type"] == "video" else i for i in message["content"]]
        return {**line, "task": task, "messages": [{**message, "content": items}]}

    def _spoken_questions(self) -> list[Line]:
        """Two hundred pictures; an unseen speaker asks."""
        found = []
        for index in range(200):
            rng = generator(self.seed, "spoken questions", index)
            picture = self.single_digits[index] if index % 2 else self.shapes[index]
            kind = "digits" if index % 2 else ("colour", "shape", "count")[index // 2 % 3]
            clip = pick(rng, self.questions[question(rng, kind, picture.facts)])
            items = (chats.shown(picture), chats.shown(clip))
            found.append(self._line("converses_picture", items, kind, picture.facts, speaker=clip.facts["speaker"]))
        return found

    def _same(self) -> list[Line]:
        found = []
        for index, sound in enumerate(self.human_digits):
            rng = generator(self.seed, "same number", index)
            picture = pick(rng, self.single_digits)
            if index % 2:
                picture = next(p for p in self.single_digits[index:] if p.facts["seen"] == sound.facts["heard"])
            facts = {"seen": picture.facts["seen"], "heard": sound.facts["heard"]}
            items = (chats.shown(picture), chats.shown(sound), chats.words(question(rng, "same", facts)))
            found.append(self._line("converses_same", items, "same", facts, speaker=sound.facts["speaker"]))
        return found

    def _asks(self, task: str, medium: Medium, kind: str) -> Line:
        """A typed question."""
        rng = generator(self.seed, task + medium.path)
        items = (chats.shown(medium), chats.words(question(rng, kind, medium.facts)))
        extra = {"speaker": medium.facts["speaker"]} if "speaker" in medium.facts else {}
        return self._line(task, items, kind, medium.facts, **extra)

    def _hears(self, task: str, clip: Medium) -> Line:
        line = {"task": task, "messages": chats.transcription(clip)[:-1], "reference": normal(clip.facts["text"])}
        return line | {"answer": normal(clip.facts["text"]), "speaker": clip.facts["speaker"]}

    def _reads(self, task: str, text: str, voice: str) -> Line:
        messages = [chats.user(chats.words(chats.READ[0] + text))]
        line = {"task": task, "messages": messages, "reference": text, "answer": normal(text), "voice": voice}
        return line | {"recording": _recording(text, voice).path}

    def _line(self, task: str, items: Sequence[Mapping], kind: str, facts: Mapping, **extra: Any) -> Line:
        reference, decisive = answer(kind, facts)
        messages = [chats.user(*items)]
        return {"task": task, "messages": messages, "reference": reference, "answer": decisive, "kind": kind, **extra}

    def _picture(self, index: int, length: int) -> Medium:
        places = range(media.HELD_OUT_DIGITS)
        return media.digit_picture(self.seed, index, self.labels, places=places, length=length, group="test strings")

    def _human_takes(self, takes: Sequence[int]) -> list[Medium]:
        rng = generator(self.seed, "human digits")
        return [
            media.human_string([digit], who, [take], rng)
            for who in packages.FSDD_SPEAKERS
            for take in takes
            for digit in range(10)
        ]

    def _for_voices(self, count: int, found: Iterator[str]) -> list[tuple[str, str]]:
        """Texts, and the voices by turns."""
        voices = tuple(TALKER)
        return [(text, voices[number % len(voices)]) for number, text in zip(range(count), found)]

    def _spoken(self, name: str, text: str, **facts: Any) -> Medium:
        recipe = {"voice": f"kokoro:{name}", "text": text, "rate": HEARING_RATE}
        return Medium(recipe, speech_path(recipe), {"text": text, "speaker": name, **facts})


def _recording(text: str, voice: str) -> Medium:
    """The text said by a voice itself: the scorers' floor."""
    return said({"voice": TALKER[voice], "text": text, "rate": TALKER_RATE}, text=text)
