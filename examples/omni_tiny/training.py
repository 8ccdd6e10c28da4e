"""All that is learnt from: which media there are, and the lines of each stage.

What a line says is a function of seed, amounts and the line's number.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from examples.omni_tiny import chats, media
from examples.omni_tiny.amounts import Amounts
from examples.omni_tiny.chance import generator, pick
from examples.omni_tiny.chats import Line, Media, Message
from examples.omni_tiny.media import HELD_OUT_DIGITS, TALKER_RATE, Medium, said
from examples.omni_tiny.questions import QUESTIONS, answer
from examples.omni_tiny.sentences import DIGITS, hard_text, is_test, mixed_words, normal_words, reading_text, texts
from examples.omni_tiny.voices import TALKER

SHARED = 100  # readings that all voices have, where there are as many
HEARD = 1000  # recordings of each of the Talker's voices that the Thinker hears, beside all others
MANNER = "heart"  # the voice whose recordings the Talker learns from
REPEATED = {"emma": 4, "onyx": 4}  # times that a recording comes in voiced.jsonl
REFERENCES = 8  # recordings of each voice that may show it to Token2Wav; the first is the one of voices.json


@dataclass
class Training:
    """Media and lines. `labels`: of `packages.handwriting`."""

    seed: int
    amounts: Amounts
    labels: np.ndarray

    @cached_property
    def hearing(self) -> list[Medium]:
        fast = [media.hearing_clip(self.seed, i, kokoro=False) for i in range(self.amounts.hearing_fast)]
        slow = [media.hearing_clip(self.seed, i, kokoro=True) for i in range(self.amounts.hearing_kokoro)]
        return [*fast, *slow, *(media.joined_digits(self.seed, i) for i in range(self.amounts.joined))]

    @cached_property
    def questions(self) -> dict[str, list[Medium]]:
        return media.spoken_questions(self.seed, self.amounts.questions)

    @cached_property
    def digits(self) -> list[Medium]:
        return media.spoken_digits(self.seed, self.amounts.digits)

    @cached_property
    def human(self) -> dict[str, list[Medium]]:
        return media.human_training(self.seed, self.amounts.human)

    @cached_property
    def digit_pictures(self) -> list[Medium]:
        places, count = range(HELD_OUT_DIGITS, len(self.labels)), self.amounts.digit_pictures
        # every second one is bent: each of 59,000 digits comes about four times
        return [
            media.digit_picture(self.seed, index, self.labels, places=places, warp=index % 2 == 1)
            for index in range(count)
        ]

    @cached_property
    def shape_pictures(self) -> list[Medium]:
        return [media.shape_picture(self.seed, index) for index in range(self.amounts.shape_pictures)]

    @cached_property
    def films(self) -> list[Medium]:
        return self._films("films", self.amounts.films, self.digits)

    @cached_property
    def human_films(self) -> dict[str, list[Medium]]:
        """By the person who says the digits in them, so that each can be left out."""
        count = self.amounts.human_films // len(self.human)
        return {
            who: self._films(f"films {who}", count, [clip for clip in clips if len(clip.recipe["human"]) == 1])
            for who, clips in self.human.items()
        }

    def _films(self, group: str, count: int, digits: list[Medium]) -> list[Medium]:
        places = range(HELD_OUT_DIGITS, len(self.labels))
        return [
            media.film(self.seed, index, self.labels, places=places, digits=digits, group=group)
            for index in range(count)
        ]

    @cached_property
    def media(self) -> Media:
        digits = set(DIGITS)
        strings = []
        for clip in self.hearing:
            heard = normal_words(clip.facts["text"])
            if len(heard) <= 4 and set(heard) <= digits:
                strings.append(Medium(clip.recipe, clip.path, {"heard": " ".join(heard)}))
        single = [picture for picture in self.digit_pictures if picture.facts["seen"] in digits]
        return Media(
            digit_pictures=self.digit_pictures,
            single_digits=single or self.digit_pictures,  # where there are very few
            shape_pictures=self.shape_pictures,
            films=self.films,
            questions=self.questions,
            strings=strings + self.digits,
            digits=self.digits,
        )

    @cached_property
    def readings(self) -> list[tuple[str, list[Message]]]:
        """What the voices read, with the conversation that it ends. Of heart's 16,000, about 0.06 are answers, the
        others are read because the user asks for it: 0.4 of all are words in no order, 0.16 repeat words or are long
        strings of digits. No text comes twice; short ones that are answered often come first. The Talker learns from
        those of MANNER (`_spoken`); the others are for the tokenizer, Token2Wav and hearing."""
        wanted, found = self.amounts.talker_heart + self.amounts.talker_joe - self._shared, {}
        for place, word in enumerate(DIGITS):
            rng = generator(self.seed, "digit answers", place)
            clip = pick(rng, [clip for clip in self.digits if clip.facts["heard"] == word])
            found[answer("repeat", clip.facts)[0]] = chats.turns(rng, self.media, clip, ["repeat"])
        for kind in ("who", "hello", "help"):
            talk = chats.turns(generator(self.seed, kind), self.media, None, [kind])
            found[talk[-1]["content"]] = talk
        index = 0
        while len(found) < wanted:
            rng = generator(self.seed, "readings", index)
            kind = rng.random()
            if kind < 0.25:
                talk = chats.chat(rng, self.media)
            else:
                text = hard_text(rng) if kind < 0.4 else mixed_words(rng) if kind < 0.68 else reading_text(rng)
                talk = chats.reading(rng, text)
            text = talk[-1]["content"]
            if not is_test(text) and text not in found:
                found[text] = talk
            if len(found) == max(SHARED, self.amounts.talker_kokoro):  # the Talker's alone: of heart
                found |= self._compared()
            index += 1
        return list(found.items())[:wanted]

    def _compared(self) -> dict[str, list[Message]]:
        """All answers to whether two digits are the same: each is rare among conversations."""
        talks = (chats.compared(seen, heard, QUESTIONS["same"][0]) for seen, heard in product(DIGITS, DIGITS))
        return {talk[-1]["content"]: talk for talk in talks}

    @cached_property
    def read_by(self) -> dict[str, list[tuple[str, list[Message]]]]:
        """Readings of each voice. heart and joe share the first ones only: of more texts more is learnt. emma and onyx
        read the first of heart's."""
        first, own, slow = self.amounts.talker_joe, self.amounts.talker_joe - self._shared, self.amounts.talker_kokoro
        heart = self.readings[:first] + self.readings[first + own :]
        joe = self.readings[: self._shared] + self.readings[first : first + own]
        return {"heart": heart, "joe": joe, "emma": heart[:slow], "onyx": heart[:slow]}

    @property
    def _shared(self) -> int:
        return min(SHARED, self.amounts.talker_joe)

    @cached_property
    def talker(self) -> dict[str, list[Medium]]:
        """Recordings of each voice, of its readings."""
        found = {}
        for voice, readings in self.read_by.items():
            recipes = [{"voice": TALKER[voice], "text": text, "rate": TALKER_RATE} for text, _ in readings]
            found[voice] = [said(recipe, text=recipe["text"]) for recipe in recipes]
        return found

    def groups(self) -> dict[str, list[Medium]]:
        """What is made, by group; sounds come before the films that use them."""
        return {
            "talker": [clip for clips in self.talker.values() for clip in clips],
            "questions": [clip for clips in self.questions.values() for clip in clips],
            "digits": self.digits,
            "hearing": self.hearing,
            "human": [clip for clips in self.human.values() for clip in clips],
            "pictures": [*self.digit_pictures, *self.shape_pictures],
            "films": [*self.films, *(film for films in self.human_films.values() for film in films)],
        }

    def lines(self) -> dict[str, Iterator[Line]]:
        """The lines of each file, by its name without ending."""
        found = {
            "audio_text": _talks(chats.transcription(clip) for clip in self._heard(HEARD)),
            "audio_text_digits": _talks(
                chats.transcription(clip)
                for clip in self._heard(HEARD)
                if set(normal_words(clip.facts["text"])) <= set(DIGITS)
            ),
            "image_text": _talks(chats.caption(each) for each in (*self.digit_pictures, *self.shape_pictures)),
            "video_audio": _talks(chats.caption(film) for film in self.films),
            "text": self._texts(),
            "sft": _talks(self._chats()),
            "sft_pictures": _talks(self._picture_chats()),
            "sft_films": _talks(
                chats.on_film(generator(self.seed, "films asked", i), self.media, film)
                for i, film in enumerate(self.films)
            ),
            "sft_same": _talks(self._same_chats()),
            "same_words": _talks(
                chats.same_words(generator(self.seed, "same words", i)) for i in range(self.amounts.compared)
            ),
            "read_aloud": _talks(self._reading_chats()),
            "hard_prompts": self._hard(),
            "transcribed": ({"audio": clip.path, "text": clip.facts["text"]} for clip in self._heard()),
            "recordings": ({"audio": clip.path} for voice in TALKER for clip in self._evenly(voice)),
            "voiced": self._voiced(),
        }
        for who, clips in self.human.items():
            found[f"audio_text_{who}"] = _talks(chats.transcription(clip) for clip in clips)
            found[f"sft_{who}"] = _talks(self._human_chats(who))
        for voice in TALKER:
            found[f"spoken_{voice}"] = _talks(self._spoken(voice))
        return found

    def _heard(self, most: int | None = None) -> Iterator[Medium]:
        """All synthetic speech: what was made to be heard, single digits, questions, and the Talker's voices.

        Args:
            most: recordings of each of the Talker's voices; None for all. The Thinker is to understand strangers, and
                those are many.
        """
        groups = self.groups()
        for name in ("hearing", "digits", "questions"):
            yield from groups[name]
        for clips in self.talker.values():
            yield from clips[:most]

    def _texts(self) -> Iterator[Line]:
        for text, _ in zip(texts(reading_text, self.seed, "texts", test=False), range(self.amounts.texts)):
            yield {"text": text}

    def _chats(self) -> Iterator[list[Message]]:
        for index in range(self.amounts.chats):
            yield chats.chat(generator(self.seed, "chats", index), self.media)

    def _picture_chats(self) -> Iterator[list[Message]]:
        """Typed questions on pictures, of digits and of shapes, for the eyes alone."""
        for index in range(self.amounts.picture_chats):
            rng = generator(self.seed, "picture chats", index)
            yield chats.on_picture(rng, self.media, digits=index % 2 == 0, spoken=0)

    def _same_chats(self) -> Iterator[list[Message]]:
        """Whether the digit that is heard is the one that is seen, half of them of films. Among all conversations it is
        asked too seldom to be learnt: what is seen and heard was told rightly, and "no" always."""
        films = [film for film in self.films if "heard" in film.facts]
        for index in range(self.amounts.chats // 4):
            rng = generator(self.seed, "same chats", index)
            if index % 2 and films:
                yield chats.turns(rng, self.media, pick(rng, films), ["same"])
            else:
                yield chats.same_number(rng, self.media, pick(rng, self.digits))

    def _reading_chats(self) -> Iterator[list[Message]]:
        """The Thinker writes what it is asked to say. From sentences alone it would learn their patterns and guess the
        likely word; so three of ten texts are words in no order."""
        for index in range(self.amounts.read_aloud):
            rng = generator(self.seed, "reading chats", index)
            kind = rng.random()
            text = mixed_words(rng) if kind < 0.3 else hard_text(rng) if kind < 0.45 else reading_text(rng)
            if not is_test(text):
                yield chats.reading(rng, text)

    def _human_chats(self, who: str) -> Iterator[list[Message]]:
        """A person's digits are repeated, or compared with a picture; and films are asked about that may have them."""
        for index, clip in enumerate(self.human[who]):
            rng = generator(self.seed, f"human chats {who}", index)
            if len(clip.recipe["human"]) == 1 and rng.random() < 0.5:
                yield chats.same_number(rng, self.media, clip)
            else:
                yield chats.turns(rng, self.media, clip, ["repeat"])
        for index, film in enumerate(self.human_films[who]):
            yield chats.on_film(generator(self.seed, f"film chats {who}", index), self.media, film)

    def _spoken(self, voice: str) -> Iterator[list[Message]]:
        """What the Talker says in a voice: each reading once; and answers among them again, as they come in
        conversations: the short ones often.

        All voices say it as MANNER does, the others a part of it each: codes tell what is said and how, and Token2Wav
        gives them the sound of the voice that is asked for. Of MANNER's the speech tokenizer keeps the words best, and
        to the Talker it is one way to speak instead of four.
        """
        own = list(zip(self.read_by[MANNER], self.talker[MANNER], strict=True))
        others = [each for each in TALKER if each != MANNER]
        if voice != MANNER:
            own = own[others.index(voice) :: len(others)]
        for (text, talk), clip in own:
            yield [*talk[:-1], chats.assistant(text, voice, clip.path)]
        recordings = {clip.facts["text"]: clip.path for clip in self.talker[MANNER]}
        for index in range(len(own) // 2):
            talk = chats.chat(generator(self.seed, f"spoken chats {voice}", index), self.media)
            text = talk[-1]["content"]
            if text in recordings:
                yield [*talk[:-1], chats.assistant(text, voice, recordings[text])]

    def _hard(self) -> Iterator[Line]:
        """Prompts, each for one of the four voices."""
        names = tuple(TALKER)
        hard, usual = (texts(f, self.seed, "hard", test=False) for f in (hard_text, reading_text))
        for index in range(self.amounts.hard):
            rng = generator(self.seed, "hard prompts", index)
            messages = chats.reading(rng, next(usual if index % 4 == 3 else hard))
            yield {"messages": messages, "voice": names[index // 4 % len(names)]}

    def references(self, voice: str) -> list[Medium]:
        """Recordings that show a voice: the longest of the first hundred texts."""
        return sorted(self.talker[voice][:100], key=lambda clip: -len(clip.facts["text"]))[:REFERENCES]

    def _evenly(self, voice: str) -> list[Medium]:
        """Recordings for stages of clips, which take no weights: no more of heart than of joe, and emma and onyx, who
        are slow to make, several times."""
        clips = self.talker[voice]
        return clips[: self.amounts.talker_joe] if voice == "heart" else clips * REPEATED.get(voice, 1)

    def _voiced(self) -> Iterator[Line]:
        """Recordings with a voice's vector and another recording of it; `omni-jax speech-codes` adds the codes."""
        for voice in TALKER:
            references = self.references(voice)
            for index, clip in enumerate(self._evenly(voice)):
                shown = [each for each in references if each.path != clip.path] or [clip]
                reference = pick(generator(self.seed, f"reference {voice}", index), shown)
                line: dict[str, Any] = {"audio": clip.path, "text": clip.facts["text"]}
                yield line | {"reference": reference.path, "speaker": f"voices/{voice}.npy", "voice": voice}


def _talks(conversations) -> Iterator[Line]:
    return ({"messages": messages} for messages in conversations)
